"""The sections of the report's page, one for each kind of result, as plain data for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from positional_heads.results.ablation import AblationStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.record import json_rows
from positional_heads.results.scores import HeadScores
from positional_heads.results.tables import (
    beats_null,
    change_line,
    extrapolation_line,
    extrapolation_table,
    heads_table,
    meanings,
    order_of_heads,
    ranked_rows,
    scores_line,
    single_heads_table,
    study_line,
    study_table,
    text_label,
)
from positional_heads.results.text import rounded, signed
from positional_heads.results.verdicts import FEWEST_POINTS
from positional_heads.views.ablation import dose_response
from positional_heads.views.attention import attention_view
from positional_heads.views.contributions import contribution_view
from positional_heads.views.extrapolation import extrapolation_curves, method_comparison, methods_told_apart
from positional_heads.views.figures import png
from positional_heads.views.page import picture
from positional_heads.views.scores import (
    SHOWN,
    allocation_curves,
    notable_in_words,
    rho_distribution,
    rho_heat_map,
)
from positional_heads.views.themed import WIDEST, narrowed, themed_svg
from positional_heads.views.tokens import token_view
from positional_heads.views.view import View

TABLED_HEADS, UNFOLDED = 10, 15
"""Heads in a table, and the most that beat their null of which all are in it, unfolded."""
ATTENTION_HEADS = 3
PIXELS_PER_INCH = 100
VECTOR = 0
"""In place of a resolution: pictures are drawn from lines, not from pixels."""


@dataclass(frozen=True)
class Plot:
    """A picture inside the page, with a text alternative; `width` in pixels of the screen, `narrow` for a phone."""

    address: str
    alt: str
    caption: str
    width: int
    narrow: str = ""

    @property
    def pixels(self) -> bool:
        """Whether it is a picture of pixels, whose colours the page turns around in the dark."""
        return "png" in self.address[:20]


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first column names the rows. A folded one opens on request, and scrolls."""

    caption: str
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Code:
    """Code to copy, and a sentence below it."""

    heading: str
    lines: str
    note: str = ""


@dataclass(frozen=True)
class Explored:
    """What of some heads the explorer shows, and in which of its parts."""

    what: str
    part: str
    heads: Sequence[object]


@dataclass(frozen=True)
class Section:
    """One part of the page; `name` is its anchor."""

    name: str
    title: str
    verdict: str = ""
    paragraphs: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    glossary: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    views: Sequence[View] = ()
    points: Sequence[str] = ()
    codes: Sequence[Code] = ()
    explored: Explored | None = None


def run_section(
    provenance: Mapping[str, Any], files: Sequence[str], *, of_what: str = "", settings: bool = True
) -> Section:
    """What was run: model, data, settings, versions.

    Args:
        provenance: The provenance.
        files: Names of the files on the page.
        of_what: What text and settings belong to, where that is not the result itself, e.g. " of the profile".
        settings: Whether to list the settings.
    """
    model, data = provenance.get("model", {}), provenance.get("data", {})
    listed = {**provenance.get("settings", {}), **provenance.get("ablation", {})} if settings else {}
    facts = {
        "Model": model.get("name"),
        "Architecture": model.get("architecture"),
        "Size": f"{model['layers']} layers of {model['heads']} heads" if "layers" in model else None,
        "Revision": model.get("revision"),
        "Weights": _origin_line(model.get("origin") or {}),
        "Precision": model.get("dtype"),
        "Quantised weights": model.get("quantization"),
        "Adapter": model.get("adapter"),
        "Context": f"{model['context']} tokens" if "context" in model else None,
        "Fingerprint of the weights": model.get("weights"),
        f"Text{of_what}": _text_line(data),
        f"Fingerprint of the token ids{of_what}": data.get("sha256"),
        f"Settings{of_what}": ", ".join(f"{name} {value}" for name, value in listed.items() if value is not None),
        "Versions": ", ".join(f"{name} {number}" for name, number in provenance.get("versions", {}).items()),
        "Result files": ", ".join(files),
    }
    return Section("run", "What was run", facts=[(name, str(value)) for name, value in facts.items() if value])


def _origin_line(origin: Mapping[str, Any]) -> str | None:
    return f"{origin.get('storage')}, {origin.get('file')}, sha256 {origin.get('sha256')}" if origin else None


