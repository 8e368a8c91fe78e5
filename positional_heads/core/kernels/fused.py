"""The fastest kernel on a GPU, in Triton: one loop from planes to sums, in which D is never stored.

The host waits for the device once per call, at its end, to see whether D was finite. The kernel is compared with the
eager one before its first use in a process.
"""

import functools
import math
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Int, Int32
from torch import Tensor
from torch.nn.functional import pad

from positional_heads.core.binning import BinLookup, equal_mass_edges, refuse_heads
from positional_heads.core.kernels.building import BuildError
from positional_heads.core.kernels.eager import EagerKernel
from positional_heads.core.kernels.fused_block import BLOCK, INTERPRETED, LISTED, MOST_KEYS, QUERIES, add_entries
from positional_heads.core.kernels.sums import DIMENSION_SCALE, EntrySums, refuse_misfits
from positional_heads.core.kernels.tiled import Tile
from positional_heads.core.kernels.tiles import out_of_memory
from positional_heads.core.plan import EntryPlan, Positions
from positional_heads.core.rotary import Planes

SCRATCH = 2**27
"""Bytes of the rows of bins of a launch, at most, unless one row per head is more."""
MOST = 100.0
"""Contributions, as powers of two, up to which weights are added up as they are: any number of them fits in a float."""
ROUNDED = 1e-4
"""D of the two kernels may differ by this much in the comparison, ten times what they do."""
FEW = 2
"""Entries whose largest share of the softmax may be so near `tiled.SATURATED` that rounding decides."""


class FusedKernel(EagerKernel):
    """One loop on the GPU, for float32 planes; shuffles' runs are listed, and few D are left to the eager kernel."""

    name = "triton"

    def __init__(self, tile_mb: float | None = None, *, check: bool = True) -> None:
        """Set the size of tiles, and compare the kernel with the eager one, once per process.

        Args:
            tile_mb: In MiB; see `tiles.Tiles`.
            check: Whether to compare.

        Raises:
            BuildError: If there is no GPU, or the kernel cannot be compiled, or is wrong.
        """
        super().__init__(tile_mb)
        if check:
            problem = _problem() if INTERPRETED or torch.cuda.is_available() else "there is no CUDA or ROCm GPU"
            if problem:
                msg = f"the triton kernel cannot be used: {problem}"
                raise BuildError(msg)

    def every_entry(
        self, query: Planes, key: Planes, plan: EntryPlan, temperature: float, bins: BinLookup, ranks: Int[Tensor, " _"]
    ) -> EntrySums:
        """Sums over all entries of the sequence that the plan counts; see `sums.Kernel`."""
        refuse_misfits(query, key, bins, len(ranks))
        length, device = query.shape[1], query.device
        # positions innermost, as threads read them together, and padded to whole blocks
        planes = [
            rearrange(pad(side.float(), (0, 0, 0, 0, 0, -length % BLOCK[1])), "head pos pair two -> head pair two pos")
            .contiguous()
            .permute(0, 3, 1, 2)
            for side in (query * (math.log2(math.e) / temperature), key)
        ]
        places, distance_counts = _blocks(length, plan).to(device), plan.entries_at(length).to(device)
        limits = plan.min_distance, plan.furthest, plan.skip_keys

        def work(tile: Tile) -> EntrySums:
            return _summed(planes, length, places, limits, bins=bins, ranks=ranks, tile=tile)

        return replace(self._tiles.run(work, device, len(query)), distance_counts=distance_counts)

    def listed_entries(
        self,
        query: Planes,
        key: Planes,
        positions: Positions,
        temperature: float,
        bins: BinLookup,
        ranks: Int[Tensor, " _"],
    ) -> EntrySums:
        """Sums over the entries at these query and key positions; see `sums.Kernel`.

        Raises:
            IndexError: If a position is not in the sequence, or a key comes after its query.
        """
        refuse_misfits(query, key, bins, len(ranks))
        length, (query_pos, key_pos) = query.shape[1], (part.contiguous() for part in positions)
        planes = [side.float().contiguous() for side in (query * (math.log2(math.e) / temperature), key)]
        first = torch.arange(0, len(query_pos), LISTED, dtype=torch.int32, device=query.device)
        places = torch.stack([first, first, (first + LISTED).clamp(max=len(query_pos))], dim=1)

        def work(tile: Tile) -> EntrySums:
            listed = query_pos, key_pos
            return _summed(planes, length, places, (0, length, 0), listed, bins=bins, ranks=ranks, tile=tile)

        sums = self._tiles.run(work, query.device, len(query))
        sums.distance_counts.index_add_(0, query_pos - key_pos, torch.ones_like(query_pos))
        return sums


