"""Head profiles in reports: the files of their folder, and their section of the page."""

from typing import Any

from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.profile_tables import (
    PAIR_MEANINGS,
    named_lines,
    order_in_words,
    profile_file_legend,
    profile_line,
    profile_table,
)
from positional_heads.results.record import json_rows
from positional_heads.results.tables import beats_null, meanings, order_of_heads, ranked_rows
from positional_heads.views.figures import png
from positional_heads.views.head_profile import measure_correlations, pair_curves, profile_maps
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.sections import Explored, Plot, Section, Table, plot

REPORTED_HEADS = 10
DIGITS = "%.6g"
"""Numbers of pairs.csv, which has a row for every pair of every head: who needs more has the tensors."""


def profile_files(profile: HeadProfile) -> dict[str, bytes | str]:
    """Tables, plots and text of a head profile, by the names of their files."""
    return {
        "profile.csv": profile.to_frame().to_csv(index=False),
        "pairs.csv": profile.pair_frame().to_csv(index=False, float_format=DIGITS),
        "correlations.csv": profile.correlations().to_csv(index_label="measure"),
        "profile.png": png(profile_maps(profile), DPI),
        "correlations.png": png(measure_correlations(profile), DPI),
        **({"pairs.png": png(pair_curves(profile), DPI)} if profile.by_name else {}),
        "profile.md": _profile_text(profile),
    }


def profile_section(profile: HeadProfile, number: int, dpi: int) -> Section:
    """What every head does: the heads that look furthest, the heads of each name, and plots."""
    rows = json_rows(profile.to_frame())
    table = profile_table(rows, REPORTED_HEADS)
    return Section(
        f"profile-{number}",
        "What every head does",
        verdict=profile.verdict,
        paragraphs=[profile_line(profile.provenance), order_in_words(rows)],
        glossary=meanings(table.columns),
        tables=[
            Table(f"The first {len(table.lines)} heads; a dash is an unknown number", table.cells),
            *_beating(rows),
        ],
        plots=_plots(profile, dpi),
        points=named_lines(profile.by_name),
        explored=Explored("the attention of", "mass", [found[0] for found in profile.by_name.values()]),
    )


def _beating(rows: list[dict[str, Any]]) -> list[Table]:
    """All heads that beat their null with what they are, folded, if any do."""
    beating = [row for row in ranked_rows(rows) if beats_null(row)]
    if not beating:
        return []
    table = profile_table(beating, len(beating))
    order = {row["name"]: place for place, row in enumerate(beating)}
    cells = [table.cells[0], *sorted(table.cells[1:], key=lambda cells: order[cells[0]])]
    return [Table(order_of_heads(rows, len(beating)), cells, folded=True)]


def _plots(profile: HeadProfile, dpi: int) -> list[Plot]:
    layers, heads = profile.key_heads.shape
    named = "; ".join(f"{len(found)} {name}" for name, found in profile.by_name.items())
    drawn = [
        plot(
            profile_maps(profile),
            dpi,
            f"Maps of the measures of {layers} layers by {heads} heads, each with its own colours. Names: {named}.",
            "Measures of every head, layers down and heads across; each map has its own colours.",
        ),
        plot(
            measure_correlations(profile),
            dpi,
            f"Rank correlations over heads of {len(profile.names)} measures, as in correlations.csv.",
            "Rank correlation over heads of every two measures.",
        ),
    ]
    if profile.by_name:
        said = "Norms, agreement and mean contribution of each rotary pair, for a clear case of the commonest names."
        drawn.append(plot(pair_curves(profile), dpi, said, said))
    return drawn


def _profile_text(profile: HeadProfile) -> str:
    frame = profile.to_frame()
    rows = json_rows(frame)
    named = "\n".join(f"- {line}" for line in named_lines(profile.by_name))
    pairs = "; ".join(f"{name}: {meaning}" for name, meaning in PAIR_MEANINGS.items())
    curves = "![rotary pairs of some heads](pairs.png)\n\n" if profile.by_name else ""
    return f"""# What every head does

{profile_line(profile.provenance)}

**Verdict.** {profile.verdict}

{order_in_words(rows)}

{profile_table(rows, REPORTED_HEADS).markdown}

Heads of each name, the clearest cases first:

{named or "- none"}

![measures of every head](profile.png)

![rank correlations of the measures](correlations.png)

{curves}`profile.csv` has every head, and further columns: {profile_file_legend([*frame])}

`pairs.csv` has every rotary pair of every head: {pairs}. `correlations.csv` has the rank correlations over heads of
every two measures.

{last_line(profile)}
"""