def scores_section(scores: HeadScores, dpi: int) -> Section:
    """Scores of all heads: tables of those that beat their null, or else of the top ones, and plots."""
    table = json_rows(scores.to_frame())
    ranked = ranked_rows(table)
    plots = [
        plot(
            rho_heat_map(scores),
            dpi,
            _rho_in_words(scores, ranked),
            _maps_explained(scores),
        )
    ]
    if ranked:
        plots.append(
            plot(
                rho_distribution(scores),
                dpi,
                f"Distribution of rho over {len(ranked)} heads, and of its null.",
                "Distribution of rho over heads, and with positions shuffled (geometry alone).",
            )
        )
    paragraphs = [scores_line(scores.provenance)]
    if ranked and scores.curve is None:
        paragraphs.append("Curves over distance were left out when these scores were saved (without_curves).")
    elif ranked:
        shown = ", ".join(map(str, scores.notable(SHOWN)))
        plots.append(
            plot(
                allocation_curves(scores),
                dpi,
                f"Mean dominant dimension over distance in tokens, for {shown}, with the band of the shuffled null.",
                f"Mean dominant dimension over distance, for {notable_in_words(scores)} ({shown}).",
            )
        )
    return Section(
        "scores",
        "Scores of the heads",
        paragraphs=paragraphs,
        glossary=meanings(heads_table(table, 0).columns),
        tables=scores_tables(table),
        plots=plots,
        explored=Explored("the curves of", "curves", scores.notable(SHOWN)),
    )


