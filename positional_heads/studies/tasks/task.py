"""Tasks: sequences with known answers, measured at long range and, as a control, at short range.

Conventions: an answer is a span of the sequence itself, from its first token to one past its last, and is predicted
from all tokens before it. Higher measures are better. Examples of one `unit` share content, so statistics treat units,
not examples, as independent.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from positional_heads.bridge.answer_run import answer_run
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.positions import numbered_rows
from positional_heads.bridge.run_lengths import fresh_runs
from positional_heads.core.arguments import checked, in_range

Reach = Literal["long", "short"]
LOGITS_PER_BATCH = 2**26
"""Most logits per batch if no batch size is given: 256 MiB of float32."""
LEAST_SHARED = 64
"""Fewest tokens with which two examples begin alike that are run once for both."""
SCORES_PER_BATCH = {"cpu": 2**21}
"""Most attention scores per layer and batch: those that fit the cache of a CPU; `LOGITS_PER_BATCH` elsewhere."""


@dataclass(frozen=True)
class Asked:
    """What one answer depends on, and which part of the task it belongs to.

    Attributes:
        part: Which of the task's questions it answers; None if all are of one kind.
        reach: See `Example`.
        depth: See `Example`.
        needle: See `Example`.
    """

    part: str | None = None
    reach: Reach = "long"
    depth: float | None = None
    needle: tuple[int, int] | None = None


@dataclass(frozen=True)
class Example:
    """One sequence to run, and the answers to measure in it.

    Attributes:
        tokens: The whole sequence, answers included.
        answers: Span of each answer.
        unit: Number of the independent unit it belongs to.
        reach: "long" if the answers depend on distant tokens, "short" if, as a control, on tokens nearby.
        depth: Position in the context of the tokens that the answer depends on: 0 is its start, 1 its end.
        needle: Span of the tokens in the context that the answer repeats.
        asked: Of each answer its own reach, depth and needle, where they differ; these are used instead of the others.
    """

    tokens: Int[Tensor, " pos"]
    answers: tuple[tuple[int, int], ...]
    unit: int
    reach: Reach = "long"
    depth: float | None = None
    needle: tuple[int, int] | None = None
    asked: tuple[Asked, ...] = ()

    def __post_init__(self) -> None:
        """Refuse another number of `asked` than of answers."""
        if self.asked and len(self.asked) != len(self.answers):
            msg = f"asked has {len(self.asked)} entries for {len(self.answers)} answers: give one for each, or none"
            raise ValueError(msg)

    def __repr__(self) -> str:
        spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.answers[:3])
        more = f" and {len(self.answers) - 3} more" if len(self.answers) > 3 else ""  # noqa: PLR2004
        reaches = " and ".join(dict.fromkeys(one.reach for one in self.asked)) or self.reach
        where = f"{reaches} range" + ("" if self.depth is None else f", depth {self.depth:g}")
        return f"Example({len(self.tokens)} tokens, answers at {spans}{more}, unit {self.unit}, {where})"

    @property
    def distance(self) -> int | None:
        """Tokens from the needle to the first answer."""
        return None if self.needle is None else self.answers[0][0] - self.needle[0]

    @property
    def properties(self) -> list[dict[str, Any]]:
        """Reach, length, depth and distance of every answer, and, where the task has several, its part."""
        if not self.asked:
            one = Asked(None, self.reach, self.depth)
            return [self._properties(one, self.distance) for _ in self.answers]
        starts = [start for start, _ in self.answers]
        return [
            self._properties(one, None if one.needle is None else start - one.needle[0])
            for start, one in zip(starts, self.asked, strict=True)
        ]

    def _properties(self, one: Asked, distance: int | None) -> dict[str, Any]:
        part = {} if one.part is None else {"part": one.part}
        own = {"reach": one.reach, "length": len(self.tokens), "depth": one.depth, "distance": distance}
        return {**part, **own}


@runtime_checkable
class Task(Protocol):
    """Anything that can be measured repeatedly on the same examples, with heads ablated or not."""

    @property
    def name(self) -> str:
        """Its name in results."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything needed to reproduce it, for provenance; must be JSON."""
        ...

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per measured answer: unit, reach, and other properties (length, depth, distance, ...)."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures, the most sensitive first; higher is better."""
        ...

    @property
    def chance(self) -> Mapping[str, float]:
        """Expected value of each measure for a model that ignores the context, if there is one."""
        ...

    def measure(self, model: TransformerLensModel, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:
        """Every measure of every row, in the order of `rows`."""
        ...


@dataclass(frozen=True)
class AnswerTask:
    """A task whose answers are tokens: measured in one forward pass, by exact match and by log-probability.

    Exact match is whether greedy decoding would give every token of the answer. The same pass shows it, because greedy
    decoding can reach the answer's n-th token only after its first n - 1. `log_prob` is the mean over the answer's
    tokens, in nats per token.

    Attributes:
        name: Its name in results.
        examples: The sequences to measure.
        held_out: Sequences of the same kind with other content: the reference for `mean` and `resample`, and the
            examples that retrieval scores are measured on.
        chance: Expected value of each measure for a guess; of a part of the task as "log_prob of kv".
        settings: Everything needed to reproduce it.
    """

    name: str
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]
    chance: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    measures: tuple[str, ...] = ("log_prob", "exact")

    def __repr__(self) -> str:
        longest = max((len(example.tokens) for example in self.examples), default=0)
        settings = reprlib.repr(self.settings)  # shortened
        return f"AnswerTask({self.name!r}: {len(self.examples)} examples of up to {longest} tokens, {settings})"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One entry per answer, in the order of `measure`."""
        return [
            {"example": index, "unit": example.unit} | own | {"position": start, "answer_tokens": stop - start}
            for index, example in enumerate(self.examples)
            for (start, stop), own in zip(example.answers, example.properties, strict=True)
        ]

    @checked
    def measure(self, model: TransformerLensModel, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:
        """Log-probability and exact match of every answer.

        Args:
            model: A TransformerBridge, with or without ablated heads.
            batch_size: Sequences per forward pass; chosen by length when None.
        """
        in_range("batch_size", batch_size, 1)
        measured: dict[int, list[tuple[float, float]]] = {}
        with torch.inference_mode(), answer_run(model) as logits_at:
            for batch, shared in _batched(self.examples, model, batch_size, share=logits_at.shares):
                tokens = torch.stack([self.examples[index].tokens for index in batch]).to(model.cfg.device)
                spans = {index: self.examples[index].answers for index in batch}
                columns = sorted({column for one in spans.values() for span in one for column in _predicting(*span)})
                with numbered_rows(model, batch):
                    logits = logits_at(tokens, columns, shared)
                for row, index in enumerate(batch):
                    measured[index] = [_judged(logits[row], columns, tokens[row], *span) for span in spans[index]]
        rows = torch.tensor([row for index in sorted(measured) for row in measured[index]], dtype=torch.float64)
        _refuse_not_finite(self.name, rows)
        return {"log_prob": rows[:, 0].contiguous(), "exact": rows[:, 1].contiguous()}


@dataclass(frozen=True)
class FunctionTask:
    """A user's own function from the model to one number per example, higher being better.

    Attributes:
        function: Called with the model; must score the same examples in the same order each time.
        name: Its name in results.
        examples: Number of scores that it returns.
        reach: "long" if it needs long range.
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

    def measure(self, model: TransformerLensModel, batch_size: int | None = None) -> dict[str, Float64[Tensor, " row"]]:  # noqa: ARG002
        """The function's scores.

        Raises:
            ValueError: If it returns another number of scores than before, or one that is not finite.
        """
        with fresh_runs(model):
            scores = _numbers(self.name, self.function(model))
        if len(scores) != self.examples:
            msg = (
                f"{self.name} returned {len(scores)} scores, {self.examples} the first time: their number must not vary"
            )
            raise ValueError(msg)
        _refuse_not_finite(self.name, scores)
        return {"score": scores}


