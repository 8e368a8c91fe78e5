"""Plots of a distance profile: attention, score and dominant dimension of some heads by distance."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_tables import distance_line
from positional_heads.views.figures import NORMAL, PALETTE, SMALL, Picture, share_legend, token_count

SHOWN = 3
"""Heads that look furthest, and nearest, that are shown if none are asked for."""
AT_ZERO = 0.5
"""Where distance 0 is drawn, which a log axis does not have."""
LEAST, LOW, HIGH = 0.01, 0.5, 2.0
"""Of attention over even attention: the least that is drawn, and the range that every panel shows at least."""
LONG = 1000
"""An axis whose end is so many times its start, or more, has ticks at powers of ten alone."""
TITLE = 100
"""Characters that fit a line of the title."""


@checked
def distance_curves(profile: DistanceProfile, heads: Heads | None = None) -> Figure:
    """Attention, score and dominant dimension of some heads in each range of distances.

    Attention is that to keys that are no sinks, in units of a head that attends evenly to what it sees: above 1 a head
    prefers the distance; below 0.01 a curve leaves the panel. The score is the effect of distance alone, its mean being
    0. The dominant dimension is left out where no head has one.

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
    middle = np.maximum(AT_ZERO, (profile.edges[:-1] + profile.edges[1:] - 1).numpy() / 2)
    for panel, (name, values) in zip(panels, curves.items(), strict=True):
        for number, head in enumerate(chosen):
            look = {"color": PALETTE[number % len(PALETTE)], "marker": ".", "linewidth": 1.1, "markersize": 4}
            panel.plot(middle, values[head].numpy(), label=str(head), **look)
        panel.set_ylabel(name, fontsize=SMALL)
        panel.tick_params(labelsize=SMALL)
        panel.grid(alpha=0.25)
    _label(panels)
    _scale_ratios(panels[0])
    starts = [AT_ZERO] if profile.edges[:2].tolist() == [0, 1] else []
    panels[-1].set_xscale("log")
    panels[-1].xaxis.set_major_locator(FixedLocator([*starts, *_ticks(1, middle[-1])]))
    panels[-1].xaxis.set_minor_locator(NullLocator())
    panels[-1].xaxis.set_major_formatter(lambda tokens, _: "0" if tokens in starts else token_count(tokens))
    line = textwrap.fill(distance_line(profile.provenance, profile.encodings), TITLE)
    title = f"What distance does to some heads\n{line}"
    share_legend(figure, panels, title, columns=min(6, len(chosen)))
    return figure


def _label(panels: Sequence[Axes]) -> None:
    panels[0].axhline(1, color="0.35", linestyle=":", linewidth=1.2, label="even attention")
    panels[1].axhline(0, color="0.35", linewidth=0.7)
    panels[-1].set_xlabel("distance in tokens", fontsize=NORMAL)


def _scale_ratios(panel: Axes) -> None:
    """A log axis for ratios, which shows at least `LOW` to `HIGH` and nothing below `LEAST`."""
    ratios = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in panel.lines])
    drawn = ratios[np.isfinite(ratios) & (ratios > 0)]
    low, high = max(LEAST, min([LOW, *drawn])) / 1.1, max([HIGH, *drawn]) * 1.1
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    panel.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")


def _ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis at 1, 2 and 5 times powers of ten, or at powers of ten alone if it is long."""
    steps = (1,) if high / low >= LONG else (1, 2, 5)
    tens = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [float(f"{step}e{ten}") for ten in tens for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _examples(profile: DistanceProfile) -> list[Head]:
    reach = profile.values("reach")
    known = [head for head in profile.heads if not bool(reach[head].isnan())]
    known.sort(key=lambda head: -float(reach[head]))
    return list(dict.fromkeys([*known[:SHOWN], *known[-SHOWN:]]))
