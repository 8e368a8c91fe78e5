"""Distance profiles in reports: the files of their folder, and their section of the page."""

from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_tables import DISTANCE_MEANINGS, ORDER, distance_line, distance_table
from positional_heads.results.record import json_rows
from positional_heads.results.tables import meanings
from positional_heads.views.distances import distance_curves
from positional_heads.views.figures import png
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.sections import Plot, Section, Table, plot

REPORTED_HEADS = 10
PLOTTED = "Attention, effect on the score, and dominant dimension where there is one, of some heads by distance."


def distance_files(profile: DistanceProfile) -> dict[str, bytes | str]:
    """Tables, plot and text of a distance profile, by the names of their files."""
    return {
        "distances.csv": profile.to_frame().to_csv(index=False),
        "distance_curves.csv": profile.curves().to_csv(index=False),
        "distances.png": png(distance_curves(profile), DPI),
        "distances.md": _text(profile),
    }


def distance_section(profile: DistanceProfile, number: int, dpi: int) -> Section:
    """What distance does to every head: the heads that look furthest, and curves of some."""
    table = distance_table(json_rows(profile.to_frame()), REPORTED_HEADS)
    plots: list[Plot] = [plot(distance_curves(profile), dpi, PLOTTED, PLOTTED)]
    return Section(
        f"distances-{number}",
        "What distance does to every head",
        verdict=profile.verdict,
        paragraphs=[distance_line(profile.provenance, profile.encodings), ORDER],
        glossary=meanings(table.columns, DISTANCE_MEANINGS),
        tables=[Table(f"The first {len(table.lines)} heads; a dash is an unknown number", table.cells)],
        plots=plots,
    )


def _text(profile: DistanceProfile) -> str:
    return f"""# What distance does to every head

{distance_line(profile.provenance, profile.encodings)}

**Verdict.** {profile.verdict}

{ORDER}

{distance_table(json_rows(profile.to_frame()), REPORTED_HEADS).markdown}

![attention, score and dominant dimension by distance](distances.png)

{last_line(profile)} `distances.csv` has every head, and `distance_curves.csv` the curves of every head.
"""
