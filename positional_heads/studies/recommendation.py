"""Which extension to take for a model and a target length: a small study on top of the extrapolation study.

Candidates are methods with their factors, and no extension. Each is measured on the same sequences of the user's text,
in runs of the target length and, for what it does to short texts, of the training length, and on the same questions of
a recall task. What to take of them is said in `positional_heads.results.choosing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.bridge.active_extension import active_block, active_extension
from positional_heads.bridge.model import TransformerLensModel, heads_of_model
from positional_heads.bridge.prefill import refuse_fixed_tables
from positional_heads.bridge.provenance import library_versions, model_provenance
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.rope_scaling.method import Method
from positional_heads.bridge.run_cost import run_costs
from positional_heads.bridge.sequences import Text
from positional_heads.core.arguments import check_settings, checked, in_range
from positional_heads.core.heads import Head, Heads
from positional_heads.results.recommendation import Recommendation
from positional_heads.studies.budget import Budget
from positional_heads.studies.candidates import BASELINE, candidates, proven_block, within_budget
from positional_heads.studies.extrapolation import (
    abbreviated,
    check_choices,
    data_provenance,
    distant_task,
    extrapolation_study,
    long_rows,
    text_losses,
)
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.rotary_kinds import Rotations, rotations
from positional_heads.studies.tasks.evaluate import refuse_misspelled, task_setting_names
from positional_heads.studies.tasks.task import AnswerTask
from positional_heads.studies.trials import Trial

METHODS = ("yarn", "ntk", "dynamic", "llama3", "linear")
"""Methods that need no training and that a configuration can express; a budget leaves out the last ones first."""
FOLLOWED_SEQUENCES = 2
"""Sequences on which the heads' curves are measured."""
LEAST_BEYOND = 64
"""Tokens beyond the training length below which no answer lies far enough back, and no curve goes far enough."""
LEAST_RECALLED = 0.5
"""Share of answers that a model must recall within its training length for recall beyond it to say anything."""


