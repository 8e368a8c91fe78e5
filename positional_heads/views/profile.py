"""Map of the mean contribution of each rotary pair at each distance."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.core.heads import Heads, as_heads
from positional_heads.core.rotary import wavelengths
from positional_heads.results.profile import ContributionProfile
from positional_heads.views.figures import DIVERGING, NORMAL, SMALL, Picture, readable, share_legend, wavelength_axis

COLUMNS = 64
PANELS = 4


@checked
def contribution_by_distance(
    profile: ContributionProfile, heads: Heads | None = None, *, bins: int = COLUMNS
) -> Figure:
    """Mean contribution of every pair at every distance: pairs from the fastest up, distance to the right.

    Red raises attention, blue lowers it. Columns are single distances first, wider ranges further out. The dotted line
    is half a turn of each pair; beyond it, one pair alone does not determine the distance.

    Args:
        profile: What `contribution_profile` returned.
        heads: Which of its heads; the first four when None.
        bins: Columns at most.

    Raises:
        ValueError: If a head is not in the profile.
    """
    heads = profile.heads[:PANELS] if heads is None else as_heads(heads)
    if not heads:
        msg = "no heads asked for: give at least one, or None for the first four"
        raise ValueError(msg)
    indices = [profile.index(head) for head in heads]
    shown = profile.binned(bins)
    columns = min(2, len(heads))
    rows = -(-len(heads) // columns)
    figure = Picture(figsize=(5.6 * columns + 0.4, 3.1 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, head, index in zip(panels, heads, indices, strict=False):
        _draw_map(panel, shown, index)
        panel.set_title(str(head), fontsize=NORMAL)
        wavelength_axis(panel, shown.frequencies[index])
    for panel in panels[len(heads) :]:
        panel.set_visible(False)
    title = f"Mean contribution of each rotary pair\n{readable(profile.model_name)}"
    share_legend(figure, panels[: len(heads)], title, columns=1)
    return figure


def _draw_map(panel: Axes, profile: ContributionProfile, index: int) -> None:
    values, edges = profile.mean[index].numpy(), profile.edges.numpy()
    panel.set_facecolor("0.85")
    largest = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    norm = CenteredNorm(0, halfrange=largest)
    image = panel.imshow(values, cmap=DIVERGING, norm=norm, aspect="auto", origin="lower", interpolation="none")
    bar = panel.figure.colorbar(image, ax=panel, pad=0.13)
    bar.set_label("attention score", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    half_turn = wavelengths(profile.frequencies[index]).numpy() / 2
    inside = half_turn < edges[-1]
    at = np.interp(half_turn[inside], edges, np.arange(len(edges)) - 0.5)
    label = "half a turn of each pair"
    panel.plot(at, np.flatnonzero(inside), color="black", linestyle=":", linewidth=1.2, label=label)
    ticks = _ticks(edges)
    panel.set_xticks(ticks, [str(edges[tick]) for tick in ticks], fontsize=SMALL)
    panel.set_xlabel("distance (tokens); wider columns further out", fontsize=SMALL)
    panel.set_ylabel("pair index; higher is slower", fontsize=SMALL)


def _ticks(edges: np.ndarray) -> list[int]:
    """Columns at which the distance has doubled, far enough apart for their labels."""
    chosen = [0]
    for column, first in enumerate(edges[:-1]):
        if column - chosen[-1] >= max(4, len(edges) // 12) and first >= 2 * edges[chosen[-1]]:
            chosen.append(column)
    return chosen
