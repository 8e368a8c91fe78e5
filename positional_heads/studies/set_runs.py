"""Measure a task under many sets of ablated heads, each on the same examples; runs share the layers they can.

Below the lowest layer at which two sets differ, a model computes the same under both. So sets are run in an order in
which consecutive ones share most layers, where the task and the mode allow it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from positional_heads.bridge.ablation import Ablation
from positional_heads.bridge.answer_run import runs_plainly
from positional_heads.bridge.kept_residuals import KeptResiduals, kept_residuals
from positional_heads.bridge.model import TransformerLensModel
from positional_heads.core.head_sets import HeadSet, set_name
from positional_heads.core.set_order import run_costs, shared_layers, sharing_order
from positional_heads.studies.resume import FinishedParts, run_parts
from positional_heads.studies.tasks.task import AnswerTask, Task

SHARING = ("zero", "mean", "far")
"""Modes in which sets of heads share the layers below their first difference."""


@dataclass
class SetRuns:
    """Runs of one task under sets of heads.

    Attributes:
        model: A TransformerBridge, which must not change but by these ablations.
        task: The task.
        ablation: How heads are ablated.
        finished: Where results are kept.
        residuals: Residuals of earlier runs.
        batch_size: Sequences per forward pass; chosen by length when None.
    """

    model: TransformerLensModel
    task: Task
    ablation: Ablation
    finished: FinishedParts
    residuals: KeptResiduals
    batch_size: int | None = None
    _starts: dict[HeadSet, frozenset[int]] = field(default_factory=dict)

    def measure(self, heads: HeadSet) -> dict[str, list[float]]:
        """Every measure of every answer with these heads ablated."""
        self.residuals.keep(self._starts.get(heads, ()))
        with self.model.hooks(fwd_hooks=self.ablation.hooks(heads)):
            return {name: values.tolist() for name, values in self.task.measure(self.model, self.batch_size).items()}

    def costs(self, order: Sequence[HeadSet]) -> dict[HeadSet, float]:
        """Share of the layers that is run for each set, in this order."""
        return run_costs(order, n_layers=self._shared_layers)

    def unfinished(self, sets: Sequence[HeadSet]) -> list[HeadSet]:
        """The sets that have not been run, in the order in which they are."""
        return sharing_order([heads for heads in sets if set_name(heads) not in self.finished.results])

    def run(self, sets: Sequence[HeadSet], *, title: str, progress: bool) -> list[dict[str, list[float]]]:
        """Run what is not finished of these sets.

        Args:
            sets: Different sets of heads.
            title: Title of the progress bar.
            progress: Show it.

        Returns:
            What `measure` returned of each, in their order.
        """
        order = self.unfinished(sets)
        self._starts |= shared_layers(order)
        cost = self.costs(order)
        run_parts(
            {set_name(heads): heads for heads in [*order, *sets]},
            self.measure,
            finished=self.finished,
            title=title,
            unit="sets",
            progress=progress,
            cost=lambda heads: cost.get(heads, 1.0),
        )
        return [self.finished.results[set_name(heads)] for heads in sets]

    @cached_property
    def _shared_layers(self) -> int:
        """Layers that sets may share; 0 where they share none."""
        shares = isinstance(self.task, AnswerTask) and self.ablation.mode in SHARING and runs_plainly(self.model)
        return int(self.model.cfg.n_layers) if shares else 0


@contextmanager
def set_runs(
    model: TransformerLensModel,
    task: Task,
    ablation: Ablation,
    finished: FinishedParts,
    batch_size: int | None = None,
) -> Iterator[SetRuns]:
    """A block with runs of a task under sets of heads; arguments are the attributes of `SetRuns`."""
    with kept_residuals(model) as residuals:
        yield SetRuns(model, task, ablation, finished, residuals, batch_size)
