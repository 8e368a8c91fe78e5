"""What a scoring run will cost, in time and memory, before anything is run: from sizes and speeds alone.

    seconds = forward passes + own entries + null + everything else

The first three are amounts of work (FLOP, and terms: query x key x rotary pair) over speeds of the machine; the rest
grows with heads, layers, sequences and drawn entries. `FITTED` has what the speeds do not say, fitted to runs of small
models on a CPU; docs/scaling.md has the error of this on models that it was not fitted to.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from positional_heads.bridge.model_size import ModelSize
from positional_heads.core.arguments import in_range
from positional_heads.core.binning import CELLS
from positional_heads.core.kernels.sums import COARSE_BINS
from positional_heads.core.plan import REPLICATES
from positional_heads.core.shuffles import HALVES
from positional_heads.scoring.batches import fitting_rows
from positional_heads.scoring.counter import BATCHES_PER_PILOT, PILOT_BATCHES
from positional_heads.scoring.layer_counter import PILOT_ENTRIES
from positional_heads.scoring.machine import Machine
from positional_heads.scoring.settings import MOST_GROUPS, ScoringSettings


@dataclass(frozen=True)
class Overhead:
    """What a run costs beside its work at the machine's speeds.

    Attributes:
        forward: Time of the model's run over that of its FLOP.
        own: Time of counting own entries over that of its terms.
        null: The same for the null.
        head: Seconds of each head of a run: its bins, its share of the proofs, its result.
        visit: Seconds of each layer and sequence.
        sampled: Seconds of each entry that is drawn, for all layers together.
    """

    forward: float = 1.0
    own: float = 1.0
    null: float = 1.0
    head: float = 0.0
    visit: float = 0.0
    sampled: float = 0.0


PLANES, NULL_PLANES = 5, 3
"""Copies of rotated queries, or keys of every query head, while a layer is counted, and more of them for a null."""
TABLES = 4
"""Bytes of the look-up tables in each of their cells: of the eager and the native kernel."""
SPARE = 48 * 2**20
"""Bytes beside these: modules, temporary tensors, and memory that the allocator has not given back."""
FITTED = Overhead(forward=0.9, own=0.9, null=0.9, head=0.00575, visit=0.0095, sampled=0.0)
"""On one core: `python -m benchmarks.estimate --fit` measures these again."""


@dataclass(frozen=True)
class Work:
    """Amounts of work of a run, or of one shard of it.

    Attributes:
        linear: FLOP of matrix products of all layers; the unembedding is not computed.
        attention: FLOP of attention.
        heads: Scored heads, with a control twice.
        visits: Layers times sequences that are run.
        every: Terms where all entries of a sequence count.
        listed: Terms of sampled entries, and those that place the bins.
        null_every: Terms of nulls where all entries count.
        shuffled: Terms of sampled nulls.
        sampled: Entries drawn, own and of nulls.
    """

    linear: float
    attention: float
    heads: float
    visits: float
    every: float = 0.0
    listed: float = 0.0
    null_every: float = 0.0
    shuffled: float = 0.0
    sampled: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run will cost one process.

    Attributes:
        forward: Seconds of the model's own runs.
        own: Seconds of counting entries at their own positions.
        null: Seconds of counting shuffles.
        rest: Seconds of everything else.
        weights: Bytes of the model.
        run: Bytes of activations, rotated queries and keys, copies of them, and temporary tensors, at the peak.
        sums: Bytes of the sums, which are also those of a shard's file.
        tables: Bytes of look-up tables.
    """

    forward: float
    own: float
    null: float
    rest: float
    weights: float
    run: float
    sums: float
    tables: float

    @property
    def seconds(self) -> float:
        """Time of the whole run."""
        return self.forward + self.own + self.null + self.rest

    @property
    def bytes(self) -> float:
        """Memory at the peak."""
        return self.weights + self.run + self.sums + self.tables


def estimated(
    size: ModelSize,
    lengths: Sequence[int],
    settings: ScoringSettings,
    machine: Machine,
    *,
    shards: int = 1,
    batch_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    overhead: Overhead | None = None,
) -> Estimate:
    """Time and memory of one process that scores a text, or one shard of it.

    Args:
        size: The model's size.
        lengths: Tokens of each sequence.
        settings: Settings of the score.
        machine: Its speeds.
        shards: Into how many shards the run is divided.
        batch_size: Sequences per forward pass; chosen by length when None.
        dtype: Precision of the model.
        overhead: What the speeds do not say; when None, as fitted here, and for a machine that was not measured, its
            speeds as they are.

    Raises:
        ValueError: If there is no sequence, or a number is not positive.
    """
    in_range("shards", shards, 1)
    settings = settings.by_length(max(lengths))
    rows = min(batch_size or fitting_rows(size.heads, max(lengths)), len(lengths))
    work = counted_work(size, lengths, settings, shards, rows)
    if overhead is None:
        overhead = FITTED if machine.measured else replace(FITTED, forward=1.0, own=1.0, null=1.0)
    return Estimate(
        forward=overhead.forward * (work.linear / machine.linear + work.attention / machine.attention),
        own=overhead.own * (work.every / machine.every + work.listed / machine.listed),
        null=overhead.null * (work.null_every / machine.every + work.shuffled / machine.shuffled),
        rest=overhead.head * work.heads + overhead.visit * work.visits + overhead.sampled * work.sampled,
        weights=float(size.parameters * dtype.itemsize),
        run=run_bytes(size, rows * max(lengths), settings, dtype) + SPARE,
        sums=float(sums_bytes(size, lengths, settings)),
        tables=work.heads * TABLES * CELLS,
    )