def _blocks(length: int, plan: EntryPlan) -> Int32[Tensor, "program 3"]:
    """First query, first key and end of keys of every program, so that each entry that counts is in one."""
    query = torch.arange(0, length, QUERIES)
    end = (query + QUERIES).clamp(max=length) - plan.min_distance
    first = (query - plan.furthest).clamp(min=plan.skip_keys) // BLOCK[1] * BLOCK[1]
    programs = (-((first - end) // MOST_KEYS)).clamp(min=0)
    block = torch.repeat_interleave(programs)
    start = first[block] + MOST_KEYS * (torch.arange(len(block)) - (programs.cumsum(0) - programs)[block])
    return torch.stack([query[block], start, (start + MOST_KEYS).minimum(end[block])], dim=1).int()


def _summed(
    planes: list[Planes],
    length: int,
    places: Int32[Tensor, "program 3"],
    limits: tuple[int, int, int],
    listed: Positions | tuple[None, None] = (None, None),
    *,
    bins: BinLookup,
    ranks: Int[Tensor, " distance"],
    tile: Tile,
) -> EntrySums:
    """The sums of all programs; the number of entries at each distance is left to the caller.

    Raises:
        IndexError: If a listed entry is not in the sequence.
        ValueError: If D is not finite.
    """
    (query, key), device = planes, ranks.device
    heads, _, n_pairs, _ = query.shape
    n_bins = bins.edges.shape[1] + 1
    sums = torch.zeros(2, heads, n_bins, dtype=torch.long, device=device)
    dimension_sums = torch.zeros(heads, len(ranks), dtype=torch.long, device=device)
    found = torch.zeros(heads, 3, dtype=torch.long, device=device)
    longest = [side.square().sum(-1).amax(1) for side in planes]
    bounded = (longest[0] * longest[1] <= MOST**2).all(1).int()  # by Cauchy-Schwarz; not where one is NaN
    looked_up = bins.low.contiguous(), bins.scale.contiguous(), bins.starts.view(torch.int16), bins.edges
    most = max(1, min(SCRATCH, 4 * tile.terms) // (8 * heads * n_bins))
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        for part in torch.split(places, most) if len(places) else ():
            rows = torch.zeros(heads, len(part), n_bins, dtype=torch.long, device=device)
            given = query, key, *query.stride(), length, n_pairs, part, *listed, *limits, *looked_up, n_bins - 1
            add_entries[len(part), heads](
                *given, bins.halvings, ranks, len(ranks), bounded, rows, dimension_sums, found,
                num_warps=1, enable_fp_fusion=True,
            )  # fmt: skip
            sums += torch.stack([(rows & (2**16 - 1)).sum(1), (rows >> 16).sum(1)])
    saturated, not_finite, outside = found.unbind(1)
    refused = torch.stack([not_finite, outside]).tolist()
    if any(refused[1]):
        msg = f"listed entries must have 0 <= key position <= query position < {length}, the sequence's length"
        raise IndexError(msg)
    refuse_heads([head for head, number in enumerate(refused[0]) if number])
    entries, rank_sums = sums.unbind(0)
    return EntrySums(entries, rank_sums, torch.zeros_like(ranks), dimension_sums, saturated.contiguous())


@functools.cache
def _problem() -> str | None:
    """What is wrong with the kernel on this machine, by a small case; None if nothing is."""
    device = torch.device("cpu" if INTERPRETED else "cuda")
    generator = torch.Generator().manual_seed(0)
    plan = EntryPlan((70,), window=60, skip_keys=1, min_distance=2)
    query_pos, key_pos = (part.to(device) for part in plan.entry_positions(0)[0])
    ranks, kernels = plan.rank_grid.to(device), (EagerKernel(), FusedKernel(check=False))
    for size in (0.5, 9.0):  # with contributions that are bounded, and not
        query, key = (size * torch.randn(2, 70, 6, 2, generator=generator).to(device) for _ in range(2))
        dominant = kernels[0].listed_dominant(query, key, (query_pos, key_pos), 2.0)
        bins = BinLookup(equal_mass_edges(dominant, 64))
        by_edge = ((dominant[:, :, None] - bins.edges[:, None]).abs() < ROUNDED).sum(1)
        try:
            expected, found = (
                (
                    kernel.every_entry(query, key, plan, 2.0, bins, ranks),
                    kernel.listed_entries(query, key, (query_pos, key_pos), 2.0, bins, ranks),
                )
                for kernel in kernels
            )
        except Exception as error:  # compilers raise anything, and the other kernels always work
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            return f"{type(error).__name__}: {' '.join(str(error).strip().splitlines()[:2])}"
        if not all(_alike(*both, by_edge, ranks) for both in zip(expected, found, strict=True)):
            return "its sums differ from the eager kernel's"
    return None


def _alike(
    expected: EntrySums, found: EntrySums, by_edge: Int[Tensor, "head edge"], ranks: Int[Tensor, " distance"]
) -> bool:
    """Whether sums differ by rounding at most: by entries next to an edge, and in the last bits of D."""
    moved, moved_ranks = (
        (getattr(found, part).cumsum(1) - getattr(expected, part).cumsum(1)).abs() for part in ("entries", "rank_sums")
    )
    allowed = pad(by_edge, (0, 1))
    apart = (found.dimension_sums - expected.dimension_sums).abs()
    return (
        torch.equal(found.distance_counts, expected.distance_counts)
        and bool((moved <= allowed).all())
        and bool((moved_ranks <= allowed * ranks.max()).all())
        and bool((apart <= ROUNDED * DIMENSION_SCALE * expected.distance_counts).all())
        and bool(((found.saturated - expected.saturated).abs() <= FEW).all())
    )
