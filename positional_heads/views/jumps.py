"""Plots of a jump study and of a distance response, one point per head."""

import numpy as np
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.jump_study import JumpStudy
from positional_heads.views.figures import NORMAL, PALETTE, Picture, readable, share_legend


@checked
def predicted_steps(study: JumpStudy) -> Figure:
    """The measured step of D of every head against the predicted one; on the line they are equal.

    Args:
        study: What `jump_study` returned.
    """
    frame = study.to_frame()
    figure = Picture(figsize=(5.2, 5.2), layout="constrained")
    panel = figure.subplots()
    for column, label, color, marker in (
        ("held", "pairs held where angles would be new", "0.6", "x"),
        ("predicted", "rotation alone", PALETTE[0], "o"),
    ):
        panel.plot(frame[column], frame["step"], marker, color=color, markersize=4, label=label)
    ends = frame[["step", "predicted"]].to_numpy()
    ends = ends[np.isfinite(ends)]
    if len(ends):
        panel.plot([ends.min(), ends.max()], [ends.min(), ends.max()], color="0.4", linewidth=0.8, label="equal")
    panel.set_xlabel("predicted step of D, in pairs", fontsize=NORMAL)
    panel.set_ylabel("measured step of D, in pairs", fontsize=NORMAL)
    share_legend(
        figure, [panel], f"{readable(study.model_name)}\nsteps across {study.training_length} tokens", columns=3
    )
    return figure


@checked
def responses_by_rho(result: DistanceResponse) -> Figure:
    """The response of every head against its rho, with intervals, and its response to other pairs.

    Args:
        result: What `distance_response` returned.
    """
    frame = result.to_frame()
    figure = Picture(figsize=(6.2, 4.6), layout="constrained")
    panel = figure.subplots()
    panel.vlines(frame["rho"], frame["low"], frame["high"], color=PALETTE[0], linewidth=0.8, alpha=0.6)
    panel.plot(frame["rho"], frame["response"], "o", color=PALETTE[0], markersize=4, label="dominant pairs")
    panel.plot(frame["rho"], frame["others"], "x", color="0.5", markersize=4, label="other pairs, mean")
    panel.axhline(0, color="black", linewidth=0.7)
    panel.axhline(1, color="0.4", linestyle=":", linewidth=1, label="the pairs alone")
    panel.set_xlabel("rho", fontsize=NORMAL)
    panel.set_ylabel("response of the reach", fontsize=NORMAL)
    share_legend(figure, [panel], f"{readable(result.model_name)}\nwhat turning pairs does to the reach", columns=3)
    return figure