def counted_work(
    size: ModelSize, lengths: Sequence[int], settings: ScoringSettings, shards: int = 1, rows: int = 1
) -> Work:
    """The work of one shard: its share of the sequences, and the whole pilot, which places the bins.

    Args:
        size: The model's size.
        lengths: Tokens of each sequence.
        settings: Settings of the score.
        shards: Into how many shards the run is divided.
        rows: Sequences per forward pass.
    """
    counted: dict[str, float] = defaultdict(float)
    for chosen, (window, layers) in product(settings.scored, Counter(size.windows).items()):
        plan = chosen.plan(tuple(lengths), window)
        shuffles = chosen.shuffle_plan(plan)
        entries = float(plan.all_entry_counts.sum())
        own = entries if plan.step is None else entries * REPLICATES / plan.step
        null = settings.null_repeats * (entries if shuffles.step is None else entries / shuffles.step)
        terms = layers * size.heads * size.pairs / shards
        counted["every" if plan.step is None else "listed"] += terms * own
        counted["null_every" if shuffles.step is None else "shuffled"] += terms * null
        counted["sampled"] += ((plan.step is not None) * own + (shuffles.step is not None) * null) / shards
    sequences = len(lengths) / shards + _pilot_rows(lengths, shards, rows)
    heads = len(settings.scored) * size.head_count
    placing = min(PILOT_ENTRIES, rows * max(lengths) ** 2 // 2) * heads * size.pairs
    share = sequences / len(lengths)
    return Work(
        linear=share * 2.0 * size.used * sum(lengths),
        attention=share * _attention_flop(size, lengths),
        heads=float(heads),
        visits=size.layers * sequences,
        **counted | {"listed": counted["listed"] + placing},
    )


def _pilot_rows(lengths: Sequence[int], shards: int, rows: int) -> float:
    """Sequences that are run only to place the bins; the longest batch is counted as well, by one of the shards."""
    batches, entries = math.ceil(len(lengths) / rows), rows * max(lengths) * (max(lengths) + 1) // 2
    others = max(batches // BATCHES_PER_PILOT, math.ceil(PILOT_ENTRIES / entries) - 1)
    return rows * (min(PILOT_BATCHES - 1, others, batches - 1) + (shards > 1) * (1 - 1 / shards))


def _attention_flop(size: ModelSize, lengths: Sequence[int]) -> float:
    """FLOP of q . k and of the weighted sum of values: below the diagonal, or everywhere where a window is a mask."""
    causal = sum(length * (length + 1) / 2 for length in lengths)
    masked = sum(float(length) ** 2 for length in lengths)
    windowed = sum(window is not None and window < max(lengths) for window in size.windows)
    return 4.0 * size.heads * size.d_head * ((size.layers - windowed) * causal + windowed * masked)


def sums_bytes(size: ModelSize, lengths: Sequence[int], settings: ScoringSettings) -> int:
    """Bytes of the sums: of a shard's file, a checkpoint and a Ray worker's message, but for a header of kilobytes."""
    return sum(_sums_bytes(size, lengths, one) for one in settings.scored)


def _sums_bytes(size: ModelSize, lengths: Sequence[int], settings: ScoringSettings) -> int:
    """The bytes of one score, without its control."""
    heads, bins, distances, repeats = size.heads, settings.bins, max(lengths), settings.null_repeats
    plan = settings.plan(tuple(lengths), None)
    replicates, halves = (
        0 if step is None else n for step, n in ((plan.step, REPLICATES), (settings.shuffle_plan(plan).step, HALVES))
    )
    coarse = 2 * heads * COARSE_BINS
    own = heads * (2 * bins + distances + 1) + distances + coarse * (min(len(lengths), MOST_GROUPS) + replicates)
    null = repeats * (heads * (2 * bins + distances) + distances + coarse * halves)
    edges = settings.dtype.itemsize * heads * (bins - 1)
    return size.layers * (8 * (own + null + heads + size.pairs) + edges)


def run_bytes(size: ModelSize, tokens: int, settings: ScoringSettings, dtype: torch.dtype) -> float:
    """Bytes at the peak of a layer: its feed-forward part, or its queries and keys while they are counted.

    Args:
        size: The model's size.
        tokens: Tokens of a batch.
        settings: Settings of the score.
        dtype: Precision of the model.
    """
    feeding = dtype.itemsize * (3 * size.d_model + 3 * size.d_mlp)
    reading = dtype.itemsize * (2 * size.d_model + (2 * size.heads + 2 * size.kv_heads) * size.d_head)
    planes = 2 * settings.dtype.itemsize * size.heads * size.pairs
    counting = planes * (PLANES + (NULL_PLANES if settings.null_repeats else 0))
    return float(tokens * max(feeding, reading + counting))