def function_task(model: TransformerLensModel, function: Callable[[Any], Any], name: str | None = None) -> FunctionTask:
    """A task from a function of the model, which is called once to count its scores.

    Raises:
        ValueError: If it returns no score.
        TypeError: If it does not return numbers.
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


def _batched(
    examples: Sequence[Example], model: TransformerLensModel, batch_size: int | None, *, share: bool
) -> Iterator[tuple[list[int], int]]:
    """Indices of examples of one length, and how many tokens they begin with alike.

    The longest come first, so a lack of memory shows immediately. Neighbours that share much are a batch of their own.
    """
    by_length: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        by_length.setdefault(len(example.tokens), []).append(index)
    for length in sorted(by_length, reverse=True):
        size = batch_size or _chosen_batch_size(model, length)
        alone: list[int] = []
        pending = by_length[length]
        while pending:
            first, *pending = pending
            shared = _shared_beginning(examples, first, pending[0]) if share and pending and batch_size != 1 else 0
            if shared:
                yield [first, pending.pop(0)], shared
            else:
                alone.append(first)
        yield from ((alone[start : start + size], 0) for start in range(0, len(alone), size))


def _shared_beginning(examples: Sequence[Example], first: int, second: int) -> int:
    """Tokens with which two examples of one length begin alike, 0 if too few to run them apart."""
    one, other = examples[first].tokens, examples[second].tokens
    shared = int((one == other).long().cumprod(0)[:-1].sum())
    return shared if shared >= max(LEAST_SHARED, len(one) // 8) else 0


def _chosen_batch_size(model: TransformerLensModel, length: int) -> int:
    scores = SCORES_PER_BATCH.get(torch.device(model.cfg.device or "cpu").type, LOGITS_PER_BATCH)
    by_scores = scores // (int(model.cfg.n_heads) * length**2)
    return max(1, min(by_scores, LOGITS_PER_BATCH // (int(model.cfg.d_vocab) * length)))


def _predicting(start: int, stop: int) -> range:
    """Columns whose logits predict an answer: each is one before its token."""
    return range(start - 1, stop - 1)


def _judged(
    logits: Float[Tensor, "position vocab"], columns: list[int], tokens: Int[Tensor, " pos"], start: int, stop: int
) -> tuple[float, float]:
    first = columns.index(start - 1)
    predicted, answer = logits[first : first + stop - start].float(), tokens[start:stop]
    log_prob = -torch.nn.functional.cross_entropy(predicted, answer)
    return log_prob.item(), float((predicted.argmax(-1) == answer).all())


def _refuse_not_finite(name: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).reshape(len(values), -1).any(-1).nonzero()[0])
        msg = f"{name}: row {row} is not a finite number: the model's output has NaN or infinity; try float32"
        raise ValueError(msg)