@checked
def recommend_extension(
    model: TransformerLensModel,
    text: Text,
    target_length: int,
    *,
    methods: Sequence[str | Method] = METHODS,
    factors: Sequence[float] | None = None,
    task: str | None = "passkey",
    heads: Heads | None = None,
    training_length: int | None = None,
    sequences: int = 8,
    batch_size: int | None = None,
    budget: float | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    seed: int = 0,
    **task_settings: Any,
) -> Recommendation:
    """Say which extension to take for a context of `target_length` tokens: evidence, and what to put in config.json.

    Every block that is given was put into a copy of the model's configuration; a model that transformers built from it
    has, at the target length, the frequencies and the factor on cos and sin with which the evidence was measured.

    Layers whose sliding window is within the training length never see a longer distance: they are left as they are.

    Args:
        model: A TransformerBridge whose checkpoint has no extension of its own.
        text: Text of the kind that the model is for, of which the first sequences are taken; or token ids of
            sequences with `target_length` tokens or more.
        target_length: Tokens to extend the context to.
        methods: Methods by name, each tried at every factor, or methods from `rope_method`, tried with their own
            settings. Those that rewrite scores (self_extend, rerope) can be tried; no configuration expresses them.
        factors: Factors of the methods, above 1; target over training length, and twice that, when None.
        task: A task whose answers lie at known distances; None for none. It is also left out where the model recalls
            less than half of the answers within its training length.
        heads: Heads whose curves are measured without extension; the four with the highest rho when None.
        training_length: Tokens that the model was trained on; read from its configuration when None.
        sequences: Sequences to cut from a text. Below 4 there are no intervals, and so nothing is recommended; with 8,
            intervals are narrow enough to compare 10 candidates.
        batch_size: Sequences per forward pass; chosen by length when None.
        budget: Minutes that it may take. What does not fit is left out before it starts, and the record says so: the
            larger factors first, then the last methods. No limit when None.
        checkpoint: Folder to save finished parts in; the same call resumes from it.
        progress: Show a progress bar, and say after the first candidate about how long the others will take.
        seed: Seed of the task.
        **task_settings: Settings of the task, e.g. depths, examples, haystack.

    Raises:
        ValueError: If a method, factor, task, head or length makes no sense, the text is too short, or the budget too
            small.
        UnsupportedModelError: If the model cannot be extended, is extended by its own configuration, or would not be
            rotated by a block as it was in the runs.
        RuntimeError: If an extension is active.
    """
    limit = None if budget is None else Budget(budget)
    in_range("target_length", target_length, 2)
    in_range("sequences", sequences, 1)
    in_range("batch_size", batch_size, 1)
    named = "passkey" if task is None else task
    check_choices(methods, [2.0] if factors is None else factors, named)
    refuse_misspelled(recommend_extension, named, task_settings)
    check_settings(f"task {task}", task_settings, [] if task is None else task_setting_names(task))
    if active_extension(model) is not None:
        msg = f"the model's rotation is extended already: leave the {active_block(model)} block first"
        raise RuntimeError(msg)
    asked = None if heads is None else heads_of_model(model, heads)
    found = rotations(model, training_length)
    if nothing := found.nothing_to_do(target_length):
        return _record(model, found, target_length, [], None, [nothing], {})
    # 1. the sequences, the candidates, and what a configuration would say of each
    refuse_fixed_tables(model, target_length)
    rows = long_rows(model, text, target_length, sequences, "the target length")
    trained = found.training_length
    trials = candidates(methods, factors, trained, target_length)
    extended = partial(extended_rope, model, layers=found.extended, training_length=training_length)
    blocks = {trial.label: proven_block(model, trial, extended, found) for trial in trials}
    settings = {"depths": 5, "examples": 2, "seed": seed, **task_settings}
    provenance = {
        "data": data_provenance(rows, target_length, text),
        "task": {"name": task, **{key: abbreviated(value) for key, value in settings.items()}},
    }
    identity = {"model": model_provenance(model), **provenance, "recommendation": [trained, target_length]}
    recall = _Recall(model, task, settings, trained, target_length, batch_size)
    recall.refuse_unfit()
    finished = FinishedParts({**identity, "heads": None if asked is None else [*map(str, asked)]}, checkpoint)
    # 2. the model as it is: what it recalls, and its heads' curves
    notes = [] if len(rows) >= sequences else [f"{len(rows)} sequences are used, {sequences} were asked for."]
    plain = finished.run("recall within", None, lambda _: recall.within())
    notes += [] if plain["reason"] is None else [plain["reason"]]
    measured_heads = partial(_heads, model, rows, trained, target_length, asked, training_length, progress=progress)
    curves = finished.run("heads", None, lambda _: measured_heads())
    notes += [] if curves["reason"] is None else [curves["reason"]]

    # 3. every candidate, or those that fit into the budget
    def measure(trial: Trial) -> dict[str, Any]:
        with extended(trial.method):
            return {
                "loss": text_losses(model, rows, trained, batch_size).tolist(),
                "within": text_losses(model, rows[:, :trained], 1, batch_size).tolist(),
                "answers": recall.beyond() if plain["reason"] is None else {},
            }

    costs = {rewritten: run_costs(model, rewritten=rewritten)(target_length) for rewritten in (False, True)}

    def cost(trial: Trial) -> float:
        return costs[trial.method.rewrites_scores]

    kept, left_out, account = within_budget(limit, trials, measure, cost, finished, progress=progress)
    parts = {trial.name: trial for trial in kept}
    title, unit = "recommending", "candidates"
    results = run_parts(parts, measure, finished=finished, title=title, unit=unit, progress=progress, cost=cost)
    provenance |= account
    tried = [(trial, *blocks[trial.label], one) for trial, one in zip(kept, results, strict=True)]
    return _record(model, found, target_length, tried, curves, left_out + notes, provenance)


