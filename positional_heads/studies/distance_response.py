"""Turn the dominant pairs of each head faster and slower, and measure how far its attention moves."""

from collections.abc import Callable, Sequence
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positional_heads.bridge.active_extension import active_extension
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel, heads_of_model
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rotary_layer import RotaryLayer
from positional_heads.bridge.sequences import Text, as_sequences, real_tokens
from positional_heads.core.arguments import NO_CHANGE, checked, in_range
from positional_heads.core.attention_sums import AttentionMass, query_blocks, visible_pattern
from positional_heads.core.heads import Heads
from positional_heads.core.plan import EntryPlan
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.scoring.batches import Row, batch_work, capture_batch, run_provenance, sized_batches
from positional_heads.scoring.distance_counter import MOST_GROUPS
from positional_heads.scoring.score import origin_of, score_heads
from positional_heads.scoring.settings import ScoringSettings
from positional_heads.scoring.turned_pairs import pair_dominance, turned_scores
from positional_heads.studies.resume import FinishedParts, run_parts

FACTORS = (0.5, 0.7, 1.4, 2.0)
SHARE = 4
"""One pair in so many is turned if no number is given."""
CHOOSING = "dominant pairs"


@checked
def distance_response(
    model: TransformerLensModel,
    tokens: Text,
    heads: Heads | None = None,
    *,
    factors: Sequence[float] = FACTORS,
    pairs: Sequence[int] | None = None,
    n: int | None = None,
    n_random: int = 5,
    sinks: int = 4,
    null_repeats: int = 0,
    batch_size: int | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> DistanceResponse:
    """Does moving a head's dominant dimension move the distance at which it attends? The causal check of the score.

    The frequencies of some pairs of a head are multiplied by each factor, as `manipulated_pairs` does with "scale" and
    shared="split", and the reach of its attention is measured: the mean distance without the first keys, over the
    queries of the second half of each sequence, which have room behind them. The response is the slope of the logarithm
    of the reach on that of the inverse factor, with the model's own frequencies as factor 1. It is 1 for a head that
    attends by the angle of these pairs alone, and 0 for one that does not use them. The control is the response to as
    many other pairs of the same head, drawn at random.

    Every head is turned alone: queries and keys of its layer are those of the model as it is, so one run of the model
    measures all heads, and what later layers would make of a turned head plays no part.

    Args:
        model: A TransformerBridge of a rotary model.
        tokens: As in `score_heads`, token ids without padding or texts.
        heads: Which heads; all of the layers that rotate when None.
        factors: Factors on the frequencies, positive and not 1, at least one.
        pairs: Numbers of the pairs to turn, the same for all heads; when None, the dominant pairs of each: those with
            the largest mean weight in the softmax over pairs that defines D.
        n: Number of dominant pairs; a quarter of all when None, and at most half.
        n_random: Sets of other pairs.
        sinks: First keys of each sequence that are left out.
        null_repeats: Shuffles for the null of the score, without which there is no excess to compare with.
        batch_size: As in `score_heads`.
        seed: Seed of the random sets and of the null.
        checkpoint: Folder to resume from: finished batches are saved there, and the same call resumes.
        progress: Show progress bars.

    Raises:
        ValueError: If input or settings make no sense, a layer does not rotate, or the checkpoint is of another run.
        RuntimeError: If the rotation of the model is extended or manipulated.
        UnsupportedModelError: If the model is not rotary, or its scores cannot be reproduced.
    """
    values = _checked_factors(factors)
    in_range("n", n, 1)
    in_range("n_random", n_random, 1, 1000)
    in_range("sinks", sinks, 0, 2**20)
    in_range("seed", seed, 0)
    ScoringSettings(null_repeats=null_repeats, seed=seed)  # refuses before the long part what the score would refuse
    if active_extension(model) is not None:
        msg = "the model's rotation is extended or manipulated: leave that block, pairs are turned from the model's own"
        raise RuntimeError(msg)
    resolved = resolve_layers(model)
    chosen = None if heads is None else heads_of_model(model, heads)
    if chosen == []:
        msg = "no head given: name at least one, or None for all of the layers that rotate"
        raise ValueError(msg)
    rotary = resolved.select(None if chosen is None else sorted({head.layer for head in chosen}))
    sizes = {one.layer: _number_of_pairs(one, pairs, n) for one in rotary}
    rows = [real_tokens(*row) for row in as_sequences(model, tokens)]
    data = sized_batches(model, rows, None, batch_size)
    shortest = min(length for batch in data for length in batch.lengths)
    if shortest // 2 <= sinks:
        msg = f"the shortest sequence has {shortest} tokens: its second half must begin after the {sinks} sinks"
        raise ValueError(msg)
    listed = None if pairs is None else [int(pair) for pair in pairs]
    settings = {"factors": values, "pairs": listed, "n": n, "n_random": n_random, "sinks": sinks, "seed": seed}
    settings["layers"] = [one.layer for one in rotary]
    provenance = run_provenance(model, data, settings)
    identity = {key: provenance[key] for key in ("model", "data", "settings")}
    finished = FinishedParts(identity, checkpoint)
    work = _Turns(model, data, rotary, values, sinks, seed)
    names = {f"batch {number}": number for number in range(len(data))}
    costs = {number: one.cost for number, one in batch_work(model, data).items()}

    def each(parts: dict[str, int], run: Callable[[int], Any], title: str) -> list[Any]:
        return run_parts(
            parts,
            run,
            finished=finished,
            title=title,
            unit="batches",
            progress=progress,
            cost=lambda number: costs[number],
        )

    if listed is None:
        choosing = {f"{CHOOSING} {name}": number for name, number in names.items()}
        weights = each(choosing, work.dominance, "choosing pairs")
        total = {layer: sum(torch.tensor(one[str(layer)]) for one in weights) for layer in sizes}
        own = {layer: _largest(total[layer], size) for layer, size in sizes.items()}
    else:
        own = {one.layer: torch.tensor(listed).expand(one.n_heads, -1) for one in rotary}
    work.sets = {layer: work.with_others(layer, one, n_random) for layer, one in own.items()}
    counted = each(names, work.count, "turning pairs")
    scores = score_heads(
        model,
        rows,
        layers=[one.layer for one in rotary],
        batch_size=batch_size,
        progress=progress,
        null_repeats=null_repeats,
        seed=seed,
    )
    provenance["data"] |= {"groups": work.groups, **origin_of(tokens)}
    shape = int(model.cfg.n_layers), int(model.cfg.n_heads)
    tried = torch.ones(shape, dtype=torch.bool)
    if chosen is not None:
        tried[:] = False
        tried[tuple(torch.tensor([head[axis] for head in chosen]) for axis in (0, 1))] = True
    return work.result(counted, shape, tried, scores=scores, provenance=provenance)


class _Turns:
    """The batches of one run, and what is measured on each.

    Attributes:
        groups: Groups of sequences that count as independent.
        sets: For each layer the pairs of each set and head, [set head chosen].
    """

    def __init__(
        self, model: Any, data: list[Any], rotary: list[RotaryLayer], factors: list[float], sinks: int, seed: int
    ) -> None:
        self._model, self._data, self._rotary, self._sinks, self._seed = model, data, rotary, sinks, seed
        self.factors = sorted([*factors, 1.0])
        lengths = tuple(length for batch in data for length in batch.lengths)
        self.groups = min(len(lengths), MOST_GROUPS)
        self._plan = EntryPlan(lengths, None, n_groups=self.groups)
        self.sets: dict[int, Tensor] = {}

    def dominance(self, number: int) -> dict[str, list[list[float]]]:
        """Sum over the sequences of a batch of the weight of each pair, by layer."""
        found: dict[str, list[list[float]]] = {}

        def visit(vectors: LayerVectors, rows: list[Row]) -> None:
            total = torch.stack([pair_dominance(vectors, row) for row in rows]).sum(0)
            found[str(vectors.rotary.layer)] = total.tolist()

        capture_batch(self._model, self._data[number], self._rotary, visit)
        return found

    def with_others(self, layer: int, own: Tensor, n_random: int) -> Tensor:
        """The pairs of each head, then sets of as many others, drawn at random for each head; [set head chosen]."""
        n_pairs = next(one.n_pairs for one in self._rotary if one.layer == layer)
        rng = np.random.default_rng([self._seed, layer])
        sets = [own]
        for _ in range(n_random):
            others = [sorted({*range(n_pairs)} - {*pairs}) for pairs in own.tolist()]
            drawn = [sorted(rng.choice(left, own.shape[1], replace=False).tolist()) for left in others]
            sets.append(torch.tensor(drawn))
        return torch.stack(sets)

    def count(self, number: int) -> dict[str, list[Any]]:
        """Sum of attention times distance, and of attention, of each sequence of a batch, by layer.

        Returns:
            For each layer [row part set factor head].
        """
        found: dict[str, list[Any]] = {}

        def visit(vectors: LayerVectors, rows: list[Row]) -> None:
            found[str(vectors.rotary.layer)] = [self._row(vectors, row) for row in rows]

        capture_batch(self._model, self._data[number], self._rotary, visit)
        return found

    def _row(self, vectors: LayerVectors, row: Row) -> list[Any]:
        heads, sets = vectors.rotary.n_heads, self.sets[vectors.rotary.layer]
        plain = self._reach(vectors, row, torch.ones(heads, vectors.rotary.n_pairs))
        sums = []
        for chosen in sets:
            for factor in self.factors:
                if factor == 1:
                    sums.append(plain)
                    continue
                by_pair = torch.ones(heads, vectors.rotary.n_pairs).scatter_(1, chosen, factor)
                sums.append(self._reach(vectors, row, by_pair))
        shape = len(sets), len(self.factors), 2, heads
        return torch.stack(sums).view(shape).permute(2, 0, 1, 3).tolist()

    def _reach(self, vectors: LayerVectors, row: Row, by_pair: Tensor) -> Tensor:
        """Sum of attention times distance, and of attention, over the queries of the second half, [part head]."""
        heads, length = vectors.rotary.n_heads, row.length
        mass, scores = AttentionMass(heads, length, self._sinks), turned_scores(vectors, row, by_pair)
        for start, stop in query_blocks(heads, length, vectors.rot_q.device):
            first = max(start, length // 2)
            if first < stop:
                mass.add(visible_pattern(scores(first, stop), first, stop, vectors.window), first, stop)
        return torch.stack([mass.free @ torch.arange(length).double(), mass.free.sum(-1)])

    def result(
        self, counted: list[dict[str, Any]], shape: tuple[int, int], tried: Tensor, **known: Any
    ) -> DistanceResponse:
        """The record of every batch's sums."""
        n_sets, layers = len(next(iter(self.sets.values()))), sorted(self.sets)
        sums = torch.zeros(2, n_sets, len(self.factors), self.groups, *shape, dtype=torch.float64)
        sums[..., [layer for layer in range(shape[0]) if layer not in layers], :] = torch.nan
        for batch, found in zip(self._data, counted, strict=True):
            for layer in layers:
                for row, values in enumerate(found[str(layer)]):
                    group = self._plan.group(batch.first + row)
                    sums[:, :, :, group, layer] += torch.tensor(values, dtype=torch.float64)
        sums[..., ~tried] = torch.nan
        most = max(chosen.shape[-1] for chosen in self.sets.values())
        pairs = torch.full((n_sets, *shape, most), -1)
        for layer, chosen in self.sets.items():
            pairs[:, layer, :, : chosen.shape[-1]] = chosen
        return DistanceResponse(
            sums=sums[0], weights=sums[1], factors=torch.tensor(self.factors).double(), pairs=pairs, **known
        )


def _largest(weights: Any, size: int) -> Tensor:
    """The pairs of each head with the largest weights, ascending."""
    return weights.topk(size, dim=-1).indices.sort(-1).values


def _checked_factors(factors: Sequence[float]) -> list[float]:
    """The factors as numbers.

    Raises:
        ValueError: If there is none, or one is not positive, or 1, or given twice.
    """
    values = [float(factor) for factor in factors]
    senseless = any(not 0 < value < 2**20 or isclose(value, 1, rel_tol=NO_CHANGE) for value in values)
    if not values or senseless or len({*values}) < len(values):
        msg = f"factors {values} must be positive, different, and not 1, e.g. (0.5, 0.7, 1.4, 2.0)"
        raise ValueError(msg)
    return values


def _number_of_pairs(rotary: RotaryLayer, pairs: Sequence[int] | None, n: int | None) -> int:
    """How many pairs of a layer are turned.

    Raises:
        ValueError: If the layer has no such pairs, or there are not as many others to draw.
    """
    have = rotary.n_pairs
    if pairs is not None:
        if n is not None:
            msg = f"n {n} is the number of dominant pairs: leave it out where pairs are given by number"
            raise ValueError(msg)
        if not len(pairs) or len({*pairs}) < len(pairs) or any(not 0 <= int(pair) < have for pair in pairs):
            msg = f"pairs {[*pairs]} must be different numbers of 0 to {have - 1}, the pairs of layer {rotary.layer}"
            raise ValueError(msg)
    size = (n or max(1, have // SHARE)) if pairs is None else len(pairs)
    if 2 * size > have:
        msg = f"{size} of {have} pairs of layer {rotary.layer} leave fewer others to compare with: at most {have // 2}"
        raise ValueError(msg)
    return size
