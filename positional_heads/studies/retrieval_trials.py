"""The retrieval control of an ablation study: retrieval scores on held-out examples, one trial at a time."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.provenance import data_hash
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.bridge.run_cost import run_costs
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.tasks.evaluate import make_task
from positional_heads.studies.tasks.task import AnswerTask, Asked, Example, Task


class Trial(NamedTuple):
    """One held-out example.

    Attributes:
        prompt: Tokens up to the answer.
        needle: First, and one past the last, token of what the answer repeats.
        answer: Tokens of the answer.
    """

    prompt: Int[Tensor, " _pos"]
    needle: tuple[int, int]
    answer: Int[Tensor, " _answer_pos"]

    @property
    def name(self) -> str:
        """What its result is kept under."""
        sha256 = data_hash([(self.prompt, None), (self.answer, None)])
        return f"retrieval {sha256[:16]} {self.needle[0]} {self.needle[1]}"


class RetrievalTrials:
    """Held-out examples of a task, or of passkey if it has no needle.

    Attributes:
        trials: The examples at long range; none where there is no such task.
        notes: Why there are none, as a sentence.
    """

    def __init__(self, model: TransformerLensModel, task: Task) -> None:
        """Find the examples; nothing is run."""
        self._model, self._name = model, task.name
        self._run_cost = run_costs(model)
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        if not has_needles(task):
            if getattr(model, "tokenizer", None) is None:
                self.notes = [
                    "No retrieval scores: the task has no needle, and the model has no tokenizer to make one."
                ]
                return
            task = make_task(model, "passkey")
            if not has_needles(task):
                self.notes = [
                    "No retrieval scores: the text is too short for held-out examples; give a longer haystack."
                ]
                return
            self._name = task.name
        assert isinstance(task, AnswerTask)
        for example in task.held_out:
            self.trials += _first_trial(example)

    def begin(self, finished: FinishedParts, progress: bool) -> None:
        """Run the first trial, to know how long one takes."""
        finished.forget_untimed(trial.name for trial in self.trials[:1])
        self._run_trials(self.trials[:1], finished, progress)

    def seconds_left(self, finished: FinishedParts) -> float:
        """How long the trials take that are not finished, by the first one."""
        left = sum(self._cost(trial) for trial in self.trials if trial.name not in finished.results)
        return left * finished.seconds[self.trials[0].name] / self._cost(self.trials[0]) if left else 0.0

    def seconds_taken(self, finished: FinishedParts) -> float:
        """How long the finished trials took."""
        one = finished.seconds[self.trials[0].name] if self.trials else 0.0
        return finished.seconds_of({trial.name for trial in self.trials}, one)

    def scores(self, finished: FinishedParts, progress: bool) -> tuple[Float64[Tensor, "layer head"] | None, list[str]]:
        """Mean retrieval score of each head over the trials that the model answers; None, with a note, if none."""
        answered, notes = self.each(finished, progress)
        return None if answered is None else answered.mean(0), notes

    def each(
        self, finished: FinishedParts, progress: bool
    ) -> tuple[Float64[Tensor, "trial layer head"] | None, list[str]]:
        """Retrieval scores in each trial that the model answers; None, with a note, if it answers none."""
        self._run_trials(self.trials, finished, progress)
        results = [finished.results[trial.name] for trial in self.trials]
        answered = [torch.tensor(one, dtype=torch.float64) for one in results if one is not None]
        if answered:
            return torch.stack(answered), []
        if self.notes:
            return None, self.notes
        return None, [f"No retrieval scores: the model answers no held-out example of `{self._name}` correctly."]

    def _run_trials(self, trials: list[Trial], finished: FinishedParts, progress: bool) -> None:
        run_parts(
            {trial.name: trial for trial in trials},
            self._run,
            finished=finished,
            title="finding retrieval heads",
            unit="examples",
            progress=progress,
            cost=self._cost,
        )

    def _run(self, trial: Trial) -> Any:
        scores = retrieval_scores(self._model, [trial.prompt], [trial.needle], [trial.answer])
        return None if bool(scores.isnan().all()) else scores.tolist()

    def _cost(self, trial: Trial) -> float:
        """One run for each token of the answer, and one that reads the patterns."""
        return (len(trial.answer) + 1) * self._run_cost(len(trial.prompt) + len(trial.answer))


def _first_trial(example: Example) -> list[Trial]:
    """The first answer at long range that repeats tokens of its context; none if there is none."""
    asked = example.asked or (Asked(None, example.reach, None, example.needle),) * len(example.answers)
    for (start, stop), one in zip(example.answers, asked, strict=True):
        if one.reach == "long" and one.needle is not None:
            return [Trial(example.tokens[:start], one.needle, example.tokens[start:stop])]
    return []


def has_needles(task: Task) -> bool:
    """Whether it has held-out examples, and each repeats tokens of its context."""
    held_out = task.held_out if isinstance(task, AnswerTask) else ()
    return bool(held_out) and all(_repeats(example) for example in held_out)


def _repeats(example: Example) -> bool:
    return example.needle is not None or any(one.needle is not None for one in example.asked)
