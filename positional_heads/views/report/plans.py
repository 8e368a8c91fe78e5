"""Head plans and their studies in report folders: tables, plot and text, by the names of their files."""

import io

from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.pair_plan import PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.printed_plans import key_heads_table, pairs_table, plan_table, rows_left_out
from positional_heads.results.record import json_rows
from positional_heads.results.tables import change_line
from positional_heads.views.figures import png
from positional_heads.views.plans import loss_by_budget
from positional_heads.views.report.last_line import DPI, last_line


def head_plan_files(plan: HeadPlan) -> dict[str, bytes | str]:
    """Table and text of a plan."""
    return {"key_heads.csv": plan.to_frame().to_csv(index=False), "plan.md": _plan_text(plan)}


def pair_plan_files(plan: PairPlan) -> dict[str, bytes | str]:
    """Table and text of a plan of rotary pairs."""
    notes = "".join(f"- {note}\n" for note in plan.notes)
    text = f"""# Pair plan

{plan.description}

**Verdict.** {plan.verdict}

{pairs_table(plan.digits).markdown}
{notes}
{last_line(plan)} `pairs.csv` has every pair of every key head with its wavelength and its value.
"""
    return {"pairs.csv": plan.to_frame().to_csv(index=False), "pairs.md": text}


def plan_study_files(study: PlanStudy) -> dict[str, bytes | str]:
    """Tables, plot and text of a study."""
    answers = io.BytesIO()
    study.to_frame().to_parquet(answers, index=False)
    return {
        "effects.csv": study.effects().to_csv(index=False),
        "contrasts.csv": study.contrasts().to_csv(index=False),
        "differences.csv": study.differences().to_csv(index=False),
        "answers.parquet": answers.getvalue(),
        "loss_by_budget.png": png(loss_by_budget(study), DPI),
        "plans.md": _study_text(study),
    }


def _plan_text(plan: HeadPlan) -> str:
    notes = "".join(f"- {note}\n" for note in plan.notes)
    return f"""# Head plan

{plan.description}

**Verdict.** {plan.verdict}

{key_heads_table(json_rows(plan.to_frame())).markdown}
{notes}
{last_line(plan)} `key_heads.csv` has every key head with its readers and its value.
"""


def _study_text(study: PlanStudy) -> str:
    notes = "".join(f"- {note}\n" for note in study.notes)
    contrasts = json_rows(study.contrasts())
    left_out = "".join(f"\n{line}\n" for line in rows_left_out(contrasts, study.planned))
    return f"""# Plans compared

{study.description}

**Verdict.** {study.verdict}

{change_line(study.measures[0], json_rows(study.effects()), f" with {study.planned}")}

{plan_table(contrasts, study.planned).markdown}
{left_out}
![what plans cost by budget](loss_by_budget.png)

{notes}
{last_line(study)} `answers.parquet` has every answer's numbers as a table.
"""
