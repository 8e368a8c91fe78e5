"""What is a task? Sequences whose answers are known, each measured far from what it depends on, and near it.

Conventions: an answer is a span of the sequence itself, first and one past the last token, and is predicted from
everything before it. Every measure is better when higher. Examples of one `unit` share their content, so that units are
what is independent, not examples.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from positional_heads.bridge.positions import numbered_rows
from positional_heads.bridge.prefill import prefilled_logits
from positional_heads.bridge.run_lengths import fresh_runs
from positional_heads.core.arguments import checked, in_range

Reach = Literal["long", "short"]
LOGITS_PER_BATCH = 2**26
"""Logits held at once where no batch size is given: 256 MiB of float32."""
SCORES_PER_BATCH = {"cpu": 2**21}
"""Attention scores per layer held at once: what still fits a processor's cache; elsewhere `LOGITS_PER_BATCH`."""


@dataclass(frozen=True)
class Example:
    """One sequence through the model, with the answers to measure in it.

    Attributes:
        tokens: The whole sequence, answers included.
        answers: Span of each answer.
        unit: Number of the independent unit it belongs to.
        reach: Whether the answers depend on tokens far away, or, as a control, on tokens nearby.
        depth: Where in the context the tokens lie that the answer depends on: 0 its start, 1 its end.
        needle: Span of the tokens in the context that the answer repeats.
    """

    tokens: Int[Tensor, " pos"]
    answers: tuple[tuple[int, int], ...]
    unit: int
    reach: Reach = "long"
    depth: float | None = None
    needle: tuple[int, int] | None = None

    def __repr__(self) -> str:
        spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.answers[:3])
        more = f" and {len(self.answers) - 3} more" if len(self.answers) > 3 else ""  # noqa: PLR2004
        where = f"{self.reach} range" + ("" if self.depth is None else f", depth {self.depth:g}")
        return f"Example({len(self.tokens)} tokens, answers at {spans}{more}, unit {self.unit}, {where})"

    @property
    def distance(self) -> int | None:
        """From the first answer back to what it repeats, in tokens."""
        return None if self.needle is None else self.answers[0][0] - self.needle[0]


@runtime_checkable
class Task(Protocol):
    """Anything that can be measured again and again on the same examples, heads ablated or not."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything needed to make it again, for provenance; must be JSON."""
        ...

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per measured answer: unit, reach, and whatever else is known (length, depth, distance, ...)."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is measured, the most sensitive first; higher is better."""
        ...

    @property
    def chance(self) -> Mapping[str, float]:
        """What each measure is for a model that knows nothing of the context, where that is known."""
        ...

    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:
        """Every measure of every row, in the order of `rows`."""
        ...


