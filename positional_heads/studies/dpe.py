"""The two choices of DPE: the key pairs of each head, and the group size of each range of pairs.

See docs/equations.md, section 6.

Key pairs have the largest products of query and key norms. The group size of a range is the one with which the model
does a task best at the target length, while all other ranges have the largest power of two that divides the window and
is at most twice the factor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from positional_heads.bridge.capture import capture
from positional_heads.bridge.layer_vectors import LayerVectors
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.resolve import resolve_layers
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.bridge.rope_scaling.self_extend import Dpe
from positional_heads.studies.budget import Budget
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.tasks.evaluate import make_task


def dpe_key_pairs(
    model: TransformerLensModel, tokens: Int[Tensor, "batch pos"], keep: float = 0.75
) -> dict[int, Bool[Tensor, "head pair"]]:
    """The pairs of each head with the largest mean over positions of |q| |k| at the same position.

    Norms are taken after rotation, which does not change them.

    Args:
        model: A TransformerBridge.
        tokens: Token ids of some text.
        keep: Share of each head's pairs to return.

    Returns:
        Which pairs of each head are key pairs, by layer.

    Raises:
        ValueError: If the share is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        msg = f"keep {keep} must be above 0 and at most 1, e.g. 0.75"
        raise ValueError(msg)
    key_pairs: dict[int, Bool[Tensor, "head pair"]] = {}

    def visit(vectors: LayerVectors) -> None:
        weight = _norm_products(vectors)
        kept = max(1, round(keep * weight.shape[-1]))
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        key_pairs[vectors.rotary.layer] = chosen.scatter(-1, weight.topk(kept, dim=-1).indices, value=True).cpu()

    capture(model, tokens.to(model.cfg.device), list(resolve_layers(model).layers.values()), visit)
    return key_pairs


def dpe_sweep(
    model: TransformerLensModel,
    target_length: int,
    *,
    window: int | None = None,
    ranges: int = 8,
    groups: Sequence[int] | None = None,
    key_pairs: dict[int, Bool[Tensor, "head pair"]] | None = None,
    task: str = "passkey",
    progress: bool = False,
    budget: float | None = None,
    **task_settings: Any,
) -> Dpe:
    """Choose the group size of each range of pairs by how well the model does a task at the target length.

    Runs the task once for every range and group size, while the other ranges have one size.

    Args:
        model: A TransformerBridge.
        target_length: Length to extend the context to, in tokens.
        window: Distance in tokens beyond which keys are grouped; a quarter of the training length when None.
        ranges: Number of ranges that the pairs are split into, fastest first.
        groups: Group sizes to try; powers of two that divide the window, up to twice the factor, when None.
        key_pairs: Pairs of each head to change, see `dpe_key_pairs`; all when None.
        task: Name of the task.
        progress: Show a progress bar.
        budget: Minutes that the search may take; where they do not suffice, it has fewer and wider ranges, and the log
            says so before it starts. No limit when None.
        **task_settings: Settings of the task.

    Raises:
        ValueError: If the pairs cannot be split into that many ranges, a group size does not divide the window, or
            the budget is too small.
    """
    limit = None if budget is None else Budget(budget)
    rope = plain_rope(model, min(resolve_layers(model).layers))
    n_pairs = rope.rotary_dim // 2
    if not 1 <= ranges <= n_pairs or n_pairs % ranges:
        msg = f"{n_pairs} pairs cannot be split into {ranges} equal ranges"
        raise ValueError(msg)
    window = max(1, rope.training_length // 4) if window is None else window
    twice_the_factor = 2 * -(-target_length // rope.training_length)
    powers = [2**power for power in range(twice_the_factor.bit_length()) if window % 2**power == 0]
    sizes = powers if groups is None else list(groups)
    other_size = max(group for group in powers if group <= twice_the_factor)
    measured_task = make_task(model, task, length=target_length, beyond_context=True, **task_settings)

    def measure(pair_groups: tuple[int, ...]) -> float:
        with extended_rope(model, Dpe(pair_groups, window, key_pairs)):
            return float(measured_task.measure(model)[measured_task.measures[0]].mean())

    search, finished = _Search(ranges, tuple(sizes), other_size, n_pairs), FinishedParts({}, None)
    if limit is not None:
        search = _planned(limit, search, measure, finished, progress)
    run_parts(search.parts, measure, finished=finished, title="choosing group sizes", unit="choices", progress=progress)
    return Dpe(search.best(finished.results), window, key_pairs)


@dataclass(frozen=True)
class _Search:
    """Every group size in every range of pairs, while the other ranges have one size.

    Attributes:
        ranges: Number of equal ranges.
        sizes: Group sizes to try.
        other_size: Group size of the other ranges.
        n_pairs: Number of pairs.
    """

    ranges: int
    sizes: tuple[int, ...]
    other_size: int
    n_pairs: int

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Group sizes of the pairs to try, each once, by name."""
        tried = [self._groups(self._changed(at, size)) for at in range(self.ranges) for size in self.sizes]
        return {_name(groups): groups for groups in tried}

    def best(self, results: Mapping[str, float]) -> tuple[int, ...]:
        """The group size of each pair, by the best result in its range."""
        best = []
        for at in range(self.ranges):
            found = {size: results[_name(self._groups(self._changed(at, size)))] for size in self.sizes}
            best.append(max(found, key=found.__getitem__))
        return self._groups(best)

    def as_json(self) -> dict[str, Any]:
        """The search for a file."""
        return asdict(self)

    def left_out_of(self, asked: "_Search") -> list[str]:
        """How many ranges a larger search has, in words."""
        fewer = f"{asked.ranges - self.ranges} of {asked.ranges} ranges (the others are wider)"
        return [fewer] if self.ranges < asked.ranges else []

    def _changed(self, at: int, size: int) -> list[int]:
        return [size if one == at else self.other_size for one in range(self.ranges)]

    def _groups(self, by_range: Sequence[int]) -> tuple[int, ...]:
        return tuple(group for group in by_range for _ in range(self.n_pairs // self.ranges))


def _planned(
    limit: Budget,
    asked: _Search,
    measure: Callable[[tuple[int, ...]], float],
    finished: FinishedParts,
    progress: bool,
) -> _Search:
    """The search with the most ranges that fits, after one run that is needed anyway."""
    numbers = [number for number in range(asked.ranges, 0, -1) if asked.ranges % number == 0]
    plans = [replace(asked, ranges=number) for number in numbers if number > 1 or asked.ranges == 1]
    least = plans[-1].parts
    shared = _name((asked.other_size,) * asked.n_pairs)  # by every search that tries this size
    name = shared if shared in least else next(iter(least))
    run_parts({name: least[name]}, measure, finished=finished, title="timing", unit="choices", progress=progress)

    def seconds(search: _Search) -> float:
        return finished.seconds[name] * sum(one not in finished.results for one in search.parts)

    least_in_words = f"a search over {plans[-1].ranges} ranges"
    return limit.planned(
        plans,
        seconds,
        finished,
        taken=finished.seconds_of(asked.parts, finished.seconds[name]),
        left_out=lambda search: search.left_out_of(asked),
        least=least_in_words,
        progress=progress,
    ).plan


def _name(pair_groups: Sequence[int]) -> str:
    return " ".join(map(str, pair_groups))


def _norm_products(vectors: LayerVectors) -> Float[Tensor, "head pair"]:
    rotary = vectors.rotary
    query, key = (rotary.planes(x).norm(dim=-1) for x in (vectors.rot_q, vectors.rot_k))
    return (query * key).mean((0, 2))
