"""Plots of a distance profile: attention, score and dominant dimension of some heads by distance."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_tables import distance_line
from positional_heads.views.figures import NORMAL, PALETTE, SMALL, Picture, share_legend, token_count

SHOWN = 3
"""Heads that look furthest, and nearest, that are shown if none are asked for."""


@checked
def distance_curves(profile: DistanceProfile, heads: Heads | None = None) -> Figure:
    """Attention, score and dominant dimension of some heads in each range of distances.

    Attention is that to keys that are no sinks, in units of a head that attends evenly to what it sees: above 1 a head
    prefers the distance. The score is the effect of distance alone, its mean being 0. The dominant dimension is left
    out where no head has one.

    Args:
        profile: What `distance_profile` returned.
        heads: Which heads; the three that look furthest and the three that look nearest when None.

    Raises:
        ValueError: If the model has no such head, its layer was left out, or none are asked for.
    """
    chosen = _examples(profile) if heads is None else as_heads(heads, *profile.half_distance.shape)
    for head in chosen:
        if not profile.encodings[head.layer]:
            msg = f"{head} was not profiled ({profile.reasons.get(head.layer, 'its layer was left out')}): leave it out"
            raise ValueError(msg)
    if not chosen:
        msg = "no heads to show: give at least one that was profiled"
        raise ValueError(msg)
    curves = {"attention / even attention": profile.mass / profile.even_mass[:, None]}
    curves["effect on the score"] = profile.score
    if profile.dominant is not None:
        curves["mean dominant dimension"] = profile.dominant
    figure = Picture(figsize=(7.6, 1.4 + 2.4 * len(curves)), layout="constrained")
    panels = list(figure.subplots(len(curves), 1, sharex=True))
    middle = np.maximum(1, (profile.edges[:-1] + profile.edges[1:] - 1).numpy() / 2)
    for panel, (name, values) in zip(panels, curves.items(), strict=True):
        for number, head in enumerate(chosen):
            look = {"color": PALETTE[number % len(PALETTE)], "marker": ".", "linewidth": 1.1, "markersize": 4}
            panel.plot(middle, values[head].numpy(), label=str(head), **look)
        panel.set_ylabel(name, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.grid(alpha=0.25)
    _label(panels)
    title = f"What distance does to some heads\n{distance_line(profile.provenance, profile.encodings)}"
    share_legend(figure, panels, title, columns=min(6, len(chosen)))
    return figure


def _label(panels: Sequence[Axes]) -> None:
    panels[0].axhline(1, color="0.35", linestyle=":", linewidth=1.2, label="even attention")
    panels[0].set_yscale("symlog", linthresh=0.1)
    panels[1].axhline(0, color="0.35", linewidth=0.7)
    panels[-1].set_xscale("log")
    panels[-1].set_xlabel("distance in tokens (0 is drawn at 1)", fontsize=NORMAL)
    panels[-1].xaxis.set_major_formatter(lambda tokens, _: token_count(tokens))


def _examples(profile: DistanceProfile) -> list[Head]:
    reach = profile.values("reach")
    known = [head for head in profile.heads if not bool(reach[head].isnan())]
    known.sort(key=lambda head: -float(reach[head]))
    return list(dict.fromkeys([*known[:SHOWN], *known[-SHOWN:]]))
