"""Report folders: a result with its tables as CSV, its plots as PNG, and a page of text."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from positional_heads.core.arguments import checked
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Comparison
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import BESIDE
from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.pair_plan import PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.recommendation import Recommendation
from positional_heads.results.record import Record, json_rows
from positional_heads.results.scores import HeadScores
from positional_heads.results.stability import Stability
from positional_heads.results.tables import (
    beats_null,
    change_line,
    extrapolation_line,
    extrapolation_table,
    file_legend,
    heads_table,
    order_of_heads,
    scores_line,
    single_heads_table,
    study_line,
    study_table,
)
from positional_heads.results.text import rounded, signed
from positional_heads.views.ablation import dose_response
from positional_heads.views.extrapolation import extrapolation_curves, methods_told_apart
from positional_heads.views.figures import png
from positional_heads.views.report.comparison import comparison_files, stability_files
from positional_heads.views.report.distances import distance_files
from positional_heads.views.report.emergence import emergence_files
from positional_heads.views.report.head_profile import profile_files
from positional_heads.views.report.jumps import jump_files, response_files
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.manipulation import manipulation_files
from positional_heads.views.report.plans import head_plan_files, pair_plan_files, plan_study_files
from positional_heads.views.report.recommendation import recommendation_files
from positional_heads.views.scores import allocation_curves, rho_heat_map

REPORTED_HEADS = 10
DOSE_RESPONSE = "![effect by number of heads](dose_response.png)"


Reported = (
    HeadScores
    | HeadProfile
    | DistanceProfile
    | AblationStudy
    | ExtrapolationStudy
    | Comparison
    | Stability
    | HeadPlan
    | PairPlan
    | PlanStudy
    | ManipulationStudy
    | Recommendation
    | EmergenceStudy
    | JumpStudy
    | DistanceResponse
)
"""Results that have a report folder."""


@checked
def write_report(
    result: HeadScores
    | HeadProfile
    | DistanceProfile
    | AblationStudy
    | ExtrapolationStudy
    | Comparison
    | Stability
    | HeadPlan
    | PairPlan
    | PlanStudy
    | ManipulationStudy
    | Recommendation
    | EmergenceStudy
    | JumpStudy
    | DistanceResponse,
    folder: str | Path,
) -> list[Path]:
    """Write a result with its tables, plots and text to a folder, each file complete or not at all.

    Args:
        result: What `score_heads`, `profile_heads`, `distance_profile`, `compare`, `compare_all`, `ablation_study`,
            `extrapolation_study`, `window_plan`, `pair_plan`, `plan_study`, `pair_study`, `manipulation_study`,
            `recommend_extension`, `emergence_study`, `jump_study` or `distance_response` returned.
        folder: The folder; made if missing.

    Returns:
        The files written, the result first.
    """
    folder = Path(folder)
    files = [result.save(folder / result.saved_as.file_name)]
    for name, data in FILES[type(result)](result).items():
        assert name in BESIDE[result.saved_as], name  # or it would stay where the result is replaced
        write_atomically(folder / name, data)
        files.append(folder / name)
    return files


def _scores_files(scores: HeadScores) -> dict[str, bytes | str]:
    return {
        "heads.csv": scores.to_frame().to_csv(index=False),
        "rho.png": png(rho_heat_map(scores), DPI),
        **({} if scores.curve is None else {"curves.png": png(allocation_curves(scores), DPI)}),
        "report.md": _scores_text(scores),
    }


def _ablation_files(study: AblationStudy) -> dict[str, bytes | str]:
    answers = io.BytesIO()
    study.to_frame().to_parquet(answers, index=False)
    singles = study.by_head()
    return {
        "effects.csv": study.effects().to_csv(index=False),
        "contrasts.csv": study.contrasts().to_csv(index=False),
        **({} if singles.empty else {"single_heads.csv": singles.to_csv(index=False)}),
        "answers.parquet": answers.getvalue(),
        **({"dose_response.png": png(dose_response(study), DPI)} if study.sizes else {}),
        "ablation.md": _ablation_text(study),
    }


def _extrapolation_files(study: ExtrapolationStudy) -> dict[str, bytes | str]:
    return {
        "extrapolation.csv": study.to_frame().to_csv(index=False),
        "link.csv": study.link().to_csv(index=False),
        "told_apart.csv": study.told_apart().to_csv(index=False),
        "told_apart.png": png(methods_told_apart(study), DPI),
        "extrapolation.png": png(extrapolation_curves(study), DPI),
        "extrapolation.md": _extrapolation_text(study),
    }


def _extrapolation_text(study: ExtrapolationStudy) -> str:
    rows = json_rows(study.to_frame())
    plain = ", ".join(f"{name} {rounded(value)}" for name, value in study.plain.items())
    notes = "".join(f"- {note}\n" for note in study.notes)
    return f"""# Length extrapolation

