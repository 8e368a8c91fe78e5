"""The fast kernel on a CPU: native.cpp, called for one head and a range of queries, on as many threads as torch uses.

C++ vectors run along 16 keys, so keys are passed in blocks: [block, pair, 2, 16]. Queries are multiplied by
log2(e) / temperature once; weights are then powers of two, by a polynomial (relative error below 3e-7). Sums are
integers, the same for any number of threads, and bins are exactly those of `BinLookup` for the same D.
"""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int, UInt16
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.binning import BinLookup, refuse_heads
from positional_heads.core.kernels import building
from positional_heads.core.kernels.sums import EntrySums, Kernel, ShuffleSums, refuse_misfits
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes
from positional_heads.core.shuffles import Shuffled

SOURCE = Path(__file__).with_name("native.cpp")
KEYS = 16
LEAST_QUERIES, LEAST_LISTED = 64, 2**13
"""Queries, and listed entries, of a share: fewer would cost more to start than they save."""
SHARES = 4
"""Shares of work per thread: late queries have more keys than early ones, so equal shares take different times."""
THREADS_PAY = 2**23
"""Terms whose computation takes longer than starting threads."""
MOST_CELLS = 2**15
"""Cells of D whose counts fit in a processor's cache."""
NOT_FINITE, NO_MEMORY = 1, 2

Part = TypeVar("Part")
Done = TypeVar("Done")
Share = tuple[int, int, int]
"""Head, first and one past the last query, or number in a list."""
ShareSums = tuple[int, int, int, Int[Tensor, "bin 2"], Int[Tensor, " distance"], Int[Tensor, " one"]]
"""Number of the list, head, status, and the sums of a share."""


class _Head(ctypes.Structure):
    """Mirrors `struct Head` of native.cpp."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("key", ctypes.c_void_p),
        ("pairs", ctypes.c_int64),
        ("longest", ctypes.c_void_p),
        ("edges", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("low", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("distances", ctypes.c_int64),
        ("ranks", ctypes.c_void_p),
        ("histogram", ctypes.c_void_p),
        ("dimension_sums", ctypes.c_void_p),
        ("saturated", ctypes.c_void_p),
        ("dominant", ctypes.c_void_p),
        ("row", ctypes.c_int64),
        ("bins", ctypes.c_void_p),
        ("cells", ctypes.c_int64),
        ("per_index", ctypes.c_float),
    )


class _Shuffled(ctypes.Structure):
    """Mirrors `struct Shuffled` of native.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "query_phase", "key_phase")),
        *((name, ctypes.c_int64) for name in ("pairs", "padded", "length", "heads", "key_heads")),
        *((name, ctypes.c_int64) for name in ("query_phases", "key_phases")),
        *((name, ctypes.c_void_p) for name in ("order", "runs", "first")),
        *((name, ctypes.c_int64) for name in ("halves", "skip_keys")),
        *((name, ctypes.c_void_p) for name in ("edges", "starts", "low", "scale", "cell_bins")),
        *((name, ctypes.c_int64) for name in ("cells", "bins", "coarse", "distances")),
        *((name, ctypes.c_void_p) for name in ("ranks", "entries", "rank_sums", "dimension_sums")),
        *((name, ctypes.c_void_p) for name in ("half_entries", "half_rank_sums")),
        ("per_index", ctypes.c_float),
    )


