"""Plot of a recommendation: what each method gains on long texts and costs on short ones, by its factor."""

from math import isfinite

from matplotlib.figure import Figure

from positional_heads.core.arguments import checked
from positional_heads.results.recommendation import Recommendation
from positional_heads.results.text import rounded
from positional_heads.views.figures import MARKERS, NORMAL, PALETTE, Picture, readable, share_legend

WIDE = 5.0
"""How many times the median change the largest may be before the axis of changes becomes logarithmic above 0.1."""

ASIDE = 0.015
"""How far methods of one factor stand apart, as a share of the span of factors."""


@checked
def loss_by_factor(made: Recommendation) -> Figure:
    """Change of loss by factor, one line per method, on long texts and on short ones, with intervals over sequences.

    A method without a factor stands where its factor would be target over training length.

    Args:
        made: What `recommend_extension` returned.

    Raises:
        ValueError: If there was nothing to do, so that no candidate was tried.
    """
    table = made.to_frame()
    if table.empty:
        msg = f"no candidate was tried, so there is no loss by factor: {made.verdict}"
        raise ValueError(msg)
    tried, ratio = table.iloc[1:], made.target_length / made.training_length
    figure = Picture(figsize=(9.8, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    factors = sorted({one for one in tried["factor"] if isfinite(one)} | {ratio})
    span = max(factors[-1] - factors[0], factors[0] / 2)  # with one factor, its axis is as wide as half of it
    titles = {
        "loss": f"tokens {made.training_length} to {made.target_length} of long texts",
        "within": f"short texts, of {made.training_length} tokens",
    }
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        changes = tried[f"{name}_change"]
        for number, (method, rows) in enumerate(tried.groupby("method", sort=False)):
            own = rows.assign(factor=rows["factor"].fillna(ratio)).sort_values("factor")
            across = own["factor"] + ASIDE * span * (number - (tried["method"].nunique() - 1) / 2)
            look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
            panel.plot(across, own[f"{name}_change"], markersize=5, label=readable(str(method)), **look)
            panel.vlines(across, own[f"{name}_low"], own[f"{name}_high"], color=look["color"], linewidth=1.2, alpha=0.8)
        panel.axhline(0, color="black", linewidth=0.7)
        panel.axvline(ratio, color="0.5", linestyle="--", linewidth=1, label="target / training length")
        if len(changes) and changes.abs().max() > max(WIDE * changes.abs().median(), 0.2):
            panel.set_yscale("symlog", linthresh=0.1)
        panel.set_title(f"{title}; without extension {rounded(float(table[name].iloc[0]))}", fontsize=NORMAL)
        panel.set_xlabel("factor: tokens of context / tokens of training", fontsize=NORMAL)
        panel.set_xlim((factors[0] + factors[-1] - 1.3 * span) / 2, (factors[0] + factors[-1] + 1.3 * span) / 2)
        panel.set_xticks(factors, [f"{one:g}" for one in factors])
        panel.grid(alpha=0.25)
    title = f"{readable(made.model_name)}, trained on {made.training_length} tokens, to {made.target_length}"
    share_legend(figure, panels, title, columns=6)
    figure.supylabel("change of loss (nats per token)\npositive is harm", fontsize=NORMAL, parse_math=False)
    return figure