@dataclass(frozen=True)
class AnswerTask:
    """A task whose answers are tokens: measured in one forward pass, by exact match and by log-probability.

    Exact match is whether greedy decoding would give every token of the answer; that is read off the same pass, because
    greedy decoding reaches an answer's n-th token only behind its first n - 1. `log_prob` is the mean over the answer's
    tokens, in nats per token.

    Attributes:
        name: What it is called in results.
        examples: The sequences to measure.
        held_out: More of the same kind with other content: reference for `mean` and `resample`, and what retrieval
            scores are found on.
        chance: What a guess gives, per measure.
        settings: Everything needed to make it again.
    """

    name: str
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    chance: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    measures: tuple[str, ...] = ("log_prob", "exact")

    def __repr__(self) -> str:
        longest = max((len(example.tokens) for example in self.examples), default=0)
        settings = reprlib.repr(self.settings)  # cuts what is long
        return f"AnswerTask({self.name!r}: {len(self.examples)} examples of up to {longest} tokens, {settings})"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per answer, in the order of `measure`."""
        return [
            {
                "example": index,
                "unit": example.unit,
                "reach": example.reach,
                "length": len(example.tokens),
                "depth": example.depth,
                "distance": example.distance,
                "position": start,
                "answer_tokens": stop - start,
            }
            for index, example in enumerate(self.examples)
            for start, stop in example.answers
        ]

    @checked
    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:
        """Log-probability and exact match of every answer.

        Args:
            model: A TransformerBridge, as it is inside the block that ablates.
            batch_size: Sequences per forward pass; chosen by length when None.
        """
        in_range("batch_size", batch_size, 1)
        found: dict[int, list[tuple[float, float]]] = {}
        for batch in _batched(self.examples, model, batch_size):
            tokens = torch.stack([self.examples[index].tokens for index in batch]).to(model.cfg.device)
            with torch.inference_mode(), numbered_rows(model, batch):
                logits = prefilled_logits(model, tokens)
                for row, index in enumerate(batch):
                    spans = self.examples[index].answers
                    found[index] = [_judged(logits[row], tokens[row], *span) for span in spans]
        flat = torch.tensor([pair for index in sorted(found) for pair in found[index]], dtype=torch.float64)
        _refuse_not_finite(self.name, flat)
        return {"log_prob": flat[:, 0].contiguous(), "exact": flat[:, 1].contiguous()}


@dataclass(frozen=True)
class FunctionTask:
    """A user's own function from the model to one number per example, higher being better.

    Attributes:
        function: Called with the model, heads ablated or not; must treat the same examples in the same order each time.
        name: What it is called in results.
        reach: Whether it needs long range.
    """

    function: Callable[[Any], Sequence[float] | Float[Tensor, " example"]]
    name: str
    examples: int
    reach: Reach = "long"
    settings: dict[str, Any] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    measures: tuple[str, ...] = ("score",)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per example, each a unit of its own."""
        return [{"example": index, "unit": index, "reach": self.reach} for index in range(self.examples)]

    def measure(self, model: Any, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """What the function returns.

        Raises:
            ValueError: If it returns another number of scores than before, or one that is not finite.
        """
        with fresh_runs(model):
            scores = _numbers(self.name, self.function(model))
        if len(scores) != self.examples:
            msg = f"{self.name} returned {len(scores)} scores, {self.examples} the first time: it must not vary"
            raise ValueError(msg)
        _refuse_not_finite(self.name, scores)
        return {"score": scores}


def function_task(model: Any, function: Callable[[Any], Any], name: str | None = None) -> FunctionTask:
    """A task from a function of the model; it is called once to see how many scores it returns.

    Raises:
        ValueError: If that is none.
        TypeError: If they are no numbers.
    """
    name = name or str(getattr(function, "__name__", "function"))
    scores = _numbers(name, function(model))
    if len(scores) == 0:
        msg = f"{name} returned no score: return one number per example, higher being better"
        raise ValueError(msg)
    return FunctionTask(function, name, len(scores))


def _numbers(name: str, returned: Any) -> Float64[Tensor, " example"]:
    try:
        return torch.as_tensor(returned, dtype=torch.float64).flatten().detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name} must return one number per example, higher being better; it returned {reprlib.repr(returned)}"
        raise TypeError(msg) from error


def _batched(examples: Sequence[Example], model: Any, batch_size: int | None) -> Iterator[list[int]]:
    """Indices of examples of one length, the longest first, so that running out of memory shows at once."""
    by_length: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        by_length.setdefault(len(example.tokens), []).append(index)
    for length in sorted(by_length, reverse=True):
        indices = by_length[length]
        size = batch_size or _chosen_batch_size(model, length)
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def _chosen_batch_size(model: Any, length: int) -> int:
    scores = SCORES_PER_BATCH.get(torch.device(model.cfg.device or "cpu").type, LOGITS_PER_BATCH)
    by_scores = scores // (int(model.cfg.n_heads) * length**2)
    return max(1, min(by_scores, LOGITS_PER_BATCH // (int(model.cfg.d_vocab) * length)))


def _judged(
    logits: Float[Tensor, "pos vocab"], tokens: Int[Tensor, " pos"], start: int, stop: int
) -> tuple[float, float]:
    predicted, answer = logits[start - 1 : stop - 1].float(), tokens[start:stop]
    log_prob = -torch.nn.functional.cross_entropy(predicted, answer)
    return log_prob.item(), float((predicted.argmax(-1) == answer).all())


def _refuse_not_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).reshape(len(values), -1).any(-1).nonzero()[0])
        msg = f"{name}: row {row} is not a finite number: the model's output has NaN or infinity; try float32"
        raise ValueError(msg)