class NativeKernel(Kernel):
    """Plain C++, compiled for the processor's widest vectors; takes float32 planes on the CPU."""

    name = "native"

    def __init__(self) -> None:
        """Load the library, and compile it first if that has not been done.

        Raises:
            BuildError: If there is no compiler, or it fails.
        """
        self._library = building.load(SOURCE)

    def every_entry(
        self,
        query: Planes,
        key: Planes,
        plan: EntryPlan,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        *,
        dominant: Float[Tensor, "head pos padded"] | None = None,
    ) -> EntrySums:
        """Sums over all entries of the sequence that the plan counts; see `sums.Kernel`.

        Args:
            query: Rotated queries of one sequence, as planes.
            key: Rotated keys, one per query head.
            plan: Which entries count.
            temperature: Softmax temperature of the dominant dimension.
            bins: Bins of D.
            ranks: Rank of each distance.
            dominant: Filled with D, keys padded to a multiple of 16, if given: for tests.
        """
        heads, length, n_pairs, _ = query.shape
        _refuse_misfits(query, key, bins, len(ranks))
        limits = [ctypes.c_int64(limit) for limit in (plan.min_distance, plan.furthest, plan.skip_keys)]
        keys = pad(key.float(), (0, 0, 0, 0, 0, -length % KEYS))
        work = _Layer(
            _scaled(query, temperature).contiguous(),
            rearrange(keys, "head (block n) pair two -> head block pair two n", n=KEYS).contiguous(),
            (key[..., 0].float() ** 2 + key[..., 1].float() ** 2).amax(1),
            n_pairs,
            bins,
            _packed(ranks.flip(0)),
            dominant,
        )

        def count(head: _Head, _: int, first: int, last: int) -> int:
            status: int = self._library.every_entry(
                ctypes.byref(head), ctypes.c_int64(first), ctypes.c_int64(last), *limits
            )
            return status

        shares = [(0, *share) for share in _shares(heads, length, LEAST_QUERIES)]
        return work.sums([plan.entries_at(length)], count, shares)[0]

    def listed_entries(
        self,
        query: Planes,
        key: Planes,
        positions: Positions,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        *,
        dominant: Float[Tensor, "head n"] | None = None,
    ) -> EntrySums:
        """Sums over the entries at these query and key positions; see `sums.Kernel`.

        Args:
            query: Rotated queries of one sequence, as planes.
            key: Rotated keys, one per query head.
            positions: Position of each entry's query and key.
            temperature: Softmax temperature of the dominant dimension.
            bins: Bins of D.
            ranks: Rank of each distance.
            dominant: Filled with D, if given.

        Raises:
            IndexError: If a position is not in the sequence, or a key comes after its query.
        """
        return self._lists((query, key), [positions], temperature, bins, ranks, dominant)[0]

    def sampled_entries(
        self,
        query: Planes,
        key: Planes,
        replicates: Sequence[Positions],
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> list[EntrySums]:
        """Sums over each list of entries; see `sums.Kernel`."""
        return self._lists((query, key), replicates, temperature, bins, ranks)

    def _lists(
        self,
        planes: tuple[Planes, Planes],
        lists: Sequence[Positions],
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        dominant: Float[Tensor, "head n"] | None = None,
    ) -> list[EntrySums]:
        query, key = planes
        heads, length, n_pairs, _ = query.shape
        _refuse_misfits(query, key, bins, len(ranks))
        lists = [(query_pos.contiguous(), key_pos.contiguous()) for query_pos, key_pos in lists]
        for positions in lists:
            _refuse_outside(length, *positions)
        work = _Layer(
            _in_fours(_scaled(query, temperature)),
            _in_fours(key),
            None,
            n_pairs,
            bins,
            _packed(ranks.flip(0)),
            dominant,
        )

        def count(head: _Head, number: int, first: int, last: int) -> int:
            head.dominant = None if head.dominant is None else head.dominant + 4 * first
            listed = [_pointer(part[first:]) for part in lists[number]]
            status: int = self._library.listed_entries(ctypes.byref(head), *listed, ctypes.c_int64(last - first))
            return status

        distance_counts = [torch.bincount(query_pos - key_pos, minlength=len(ranks)) for query_pos, key_pos in lists]
        shares = [
            (number, *share)
            for number, (query_pos, _) in enumerate(lists)
            for share in _shares(heads, len(query_pos), LEAST_LISTED)
        ]
        return work.sums(distance_counts, count, shares)

    def add_runs(
        self,
        shuffled: Shuffled,
        plan: EntryPlan,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        sums: ShuffleSums,
    ) -> None:
        """Add the sampled runs of every shuffle, in place; see `sums.Kernel`."""
        content = torch.view_as_real(shuffled.content.query)
        _refuse_misfits(content, content, bins, len(ranks))
        _refuse_runs_outside(shuffled)
        layer, heads = _ShuffledLayer.laid_out(shuffled, temperature, bins, ranks), len(bins.edges)
        given = layer.as_struct(sums, plan.skip_keys)
        group = heads // len(layer.tensors["key"])
        if len(shuffled.orders) * heads < SHARES * group * torch.get_num_threads():
            group = 1  # too few shares for all threads: heads prepare their keys each for itself
        shares = [
            (shuffle, head, head + group) for shuffle in range(len(shuffled.orders)) for head in range(0, heads, group)
        ]

        def run(share: Share) -> int:
            status: int = self._library.shuffled_runs(ctypes.byref(given), *map(ctypes.c_int64, share))
            return status

        statuses = set(_on_threads(run, shares, torch.get_num_threads()))
        if -1 in statuses:
            raise MemoryError
        refuse_heads([status - 1 for status in statuses - {0}])
        sums.distance_counts.add_(shuffled.runs.entry_counts(plan, shuffled.orders.shape[1]).sum(1))

    def listed_dominant(
        self, query: Planes, key: Planes, positions: Positions, temperature: float
    ) -> Float[Tensor, "head n"]:
        """The dominant dimension of each of these entries; see `sums.Kernel`."""
        dominant = torch.empty(len(query), len(positions[0]))
        one_bin, no_ranks = BinLookup(torch.zeros(len(query), 1)), torch.zeros(query.shape[1], dtype=torch.long)
        self.listed_entries(query, key, positions, temperature, one_bin, no_ranks, dominant=dominant)
        return dominant


@dataclass(frozen=True)
class _Layer:
    """One layer in the memory layout of native.cpp; keeps the tensors alive while C++ reads them."""

    query: Float[Tensor, "head ..."]
    key: Float[Tensor, "head ..."]
    longest: Float[Tensor, "head pair"] | None
    n_pairs: int
    bins: BinLookup
    ranks: Int[Tensor, " distance"]
    dominant: Float[Tensor, "head ..."] | None

    @cached_property
    def edges(self) -> Float[Tensor, "head edge"]:
        """Edges of bins, and infinity: the search may read one edge past the last."""
        return pad(self.bins.edges, (0, 1), value=math.inf)

    def sums(
        self,
        distance_counts: Sequence[Int[Tensor, " distance"]],
        count: Callable[[_Head, int, int, int], int],
        shares: Sequence[tuple[int, int, int, int]],
    ) -> list[EntrySums]:
        """The sums of each list of entries.

        Args:
            distance_counts: Entries of each list at each distance.
            count: Called with a head, the number of the list, and a range of it.
            shares: Number of the list, head, and range.

        Raises:
            MemoryError: If a few KiB cannot be allocated.
            ValueError: If D is not finite.
        """
        lists, (heads, edges) = len(distance_counts), self.bins.edges.shape
        histograms = torch.zeros((lists, heads, edges + 1, 2), dtype=torch.long)
        dimensions = torch.zeros((lists, heads, len(self.ranks)), dtype=torch.long)
        saturated = torch.zeros((lists, heads, 1), dtype=torch.long)
        entries = sum(int(counts.sum()) for counts in distance_counts)
        threads = torch.get_num_threads() if entries * heads * self.n_pairs >= THREADS_PAY else 1
        # two threads may have the same head of the same list at the same time
        split = threads > 1 and len(shares) > lists * heads

        def run(share: tuple[int, int, int, int]) -> ShareSums:
            number, head, first, last = share
            own = histograms[number, head], dimensions[number, head], saturated[number, head]
            if split:
                own = torch.zeros_like(own[0]), torch.zeros_like(own[1]), torch.zeros_like(own[2])
            return number, head, count(self._head(head, *own), number, first, last), *own

        bad = set()
        for number, head, status, histogram, sums, n_saturated in _on_threads(run, shares, threads):
            if status == NO_MEMORY:
                raise MemoryError
            if status == NOT_FINITE:
                bad.add(head)
            if split:
                histograms[number, head] += histogram
                dimensions[number, head] += sums
                saturated[number, head] += n_saturated
        refuse_heads(bad)
        counted, rank_sums = histograms[..., 0].contiguous(), histograms[..., 1].contiguous()
        of_lists = zip(counted, rank_sums, distance_counts, dimensions.flip(2), saturated[..., 0], strict=True)
        return [EntrySums(*sums) for sums in of_lists]

    def _head(self, number: int, histogram: Tensor, sums: Tensor, saturated: Tensor) -> _Head:
        cells = _cells(self.bins, self.n_pairs)
        return _Head(
            _pointer(self.query[number]),
            _pointer(self.key[number]),
            self.n_pairs,
            None if self.longest is None else _pointer(self.longest[number]),
            _pointer(self.edges[number]),
            _pointer(self.bins.starts[number]),
            float(self.bins.low[number]),
            float(self.bins.scale[number]),
            len(self.ranks),
            _pointer(self.ranks),
            _pointer(histogram),
            _pointer(sums),
            _pointer(saturated),
            None if self.dominant is None else _pointer(self.dominant[number]),
            0 if self.dominant is None else self.dominant.shape[-1],
            None if cells.bins is None else _pointer(cells.bins[number]),
            cells.number,
            cells.per_index,
        )


@dataclass(frozen=True)
class _ShuffledLayer:
    """One layer's content and shuffles in the memory layout of native.cpp; keeps tensors alive while C++ reads them."""

    tensors: dict[str, Tensor]
    cells: "_Cells"
    n_pairs: int

    @classmethod
    def laid_out(
        cls, shuffled: Shuffled, temperature: float, bins: BinLookup, ranks: Int[Tensor, " distance"]
    ) -> "_ShuffledLayer":
        content, orders, runs = shuffled
        heads, n_pairs, key = len(content.query), content.query.shape[2], content.key
        if len(content.key_phase) > 1:  # heads rotate differently, also those that share a key
            key = key.repeat_interleave(heads // len(key), 0)
        tensors = {
            "query": _in_twos(content.query) * (math.log2(math.e) / temperature),
            "key": _in_twos(key),
            "query_phase": _in_blocks(content.query_phase),
            "key_phase": _in_blocks(content.key_phase),
            "order": orders.contiguous(),
            "runs": torch.stack([runs.query_pos, runs.key_pos], dim=1),
            "first": pad(runs.sizes.flatten().cumsum(0), (1, 0)),
            "edges": pad(bins.edges, (0, 1), value=math.inf),
            "starts": bins.starts,
            "low": bins.low.contiguous(),
            "scale": bins.scale.contiguous(),
            "ranks": _packed(ranks),
        }
        cells = _cells(bins, n_pairs)
        return cls(tensors if cells.bins is None else tensors | {"cell_bins": cells.bins}, cells, n_pairs)

    def as_struct(self, sums: ShuffleSums, skip_keys: int) -> _Shuffled:
        query, key = self.tensors["query"], self.tensors["key"]
        names = ("entries", "rank_sums", "dimension_sums", "half_entries", "half_rank_sums")
        pointers = self.tensors | {name: getattr(sums, name) for name in names}
        return _Shuffled(
            **{name: _pointer(tensor) for name, tensor in pointers.items()},
            pairs=self.n_pairs,
            padded=query.shape[2],
            length=query.shape[1],
            heads=len(query),
            key_heads=len(key),
            query_phases=len(self.tensors["query_phase"]),
            key_phases=len(self.tensors["key_phase"]),
            halves=sums.half_entries.shape[1],
            skip_keys=skip_keys,
            cells=self.cells.number,
            per_index=self.cells.per_index,
            bins=sums.entries.shape[2],
            coarse=sums.half_entries.shape[3],
            distances=sums.distance_counts.shape[1],
        )


def _refuse_misfits(query: Planes, key: Planes, bins: BinLookup, distances: int) -> None:
    """Refuse what C++ would read past its end, or misread."""
    if query.device.type != "cpu" or bins.edges.device.type != "cpu":
        msg = f"the native kernel runs on the CPU, queries are on {query.device}: choose the eager or compiled kernel"
        raise ValueError(msg)
    refuse_misfits(query, key, bins, distances)


def _refuse_outside(length: int, query_pos: Int[Tensor, " n"], key_pos: Int[Tensor, " n"]) -> None:
    if len(query_pos) and not (key_pos.min() >= 0 and (key_pos <= query_pos).all() and query_pos.max() < length):
        msg = f"listed entries must have 0 <= key position <= query position < {length}, the sequence's length"
        raise IndexError(msg)


def _refuse_runs_outside(shuffled: Shuffled) -> None:
    (_, orders, (query_pos, key_pos, _)), length = shuffled, shuffled.content.query.shape[1]
    inside = bool((orders >= 0).all() and (orders < length).all()) and orders.shape[1] == length
    if len(query_pos):
        inside &= bool((query_pos % KEYS == 0).all() and query_pos.max() < length and key_pos.min() > -KEYS)
        inside &= bool((key_pos <= query_pos).all())
    if not inside:
        msg = f"runs must begin at queries 0, 16, ... below {length}, at a key no later; orders hold 0 to {length - 1}"
        raise IndexError(msg)


def _scaled(query: Planes, temperature: float) -> Planes:
    return query.float() * (math.log2(math.e) / temperature)


def _in_fours(planes: Planes) -> Float[Tensor, "head pos padded 2"]:
    """Planes with rotary pairs padded with zeros to a multiple of four."""
    missing = -planes.shape[2] % 4
    return (pad(planes.float(), (0, 0, 0, missing)) if missing else planes.float()).contiguous()


def _in_twos(content: Complex[Tensor, "head pos pair"]) -> Float[Tensor, "head pos padded 2"]:
    """Queries or keys as planes, with rotary pairs padded with zeros to an even number."""
    planes = torch.view_as_real(content).float()
    return pad(planes, (0, 0, 0, planes.shape[2] % 2)).contiguous()


def _in_blocks(phase: Complex[Tensor, "head pos pair"]) -> Float[Tensor, "head block padded 2 16"]:
    """Cosines and sines in blocks of 16 positions, padded with zeros."""
    planes = pad(_in_twos(phase), (0, 0, 0, 0, 0, -phase.shape[1] % KEYS))
    return rearrange(planes, "head (block n) pair two -> head block pair two n", n=KEYS).contiguous()


def _packed(ranks: Int[Tensor, " distance"]) -> Int[Tensor, " distance"]:
    """What an entry at each distance adds to its cell: its rank, above 16 bits that count entries."""
    return (ranks << 16) + 1


class _Cells(NamedTuple):
    """Cells of D that entries are counted in.

    Attributes:
        bins: Bin of each cell of the resolution, per head; None where each bin is a cell.
        number: How many there are.
        per_index: Cells from one pair's index to the next.
    """

    bins: UInt16[Tensor, "head cell"] | None
    number: int
    per_index: float


_KNOWN_CELLS: WeakKeyDictionary[BinLookup, dict[int, _Cells]] = WeakKeyDictionary()


def _cells(bins: BinLookup, n_pairs: int) -> _Cells:
    """Cells of the resolution, where they are exact (a power of two to an index) and edges lie between them."""
    known = _KNOWN_CELLS.setdefault(bins, {})
    if n_pairs not in known:
        known[n_pairs] = _Cells(None, bins.edges.shape[1] + 1, 0.0)
        per_index = 1 / bins.resolution if bins.resolution else math.inf
        if math.frexp(per_index)[0] == 0.5 and n_pairs * per_index <= MOST_CELLS:  # noqa: PLR2004
            last = bins.edges.double() * per_index - 0.5
            if torch.equal(last, last.round()):
                cells = torch.arange(int(n_pairs * per_index), dtype=torch.float64).expand(len(last), -1)
                found = torch.searchsorted(last, cells.contiguous())
                known[n_pairs] = _Cells(found.to(torch.uint16), found.shape[1], per_index)
    return known[n_pairs]


def _shares(heads: int, whole: int, least: int) -> Iterator[Share]:
    """Split the work of each head into shares: several per thread, of at least `least` queries or entries."""
    threads = torch.get_num_threads()
    parts = 1 if threads == 1 else max(1, min(math.ceil(SHARES * threads / heads), whole // least))
    step = max(math.ceil(whole / parts / KEYS), 1) * KEYS
    for head in range(heads):
        for first in range(0, whole, step):
            yield head, first, min(first + step, whole)


def _on_threads(work: Callable[[Part], Done], shares: Iterable[Part], threads: int) -> Iterator[Done]:
    if threads == 1:
        yield from map(work, shares)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, shares)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
