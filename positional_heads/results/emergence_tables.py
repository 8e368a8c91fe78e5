"""Tables of an emergence study: every head at each step, and every step in one row."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float64, Int
from torch import Tensor

from positional_heads.core.ratio_intervals import ratio_interval
from positional_heads.core.statistics import mean_interval
from positional_heads.results.scores import HeadScores
from positional_heads.results.tables import ROWS, ResultTable, model_label
from positional_heads.results.text import printable

if TYPE_CHECKING:
    import pandas as pd

STEP_MEANINGS = {
    "step": "training step of the checkpoint",
    "loss": "on the text, in nats per token",
    "low": "lower end of the 95 % interval of the loss over sequences",
    "high": "its upper end",
    "beat_null": "heads whose rho is positive and beats their null",
    "highest_rho": "the highest rho of a head",
    "log_prob": "of the answers of the task, in nats per token",
    "exact": "share of answers that greedy decoding gives",
}
BIRTH_MEANINGS = {
    "kind": "a head, or the skill that the task measures",
    "step": "first step from which it stays above its threshold; a dash: not born",
    "low": "earliest step of the 95 % interval; a dash: not born, or no interval",
    "high": "latest step of the 95 % interval; a dash: not born, or no interval",
    "born": "share of resamples in which it is born",
}


def heads_by_step(
    scores: Mapping[int, HeadScores], retrieval: Float64[Tensor, "checkpoint trial layer head"] | None
) -> "pd.DataFrame":
    """One row per step and head."""
    import pandas as pd

    frames = []
    for number, (step, one) in enumerate(scores.items()):
        frame = one.to_frame()
        frame.insert(0, "step", step)
        reason = frame.pop("reason")
        if one.null is not None:
            frame["beats_null"] = one.beats_null().flatten().numpy()
        if retrieval is not None:
            frame["retrieval"] = retrieval[number].nanmean(0).flatten().numpy()
        frame["reason"] = reason
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def step_rows(
    scores: Mapping[int, HeadScores],
    loss: Float64[Tensor, "checkpoint sequence"],
    tokens: Int[Tensor, " sequence"],
    means: Mapping[tuple[str, str], Float64[Tensor, "checkpoint _unit"]],
    level: float,
) -> "pd.DataFrame":
    """One row per step.

    Args:
        scores: Scores by step.
        loss: Mean loss of each sequence.
        tokens: Predicted tokens of each sequence.
        means: Means of each unit of the task, by measure and reach.
        level: Coverage of the intervals.
    """
    import pandas as pd

    weights = tokens.double()[:, None, None].expand(-1, len(loss), 1)
    sums = loss.T[..., None] * weights
    low, high = ratio_interval(sums, weights, level)[:, 0].unbind(-1)
    frame = pd.DataFrame({"step": list(scores), "loss": (sums.sum(0) / weights.sum(0))[:, 0].numpy()})
    frame["loss_low"], frame["loss_high"] = low.numpy(), high.numpy()
    for (name, reach), units in means.items():
        own = name if reach == "long" or (name, "long") not in means else f"{name}_short"
        bounds = (0.0, 1.0) if bool(((units >= 0) & (units <= 1)).all()) else None
        low, high = mean_interval(units, level, bounds=bounds).unbind(-1)
        frame[own], frame[f"{own}_low"], frame[f"{own}_high"] = units.mean(1).numpy(), low.numpy(), high.numpy()
    if all(one.null is not None for one in scores.values()):
        frame["beat_null"] = [int(one.beats_null().sum()) for one in scores.values()]
    frame["highest_rho"] = [float(one.rho.nan_to_num(nan=-2).max()) for one in scores.values()]
    return frame


def emergence_line(content: Mapping[str, Any]) -> str:
    """What was followed, in one line.

    Args:
        content: Everything in the file that is not a tensor.
    """
    task = f", {printable(content['task'], newlines=False)}" if content["task"] else ""
    steps = content["steps"]
    return f"{model_label(content['provenance'])}: {len(steps)} checkpoints, steps {steps[0]} to {steps[-1]}{task}"


def steps_table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Every step, without the columns of intervals of the task.

    Args:
        rows: Rows of `EmergenceStudy.step_frame`.
    """
    ends = ("_low", "_high", "_short")
    columns = ["step", "loss", "low", "high", *(name for name in list(rows[0])[2:] if not name.endswith(ends))]
    lines = [{**row, "low": row["loss_low"], "high": row["loss_high"]} for row in rows]
    return ResultTable(columns, lines, STEP_MEANINGS)


def births_line(born: str) -> str:
    """What counts as the birth of a head, in one line.

    Args:
        born: What heads do from their birth on.
    """
    return f"A head is born at the first checkpoint from which on, to the end, it is among those that {born}."


def births_table(rows: Sequence[Mapping[str, Any]], most: int = ROWS) -> ResultTable:
    """The skill, then the heads that are born, the earliest first.

    Args:
        rows: Rows of `EmergenceStudy.births`.
        most: Rows at most.
    """
    born = sorted(
        (row for row in rows if row["kind"] == "head" and row["step"] is not None), key=lambda row: row["step"]
    )
    shown = [*(row for row in rows if row["kind"] == "skill"), *born][:most]
    whole = ("step", "low", "high")
    lines = [{**row, **{name: None if row[name] is None else int(row[name]) for name in whole}} for row in shown]
    return ResultTable(["kind", "name", *whole, "born"], lines, BIRTH_MEANINGS)