{extrapolation_line(study.provenance, study.training_length, [str(head) for head in study.heads])}

**Verdict.** {study.verdict}

{extrapolation_table(rows).markdown}

![allocation beyond the training length](extrapolation.png)

![distances that each pair tells apart under each method](told_apart.png)

Within the training length, without extension: {plain}.
{notes}
{last_line(study)}
"""


def _ablation_text(study: AblationStudy) -> str:
    measure, effects = study.measures[0], json_rows(study.effects())
    overlap = ", ".join(f"{row.jaccard:.2f} for {row.k}" for row in study.overlap().itertuples())
    correlations = ", ".join(f"{names} {signed(value, 2)}" for names, value in study.correlations.items())
    notes = "\n".join(f"- {note}" for note in study.notes)
    if study.sizes:
        table = f"{study_table(effects, json_rows(study.contrasts())).markdown}\n\n{DOSE_RESPONSE}"
    else:
        table = single_heads_table(json_rows(study.by_head()), REPORTED_HEADS).markdown
    return f"""# Ablation of {"the top heads" if study.sizes else "single heads"}

{study_line(study.provenance, len(study.rows), len(study.sets))}

**Verdict.** {study.verdict}

{change_line(measure, effects, " when heads are ablated", "With all heads")}

{table}

Overlap (Jaccard) of top and retrieval heads: {overlap or "unknown"}. Rank correlations over heads:
{correlations or "unknown"}.
{notes}

{last_line(study)} `answers.parquet` has every answer's numbers as a table.
"""


def _scores_text(scores: HeadScores) -> str:
    table = json_rows(scores.to_frame())
    shown = max(REPORTED_HEADS, sum(map(beats_null, table)))
    curves = "![mean dominant dimension over distance](curves.png)"
    if scores.curve is None:
        curves = "Curves over distance were left out when these scores were saved."
    return f"""# Positional Heads

{scores_line(scores.provenance)}

**Verdict.** {scores.verdict}

{order_of_heads(table, shown)}.

{heads_table(table, shown).markdown}

![rho{" and excess" * (scores.null is not None)} of every head](rho.png)

{curves}

`heads.csv` has every head, and further columns: {file_legend()}

A high rho alone is not evidence that a head uses distance: geometry alone moves the dominant dimension too (see
null). To show that a head matters for long range, ablate it.

{last_line(scores)}
"""


FILES: dict[type[Record], Callable[[Any], dict[str, bytes | str]]] = {
    HeadScores: _scores_files,
    HeadProfile: profile_files,
    DistanceProfile: distance_files,
    AblationStudy: _ablation_files,
    ExtrapolationStudy: _extrapolation_files,
    Comparison: comparison_files,
    Stability: stability_files,
    HeadPlan: head_plan_files,
    PairPlan: pair_plan_files,
    PlanStudy: plan_study_files,
    ManipulationStudy: manipulation_files,
    Recommendation: recommendation_files,
    EmergenceStudy: emergence_files,
    JumpStudy: jump_files,
    DistanceResponse: response_files,
}
"""Tables, plots and text of each kind of result."""
