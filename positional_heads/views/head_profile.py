"""Plots of a head profile: maps of its measures, their rank correlations, and the rotary pairs of some heads."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Head, Heads, as_heads
from positional_heads.results.head_names import MIXED
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.profile_tables import UNITS, measure_title
from positional_heads.results.text import rounded
from positional_heads.views.figures import (
    DIVERGING,
    NORMAL,
    PALETTE,
    SEQUENTIAL,
    SMALL,
    Picture,
    share_legend,
    token_count,
)
from positional_heads.views.scores import scored_what

MAPPED = (
    *("rho", "excess", "reach", "distant_mass", "sink_mass", "previous_token", "induction", "duplicate_token"),
    *("copying", "retrieval", "semantic", "positional"),
)
"""Measures that are mapped if none are asked for."""
SIGNED = ("rho", "rho_curve", "excess")
"""Measures below zero as well: their colours are centred on it."""
MAPS_ACROSS = 4
SHOWN = 4
"""Heads whose pairs are shown if none are asked for."""
UNTURNED = 4.0
"""Where a pair without rotation is drawn, in wavelengths of the slowest pair that rotates."""
LABELLED = 24
"""Measures up to which cells hold their number."""


@checked
def profile_maps(profile: HeadProfile, names: Sequence[str] | None = None) -> Figure:
    """A map of all heads for each of several measures, layers down and heads across, each with its own colours.

    Measures that can be negative are blue-white-red, centred on zero; the others have a scale from their least to
    their largest value. Grey is unknown.

    Args:
        profile: What `profile_heads` returned.
        names: Measures, of `profile.names`; the twelve most telling of those when None, but none that no head has.

    Raises:
        ValueError: If the profile has no such measure, or none are asked for.
    """
    if names is None:
        names = [name for name in MAPPED if name in profile.names and not bool(profile.values(name).isnan().all())]
    values = {name: profile.values(name).numpy() for name in names}
    if not values:
        msg = f"no measures asked for: give at least one of {', '.join(profile.names)}, or None for the usual ones"
        raise ValueError(msg)
    layers, heads = profile.key_heads.shape
    columns = min(MAPS_ACROSS, len(values))
    rows = -(-len(values) // columns)
    width, height = min(3.2, max(2.1, 0.16 * heads + 0.8)), min(4.5, max(1.8, 0.09 * layers + 1.0))
    figure = Picture(figsize=(width * columns + 0.5, height * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for panel, (name, shown) in zip(panels, values.items(), strict=False):
        _draw_map(panel, name, shown)
    for number, panel in enumerate(panels):
        panel.set_visible(number < len(values))
        panel.xaxis.set_tick_params(labelbottom=number + columns >= len(values))
    figure.supxlabel("head", fontsize=NORMAL)
    figure.supylabel("layer", fontsize=NORMAL)
    unknown = "\ngrey: unknown" if any(np.isnan(one).any() for one in values.values()) else ""
    figure.suptitle(f"What every head does\n{scored_what(profile.scores)}{unknown}", fontsize=NORMAL, parse_math=False)
    return figure


@checked
def measure_correlations(profile: HeadProfile) -> Figure:
    """Spearman's rank correlation over heads of every two measures: near 1 or -1, they are one thing.

    Args:
        profile: What `profile_heads` returned.
    """
    table = profile.correlations()
    values = table.to_numpy()
    size = max(4.2, 0.36 * len(table) + 1.9)
    figure = Picture(figsize=(size + 0.9, size), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    image = axes.imshow(values, cmap=DIVERGING, norm=Normalize(-1, 1), interpolation="none")
    figure.colorbar(image, ax=axes, label="rank correlation over heads (-1 to 1)", shrink=0.8)
    names = [measure_title(name) for name in table.columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=SMALL)
    axes.set_yticks(range(len(names)), names, fontsize=SMALL)
    axes.set(xlabel="measure", ylabel="measure")
    if len(names) <= LABELLED:
        for (row, column), value in np.ndenumerate(values):
            text, colour = "" if np.isnan(value) else rounded(value, 2), "white" if abs(value) > 0.65 else "black"  # noqa: PLR2004
            axes.text(column, row, text.replace("0.", "."), ha="center", va="center", fontsize=6, color=colour)
    unknown = "\ngrey: a measure that is unknown or the same for all heads" if np.isnan(values).any() else ""
    heads = int((profile.key_heads >= 0).sum())
    said = f"Which measures order the {heads} heads alike\n{scored_what(profile.scores)}{unknown}"
    axes.set_title(said, fontsize=NORMAL, parse_math=False)
    return figure


@checked
def pair_curves(profile: HeadProfile, heads: Heads | None = None, *, training_length: int | None = None) -> Figure:
    """Norms, agreement and mean contribution of the rotary pairs of some heads, the fastest pair to the left.

    The dotted line is the training length: pairs to the right of it never met all of their angles. A pair without
    rotation is drawn at the right end. Mean contributions are those to keys up to about the window and beyond it.

    Args:
        profile: What `profile_heads` returned.
        heads: Which heads; when None, the clearest case of each of the four names that most heads have, "mixed" last.
        training_length: Tokens that the model was trained on; when None, the one in the profile's provenance, or else
            the model's context.

    Raises:
        ValueError: If the model has no such head, the head was not profiled, or none are asked for.
    """
    heads = _examples(profile) if heads is None else as_heads(heads, *profile.key_heads.shape)
    for head in heads:
        if int(profile.key_heads[head]) < 0:
            msg = (
                f"{head} was not profiled ({profile.scores.reasons.get(head, 'its layer was left out')}): leave it out"
            )
            raise ValueError(msg)
    if not heads:
        msg = "no heads to show: give at least one that was profiled"
        raise ValueError(msg)
    figure = Picture(figsize=(7.6, 8.4), layout="constrained")
    panels = list(figure.subplots(3, 1, sharex=True))
    split = _window_range(profile)
    near, far = profile.mean_contribution(0, split), profile.mean_contribution(split)
    for number, head in enumerate(heads):
        places = _places(profile, head)
        look = {"color": PALETTE[number % len(PALETTE)], "marker": ".", "linewidth": 1.1, "markersize": 4}
        for panel, values in zip(panels, (profile.pairs.band_norm, profile.pairs.agreement, near), strict=True):
            panel.plot(places, values[head].numpy()[: len(places)], label=f"{head}, {profile.name(head)}", **look)
        panels[2].plot(places, far[head].numpy()[: len(places)], **look | {"linestyle": "--", "marker": ""})
    for panel in panels:
        if (limit := _trained(profile, training_length)) is not None:
            panel.axvline(limit[0], color="0.35", linestyle=":", linewidth=1.2, label=limit[1])
        panel.grid(alpha=0.25)
    if split < len(profile.edges) - 1:
        for style, where in (("-", "below"), ("--", "from")):
            panels[2].plot([], [], color="0.35", linestyle=style, label=f"distances {where} {profile.edges[split]}")
    _label_pairs(panels)
    share_legend(figure, panels, f"Rotary pairs of some heads\n{scored_what(profile.scores)}", columns=3)
    return figure


def _draw_map(panel: Axes, name: str, values: np.ndarray) -> None:
    panel.set_facecolor("0.85")
    norm: Normalize | None
    if name in SIGNED:
        largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
        colours, norm = DIVERGING, CenteredNorm(0, halfrange=largest)
    else:
        colours, norm = SEQUENTIAL, Normalize(0, 1) if np.isnan(values).all() else None
    image = panel.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="none")
    bar = panel.figure.colorbar(image, ax=panel, pad=0.03)
    bar.ax.tick_params(labelsize=SMALL - 1)
    bar.ax.locator_params(nbins=5)
    panel.set_title(f"{measure_title(name)}\n{UNITS.get(name, '')}", fontsize=SMALL)
    for axis, size in ((panel.xaxis, values.shape[1]), (panel.yaxis, values.shape[0])):
        axis.set_ticks(np.arange(0, size, max(1, -(-size // 8))))
        axis.set_tick_params(labelsize=SMALL)


def _label_pairs(panels: Sequence[Axes]) -> None:
    panels[0].set(yscale="log", ylabel="mean |q| times mean |k|")
    panels[1].set(ylabel="agreement with the whole head\n(share of its best keys)")
    panels[2].set(ylabel="mean contribution\n(attention score)", xscale="log")
    panels[2].set_xlabel("wavelength of the pair (tokens); slower to the right")
    panels[2].xaxis.set_major_formatter(lambda tokens, _: token_count(tokens))
    for panel in panels:
        panel.yaxis.label.set_fontsize(SMALL)
        panel.tick_params(labelsize=SMALL)


def _places(profile: HeadProfile, head: Head) -> np.ndarray:
    """Wavelength of each pair of a head's layer; a pair without rotation stands behind the slowest of the others."""
    tokens = profile.pairs.wavelengths[head.layer].numpy()
    tokens = tokens[~np.isnan(tokens)]
    slowest = tokens[np.isfinite(tokens)].max(initial=1.0)
    return np.where(np.isfinite(tokens), tokens, UNTURNED * slowest)


def _window_range(profile: HeadProfile) -> int:
    """The first range of distances beyond the window."""
    window = int(profile.provenance["settings"]["window"])
    return int(np.searchsorted(profile.edges.numpy()[:-1], window))


def _trained(profile: HeadProfile, given: int | None) -> tuple[int, str] | None:
    """The training length, or else the context, and its label."""
    length = given or (profile.provenance.get("extension") or {}).get("training_length")
    limit = length or profile.provenance["model"].get("context")
    return None if limit is None else (int(limit), f"{'training length' if length else 'context'}, {limit} tokens")


def _examples(profile: HeadProfile) -> list[Head]:
    """The clearest case of each of the names that most heads have."""
    names = sorted(profile.by_name, key=lambda name: (name == MIXED.name, -len(profile.by_name[name])))
    return [profile.by_name[name][0] for name in names[:SHOWN]]