@dataclass(frozen=True)
class _Recall:
    """The recall task, within and beyond the training length."""

    model: TransformerLensModel
    task: str | None
    settings: dict[str, Any]
    trained: int
    target: int
    batch_size: int | None

    def refuse_unfit(self) -> None:
        """Make what will be asked, so that settings of the task that make no sense are refused before anything is run.

        Raises:
            ValueError: If they do not.
        """
        if self.unasked is None:
            _ = self.near, self.far

    @property
    def unasked(self) -> str | None:
        """Why nothing is asked, as a sentence; None if it is."""
        if self.task is None:
            return "No task was asked for, so recall is unknown."
        if getattr(self.model, "tokenizer", None) is None:
            return f"The model has no tokenizer to make a {self.task} with, so recall is unknown."
        if self.target < self.trained + LEAST_BEYOND:
            return f"Recall needs {LEAST_BEYOND} tokens beyond the training length, and is unknown."
        return None

    @cached_property
    def near(self) -> AnswerTask:
        """Questions within the training length."""
        return self._task(self.trained, 0, self.settings["depths"])

    @cached_property
    def far(self) -> AnswerTask:
        """Questions whose answers lie farther back than the training length."""
        depths, farthest = self.settings["depths"], 1 - self.trained / self.target
        if isinstance(depths, int):  # as many, but all of them far enough back
            depths = [farthest * index / depths for index in range(depths)]
        return self._task(self.target, self.trained, depths)

    def _task(self, length: int, beyond: int, depths: Any) -> AnswerTask:
        assert self.task is not None
        return distant_task(self.model, self.task, length, beyond, {**self.settings, "depths": depths})

    def within(self) -> dict[str, Any]:
        """Share of answers that the model recalls as it is, or why it is not asked."""
        if self.unasked is not None:
            return {"reason": self.unasked}
        exact = float(self.near.measure(self.model, self.batch_size)["exact"].mean())
        if exact >= LEAST_RECALLED:
            return {"reason": None, "exact": exact}
        return {
            "reason": f"The model recalls {exact:.0%} of the answers of {self.task} within its {self.trained} training "
            "tokens, so recall beyond them was not asked for."
        }

    def beyond(self) -> dict[str, list[float]]:
        """Every measure of the answers that lie farther back than the training length."""
        return {name: values.tolist() for name, values in self.far.measure(self.model, self.batch_size).items()}


def _heads(
    model: TransformerLensModel,
    rows: Int[Tensor, "batch pos"],
    trained: int,
    target: int,
    heads: Sequence[Head] | None,
    training_length: int | None,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Rho and jump of each head without extension, by the extrapolation study; or why they are unknown."""
    without = "so the heads' curves were not measured."
    if getattr(model, "tokenizer", None) is None:
        return {"reason": f"The model has no tokenizer, {without}"}
    if target < trained + max(LEAST_BEYOND, trained // 16):
        return {"reason": f"Too few tokens lie beyond the training length, {without}"}
    study = extrapolation_study(
        model,
        rows[:FOLLOWED_SEQUENCES],
        [BASELINE],
        [target / trained],
        heads=heads,
        training_length=training_length,
        depths=[0.0],
        examples=1,
        progress=progress,
    )
    table = study.by_head()
    return {"reason": None, "heads": [*table["head"]], "rho": [*table["rho_within"]], "jump": [*table["jump"]]}


def _record(  # noqa: PLR0917
    model: TransformerLensModel,
    found: Rotations,
    target: int,
    tried: Sequence[tuple[Trial, dict[str, Any] | None, str | None, dict[str, Any]]],
    curves: dict[str, Any] | None,
    notes: list[str],
    provenance: dict[str, Any],
) -> Recommendation:
    kinds, frequencies = found.kinds()
    measured = curves if curves is not None and curves["reason"] is None else {"heads": [], "rho": [], "jump": []}
    results = [one for *_, one in tried]
    names = results[0]["answers"] if results else {}
    return Recommendation(
        labels=[trial.label for trial, *_ in tried],
        methods=[{"method": trial.method.name, **trial.method.settings} for trial, *_ in tried],
        losses=_table([one["loss"] for one in results]),
        losses_within=_table([one["within"] for one in results]),
        answers={name: _table([one["answers"][name] for one in results]) for name in names},
        blocks=[block for _, block, _, _ in tried],
        reasons=[reason for _, _, reason, _ in tried],
        kinds=kinds,
        frequencies=frequencies,
        heads=[Head.parse(name) for name in measured["heads"]],
        jumps=torch.tensor(measured["jump"], dtype=torch.float64),
        rho=torch.tensor(measured["rho"], dtype=torch.float64),
        training_length=found.training_length,
        target_length=target,
        provenance={"versions": library_versions(), "model": model_provenance(model), **provenance},
        notes=notes,
    )


def _table(rows: list[list[float]]) -> Float64[Tensor, "candidate unit"]:
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), -1 if rows else 0)