def scores_tables(table: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The first heads and, where more beat their null, all that do, folded.

    Args:
        table: Rows of `HeadScores.to_frame`.
    """
    beating = sum(map(beats_null, table))
    shown = max(TABLED_HEADS, beating) if beating <= UNFOLDED else TABLED_HEADS
    tables = [Table(f"{order_of_heads(table, shown)}; a dash is an unknown number", heads_table(table, shown).cells)]
    if beating > shown:
        tables.append(Table(order_of_heads(table, beating), heads_table(table, beating).cells, folded=True))
    return tables


def examples_section(examples: HeadExamples) -> Section:
    """Some heads on some text, token by token."""
    query = examples.n_detailed - 1
    return Section(
        "tokens",
        "Heads, token by token",
        paragraphs=[
            f"{', '.join(map(str, examples.heads))} on the first {len(examples.tokens)} tokens of a text: an "
            "illustration, not evidence. A space at either end of a token is shown as \u00b7, a newline as \u21b5.",
        ],
        views=[
            attention_view(examples, examples.heads[:ATTENTION_HEADS]),
            token_view(examples, "dominant"),
            token_view(examples, "distance"),
            token_view(examples, "contribution"),
            contribution_view(examples, examples.heads[0], query),
        ],
        explored=Explored("a text with", "tokens", examples.heads),
    )


def ablation_section(study: AblationStudy, number: int, dpi: int) -> Section:
    """An ablation study: effects against controls."""
    measure, contrasts = study.measures[0], json_rows(study.contrasts())
    effects = json_rows(study.effects())
    table = study_table(effects, contrasts)
    caption = f"Change of {measure} by range and number of ablated heads"
    if not study.sizes:
        table = single_heads_table(json_rows(study.by_head()), TABLED_HEADS)
        caption = f"Change of {measure} by ablating one head, the {TABLED_HEADS} with the most harm"
    harm = [row for row in contrasts if row["k"] == "all"]
    means = "; ".join(f"{row['reach']}: {signed(row['top'])}" for row in harm if row["top"] is not None)
    return Section(
        f"ablation-{number}",
        f"Ablation: {study.task}",
        verdict=study.verdict,
        paragraphs=[
            study_line(study.provenance, len(study.rows), len(study.sets)),
            change_line(measure, effects, whole="With all heads"),
        ],
        glossary=meanings(table.columns),
        tables=[Table(caption, table.cells)],
        plots=[]
        if not study.sizes
        else [
            plot(
                dose_response(study),
                dpi,
                f"Change of {measure} by number of ablated heads. Mean of the top heads: {means or 'unknown'}.",
                "Effect of ablating the top heads and the controls, with intervals; each grey point is a random set.",
            )
        ],
        points=study.notes,
        explored=Explored("the effects of", "effects", study.ranking[:SHOWN]),
    )


def extrapolation_section(study: ExtrapolationStudy, number: int, dpi: int) -> Section:
    """An extrapolation study: allocation and task beyond the training length."""
    table = json_rows(study.to_frame())
    heads = [str(head) for head in study.heads]
    names = ", ".join(dict.fromkeys(study.labels))
    plots = [
        plot(
            extrapolation_curves(study),
            dpi,
            f"Mean dominant dimension over distance under {names}, across the training length of "
            f"{study.training_length} tokens.",
            "Mean dominant dimension over distance under each method; the dashed line is the training length.",
        ),
        plot(
            methods_told_apart(study),
            dpi,
            f"Number of distances that each rotary pair tells apart in bfloat16 under {names}.",
            "Distances that each pair tells apart under each method.",
        ),
    ]
    if len(table) >= FEWEST_POINTS:
        plots.insert(
            1,
            plot(
                method_comparison(study),
                dpi,
                f"Task efficiency against measures of allocation, {len(table)} methods and lengths.",
                "Task efficiency against three measures of allocation.",
            ),
        )
    return Section(
        f"extrapolation-{number}",
        "Beyond the training length",
        verdict=study.verdict,
        paragraphs=[extrapolation_line(study.provenance, study.training_length, heads)],
        glossary=meanings(table[0]),
        tables=[Table("Allocation and task by method and length", extrapolation_table(table).cells)],
        plots=plots,
        points=study.notes,
        explored=Explored("the extensions of", "extensions", study.heads),
    )


def _text_line(data: Mapping[str, Any]) -> str | None:
    parts = [named] if (named := text_label({"data": data})) else []
    parts += [f"{data[key]:,} {key}" for key in ("sequences", "tokens") if key in data]
    if "longest" in data:
        parts.append(f"at most {data['longest']:,} tokens each")
    if "drawn" in data:
        parts.append(f"drawn at random with seed {data['drawn']['seed']}")
    return ", ".join(parts) or None


def _rho_in_words(scores: HeadScores, ranked: Sequence[Mapping[str, Any]]) -> str:
    layers, heads = scores.rho.shape
    if not ranked:
        return f"Heat map of {layers} layers by {heads} heads; no head has a score."
    low, high = (pick(ranked, key=lambda row: row["rho"]) for pick in (min, max))
    beating = "no null was computed" if scores.null is None else f"{int(scores.beats_null().sum())} beat their null"
    return (
        f"Heat map of rho, {layers} layers by {heads} heads, from {rounded(low['rho'])} ({low['name']}) to "
        f"{rounded(high['rho'])} ({high['name']}); {beating}{_excess_in_words(ranked)}."
    )


def _maps_explained(scores: HeadScores) -> str:
    """What the colours of each map mean, and the marks on both."""
    rho = "Rho of every head: in red heads D shifts to slower pairs with distance, in blue ones to faster pairs."
    if scores.null is None:
        return rho
    marks = "a dot marks a head that beats its null with a positive rho"
    if scores.control is not None:
        marks += f", a diamond one that stays: it also does so without the first {scores.control_keys} keys"
    return (
        f"{rho} Excess over the null: the rho of red heads is higher than with shuffled positions, that of blue ones "
        f"lower. On both maps {marks}."
    )


def _excess_in_words(ranked: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in ranked if row.get("excess") is not None]
    if not known:
        return ""
    low, high = (pick(known, key=lambda row: row["excess"]) for pick in (min, max))
    return (
        f"; beside it, the excess over the null, from {rounded(low['excess'])} ({low['name']}) to "
        f"{rounded(high['excess'])} ({high['name']})"
    )


def plot(figure: Figure, dpi: int, alt: str, caption: str) -> Plot:
    """A figure as a picture inside the page, which follows the reader's scheme and has a narrow layout if it is wide.

    Args:
        figure: The figure; it is not to be used again.
        dpi: `VECTOR`, or the resolution of a picture of pixels, which takes less room where a plot has many points.
        alt: What it shows, for who cannot see it.
        caption: What stands below it.
    """
    width = round(PIXELS_PER_INCH * figure.get_figwidth())
    if dpi != VECTOR:
        return Plot(picture(png(figure, dpi)), alt, caption, width)
    wide = picture(themed_svg(figure), "svg+xml")
    narrow = picture(themed_svg(narrowed(figure), trimmed=True), "svg+xml") if figure.get_figwidth() > WIDEST else ""
    return Plot(wide, alt, caption, width, narrow)
