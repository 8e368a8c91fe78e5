"""Report folders: a result with its tables as CSV, its plots as PNG, and a page of text."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from positional_heads.results.ablation import AblationStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import ABLATION, EXTRAPOLATION, SCORES, read_result, write_atomically
from positional_heads.results.record import json_rows
from positional_heads.results.scores import HeadScores
from positional_heads.results.tables import (
    extrapolation_line,
    extrapolation_table,
    heads_table,
    scores_line,
    study_line,
    study_table,
)
from positional_heads.views.ablation import dose_response
from positional_heads.views.extrapolation import extrapolation_curves, methods_told_apart
from positional_heads.views.scores import allocation_curves, rho_heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORTED_HEADS = 10


def write_report(scores: HeadScores, folder: Path) -> list[Path]:
    """Write result, table, plots and text to a folder, each file complete or not at all.

    Args:
        scores: What `score_heads` returned.
        folder: The folder; made if missing.

    Returns:
        The files written, the result first.
    """
    result = scores.save(folder / SCORES.file_name)
    content = {
        "heads.csv": scores.to_frame().to_csv(index=False).encode(),
        "rho.png": _png(rho_heat_map(scores)),
        "curves.png": _png(allocation_curves(scores)),
        "report.md": _text(result).encode(),
    }
    return [result, *_write_files(folder, content)]


def write_ablation_report(study: AblationStudy, folder: Path) -> list[Path]:
    """Write an ablation study, its tables, plot and text to a folder, each file complete or not at all.

    Args:
        study: What `ablation_study` returned.
        folder: The folder; made if missing.

    Returns:
        The files written, the study first.
    """
    result = study.save(folder / ABLATION.file_name)
    answers = io.BytesIO()
    study.to_frame().to_parquet(answers, index=False)
    content = {
        "effects.csv": study.effects().to_csv(index=False).encode(),
        "contrasts.csv": study.contrasts().to_csv(index=False).encode(),
        "single_heads.csv": study.by_head().to_csv(index=False).encode(),
        "answers.parquet": answers.getvalue(),
        "dose_response.png": _png(dose_response(study)),
        "ablation.md": _ablation_text(study).encode(),
    }
    return [result, *_write_files(folder, content)]


def write_extrapolation_report(study: ExtrapolationStudy, folder: Path) -> list[Path]:
    """Write an extrapolation study, its tables, plot and text to a folder, each file complete or not at all.

    Args:
        study: What `extrapolation_study` returned.
        folder: The folder; made if missing.

    Returns:
        The files written, the study first.
    """
    result = study.save(folder / EXTRAPOLATION.file_name)
    content = {
        "extrapolation.csv": study.to_frame().to_csv(index=False).encode(),
        "link.csv": study.link().to_csv(index=False).encode(),
        "told_apart.csv": study.told_apart().to_csv(index=False).encode(),
        "told_apart.png": _png(methods_told_apart(study)),
        "extrapolation.png": _png(extrapolation_curves(study)),
        "extrapolation.md": _extrapolation_text(study).encode(),
    }
    return [result, *_write_files(folder, content)]


def _write_files(folder: Path, content: dict[str, bytes]) -> list[Path]:
    for name, data in content.items():
        write_atomically(folder / name, data)
    return [folder / name for name in content]


def _extrapolation_text(study: ExtrapolationStudy) -> str:
    rows = json_rows(study.to_frame())
    versions = ", ".join(f"{name} {number}" for name, number in study.provenance["versions"].items())
    plain = ", ".join(f"{name} {value:.3f}" for name, value in study.plain.items())
    return f"""# Length extrapolation

{extrapolation_line(study.provenance, study.training_length, [str(head) for head in study.heads])}

**Verdict.** {study.verdict}

{extrapolation_table(rows, markdown=True)}

![allocation beyond the training length](extrapolation.png)

![distances that each pair tells apart under each method](told_apart.png)

Within the training length, without extension: {plain}.

Made with {versions}. Everything is in `{EXTRAPOLATION.file_name}`:
`positional_heads.ExtrapolationStudy.load("{EXTRAPOLATION.file_name}")`.
"""


def _ablation_text(study: AblationStudy) -> str:
    measure, effects = study.measures[0], json_rows(study.effects())
    plain = [row for row in effects if row["kind"] == "none" and row["reach"] in {"long", "short"}]
    levels = ", ".join(f"{row['reach']} {row['effect']:.3f}" for row in plain)
    overlap = ", ".join(f"{row.jaccard:.2f} for {row.k}" for row in study.overlap().itertuples())
    correlations = ", ".join(f"{names} {value:+.2f}" for names, value in study.correlations.items())
    versions = ", ".join(f"{name} {number}" for name, number in study.provenance["versions"].items())
    notes = "\n".join(f"- {note}" for note in study.notes)
    return f"""# Ablation of the top heads

{study_line(study.provenance, len(study.rows), len(study.sets))}

**Verdict.** {study.verdict}

Change of {measure} when heads are ablated (with all heads: {levels}); negative is harm.

{study_table(effects, json_rows(study.contrasts()), markdown=True)}

![effect by number of heads](dose_response.png)

Overlap (Jaccard) of top and retrieval heads: {overlap or "not known"}. Rank correlations over heads:
{correlations or "not known"}.
{notes}

Made with {versions}. Every answer's numbers are in `answers.parquet`, everything else in `{ABLATION.file_name}`:
`positional_heads.AblationStudy.load("{ABLATION.file_name}")`.
"""


def _text(result: Path) -> str:
    content, _ = read_result(result, SCORES)
    versions = ", ".join(f"{name} {number}" for name, number in content["provenance"]["versions"].items())
    return f"""# Positional Heads

{scores_line(content["provenance"])}

**Verdict.** {content["verdict"]}

{heads_table(content["table"], REPORTED_HEADS, markdown=True)}

![rho of every head](rho.png)

![mean dominant dimension over distance](curves.png)

A high rho alone is not evidence that a head carries distance: geometry alone moves the dominant dimension too (see
null). To show that a head matters for long range, ablate it.

Made with {versions}. Everything is in `{SCORES.file_name}`: `positional_heads.HeadScores.load("{SCORES.file_name}")`.
"""


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
