"""The fast kernel on a CPU: native.cpp, for one head and some queries at a time, on as many threads as torch uses.

Vectors run along 16 keys, so that keys travel in blocks: [block, pair, 2, 16]. Queries are multiplied by
log2(e) / temperature once, and weights are powers of two by a polynomial (relative error below 3e-7). Sums are
integers, the same for any number of threads; bins are exactly those of `BinLookup` for the same D.
"""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.binning import BinLookup, refuse_heads
from positional_heads.core.kernels import building
from positional_heads.core.kernels.sums import EntrySums, Planes
from positional_heads.core.plan import EntryPlan

SOURCE = Path(__file__).with_name("native.cpp")
KEYS = 16
LEAST_QUERIES = 64
LEAST_LISTED = 2**13
SHARES = 4
"""Shares of work per thread: far keys are dearer than near ones, and threads take a new share when they are done."""
THREADS_PAY = 2**23
"""Terms that take longer than starting threads."""
NOT_FINITE, NO_MEMORY = 1, 2

Share = tuple[int, int, int]
"""Head, first and last query, or place in a list."""
Shared = tuple[int, int, Int[Tensor, "bin 2"], Int[Tensor, " distance"], Int[Tensor, " one"]]
"""Head, status and its sums."""


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
    )


class NativeKernel:
    """Plain C++ that the compiler turns into the processor's widest vectors; float32 planes on the CPU."""

    name = "native"

    def __init__(self) -> None:
        """Load the library, compiled now if it has not been before.

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
        """Sums over all pairs of the sequence that the plan counts; see `sums.Kernel`.

        Args:
            query: Rotated queries of one sequence, as planes.
            key: Rotated keys, one per query head.
            plan: Which pairs count.
            temperature: Softmax temperature of the dominant dimension.
            bins: Bins of D.
            ranks: Rank of each distance.
            dominant: Filled with D, keys padded to a multiple of 16, if given: for tests and small sequences.
        """
        heads, length, pairs, _ = query.shape
        _refuse_misfits(query, key, bins, len(ranks))
        limits = [ctypes.c_int64(limit) for limit in (plan.min_distance, plan.furthest, plan.skip_keys)]
        blocks = pad(key.float(), (0, 0, 0, 0, 0, -length % KEYS)).unflatten(1, (-1, KEYS))
        work = _Work(
            _scaled(query, temperature).contiguous(),
            rearrange(blocks, "head block sixteen pair two -> head block pair two sixteen").contiguous(),
            (key[..., 0].float() ** 2 + key[..., 1].float() ** 2).amax(1),
            pairs,
            bins,
            _reversed_ranks(ranks),
            dominant,
        )

        def count(head: _Head, first: int, last: int) -> int:
            status: int = self._library.every_entry(
                ctypes.byref(head), ctypes.c_int64(first), ctypes.c_int64(last), *limits
            )
            return status

        counted = _counted(length, plan, len(ranks))
        return work.sums(counted, count, _shares(heads, length, LEAST_QUERIES))

    def listed_entries(
        self,
        query: Planes,
        key: Planes,
        places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]],
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
        *,
        dominant: Float[Tensor, "head n"] | None = None,
    ) -> EntrySums:
        """Sums over the pairs of these query and key positions; see `sums.Kernel`.

        Args:
            query: Rotated queries of one sequence, as planes.
            key: Rotated keys, one per query head.
            places: Position of each pair's query and key.
            temperature: Softmax temperature of the dominant dimension.
            bins: Bins of D.
            ranks: Rank of each distance.
            dominant: Filled with D, if given.

        Raises:
            IndexError: If a position is not in the sequence, or a key comes after its query.
        """
        heads, length, pairs, _ = query.shape
        _refuse_misfits(query, key, bins, len(ranks))
        query_pos, key_pos = (place.contiguous() for place in places)
        _refuse_outside(length, query_pos, key_pos)
        work = _Work(
            _in_fours(_scaled(query, temperature)),
            _in_fours(key),
            None,
            pairs,
            bins,
            _reversed_ranks(ranks),
            dominant,
        )

        def count(head: _Head, first: int, last: int) -> int:
            head.dominant = None if head.dominant is None else head.dominant + 4 * first
            listed = [_place(position[first:]) for position in (query_pos, key_pos)]
            status: int = self._library.listed_entries(ctypes.byref(head), *listed, ctypes.c_int64(last - first))
            return status

        counted = torch.bincount(query_pos - key_pos, minlength=len(ranks))
        return work.sums(counted, count, _shares(heads, len(query_pos), LEAST_LISTED))

    def listed_dominant(
        self, query: Planes, key: Planes, places: tuple[Int[Tensor, " n"], Int[Tensor, " n"]], temperature: float
    ) -> Float[Tensor, "head n"]:
        """Dominant dimensions of these pairs themselves; see `sums.Kernel`."""
        dominant = torch.empty(len(query), len(places[0]))
        one_bin, no_ranks = BinLookup(torch.zeros(len(query), 1)), torch.zeros(query.shape[1], dtype=torch.long)
        self.listed_entries(query, key, places, temperature, one_bin, no_ranks, dominant=dominant)
        return dominant


@dataclass(frozen=True)
class _Work:
    """One layer as native.cpp reads it; the tensors live as long as this does."""

    query: Float[Tensor, "head ..."]
    key: Float[Tensor, "head ..."]
    longest: Float[Tensor, "head pair"] | None
    n_pairs: int
    bins: BinLookup
    ranks: Int[Tensor, "distance 2"]
    dominant: Float[Tensor, "head ..."] | None

    @cached_property
    def edges(self) -> Float[Tensor, "head edge"]:
        """Edges of bins, and infinity, which a search may look at in vain."""
        return pad(self.bins.edges, (0, 1), value=math.inf)

    def sums(
        self,
        counted: Int[Tensor, " distance"],
        count: Callable[[_Head, int, int], int],
        shares: Iterable[Share],
    ) -> EntrySums:
        """The sums of all shares, each a head and a range.

        Raises:
            MemoryError: If a few KiB cannot be had.
            ValueError: If D is not finite.
        """
        heads, edges = self.bins.edges.shape
        pairs = torch.zeros((heads, edges + 1, 2), dtype=torch.long)
        dimensions = torch.zeros((heads, len(counted)), dtype=torch.long)
        saturated = torch.zeros((heads, 1), dtype=torch.long)
        threads = torch.get_num_threads() if int(counted.sum()) * heads * self.n_pairs >= THREADS_PAY else 1

        def share(place: Share) -> Shared:
            number, first, last = place
            own = pairs[number], dimensions[number], saturated[number]
            if threads > 1:  # two may have the same head at once
                own = torch.zeros_like(own[0]), torch.zeros_like(own[1]), torch.zeros_like(own[2])
            return number, count(self._head(number, *own), first, last), *own

        bad = set()
        for number, status, histogram, sums, one_pair in _on_threads(share, shares, threads):
            if status == NO_MEMORY:
                raise MemoryError
            if status == NOT_FINITE:
                bad.add(number)
            if threads > 1:
                pairs[number] += histogram
                dimensions[number] += sums
                saturated[number] += one_pair
        refuse_heads(bad)
        histograms = pairs[..., 0].contiguous(), pairs[..., 1].contiguous()
        return EntrySums(*histograms, counted, dimensions.flip(1), saturated[:, 0])

    def _head(self, number: int, histogram: Tensor, sums: Tensor, saturated: Tensor) -> _Head:
        return _Head(
            _place(self.query[number]),
            _place(self.key[number]),
            self.n_pairs,
            None if self.longest is None else _place(self.longest[number]),
            _place(self.edges[number]),
            _place(self.bins.starts[number]),
            float(self.bins.low[number]),
            float(self.bins.scale[number]),
            len(self.ranks),
            _place(self.ranks),
            _place(histogram),
            _place(sums),
            _place(saturated),
            None if self.dominant is None else _place(self.dominant[number]),
            0 if self.dominant is None else self.dominant.shape[-1],
        )


def _refuse_misfits(query: Planes, key: Planes, bins: BinLookup, distances: int) -> None:
    """What C would read beyond its end, or misread."""
    if query.device.type != "cpu" or bins.edges.device.type != "cpu":
        msg = f"the native kernel runs on the CPU, queries are on {query.device}: choose the eager or compiled kernel"
        raise ValueError(msg)
    if bins.edges.dtype != torch.float32:
        msg = f"the native kernel bins float32, these edges are {bins.edges.dtype}: choose the eager kernel"
        raise ValueError(msg)
    if query.shape != key.shape or len(query) != len(bins.edges) or query.shape[1] > distances:
        msg = (
            f"queries {tuple(query.shape)}, keys {tuple(key.shape)}, bins of {len(bins.edges)} heads and ranks of "
            f"{distances} distances must fit: the same shape, as many heads, at least as many distances as positions"
        )
        raise ValueError(msg)


def _refuse_outside(length: int, query_pos: Int[Tensor, " n"], key_pos: Int[Tensor, " n"]) -> None:
    if len(query_pos) and not (key_pos.min() >= 0 and (key_pos <= query_pos).all() and query_pos.max() < length):
        msg = f"listed pairs must have 0 <= key position <= query position < {length}, the sequence's length"
        raise IndexError(msg)


def _scaled(query: Planes, temperature: float) -> Planes:
    return query.float() * (math.log2(math.e) / temperature)


def _in_fours(planes: Planes) -> Float[Tensor, "head pos padded 2"]:
    """Pairs filled up with zeros to a multiple of four."""
    missing = -planes.shape[2] % 4
    return (pad(planes.float(), (0, 0, 0, missing)) if missing else planes.float()).contiguous()


def _reversed_ranks(ranks: Int[Tensor, " distance"]) -> Int[Tensor, "distance 2"]:
    """What a pair at each distance adds to its bin, largest distance first: keys of one query lie in this order."""
    return torch.stack([torch.ones_like(ranks), ranks], dim=1).flip(0).contiguous()


def _counted(length: int, plan: EntryPlan, distances: int) -> Int[Tensor, " distance"]:
    """Pairs at each distance in one sequence."""
    distance = torch.arange(distances)
    counts = (length - plan.skip_keys - distance).clamp(min=0)
    return counts * ((distance >= plan.min_distance) & (distance <= plan.furthest))


def _shares(heads: int, whole: int, least: int) -> Iterator[Share]:
    """Head, first and last of each share of the work: enough for every thread, none too small."""
    threads = torch.get_num_threads()
    parts = 1 if threads == 1 else max(1, min(math.ceil(SHARES * threads / heads), whole // least))
    step = max(math.ceil(whole / parts / KEYS), 1) * KEYS
    for head in range(heads):
        for first in range(0, whole, step):
            yield head, first, min(first + step, whole)


def _on_threads(work: Callable[[Share], Shared], shares: Iterable[Share], threads: int) -> Iterator[Shared]:
    if threads == 1:
        yield from map(work, shares)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, shares)


def _place(tensor: Tensor) -> ctypes.c_void_p:
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())
