"""Manipulation studies in report folders and on the report's page: tables, plot and text, and the command."""

import io
from typing import get_args

from positional_heads.results.ablation import RankBy
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.printed_manipulations import (
    CHOSEN,
    RANDOM_PAIRS,
    contrast_table,
    done,
    dose_table,
    draws_line,
)
from positional_heads.results.record import json_rows
from positional_heads.results.tables import change_line
from positional_heads.results.text import signed
from positional_heads.views.ablation import dose_response
from positional_heads.views.figures import png
from positional_heads.views.report.commands import (
    loading_options,
    model_name,
    not_repeated,
    printed,
)
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.plan_commands import common_task_options
from positional_heads.views.report.sections import Section, Table, plot


def manipulation_files(study: ManipulationStudy) -> dict[str, bytes | str]:
    """Tables, plot and text of a study."""
    answers = io.BytesIO()
    study.to_frame().to_parquet(answers, index=False)
    return {
        "effects.csv": study.effects().to_csv(index=False),
        "contrasts.csv": study.contrasts().to_csv(index=False),
        "answers.parquet": answers.getvalue(),
        "dose_response.png": png(dose_response(study), DPI),
        "manipulation.md": _text(study),
    }


def _text(study: ManipulationStudy) -> str:
    notes = "".join(f"- {note}\n" for note in study.notes)
    return f"""# Rotary pairs {done(study.how, study.factor)}

{study.description}

**Verdict.** {study.verdict}

{change_line(study.measures[0], json_rows(study.effects()))}

{dose_table(json_rows(study.effects())).markdown}

{contrast_table(json_rows(study.contrasts())).markdown}

{draws_line(json_rows(study.contrasts()), study.provenance)}

![effect by number of pairs](dose_response.png)

{notes}
{last_line(study)} `answers.parquet` has every answer's numbers as a table.
"""


def manipulation_section(study: ManipulationStudy, number: int, dpi: int) -> Section:
    """A study of moved pairs: what they cost, beside random pairs and heads."""
    measure, rows = study.measures[0], json_rows(study.contrasts())
    doses, contrasts = dose_table(json_rows(study.effects())), contrast_table(rows)
    first, moved = study.reaches[0], done(study.how, study.factor)
    over = "; ".join(
        f"{row['kind']} {signed(row['effect'])}"
        for kind in CHOSEN
        for row in contrasts.lines
        if (row["kind"], row["against"], row["reach"]) == (kind, RANDOM_PAIRS, first)
    )
    return Section(
        f"manipulation-{number}",
        f"Rotary pairs {moved}: {study.task}",
        verdict=study.verdict,
        paragraphs=[
            study.description,
            change_line(measure, json_rows(study.effects())),
            draws_line(rows, study.provenance),
        ],
        facts=[("Heads", ", ".join(map(str, study.heads)))],
        glossary=[*doses.glossary, *(one for one in contrasts.glossary if one not in doses.glossary)],
        tables=[
            Table(f"Change of {measure} by range and number of pairs of each head", doses.cells),
            Table("Against random pairs and random heads, over all numbers of pairs", contrasts.cells),
        ],
        plots=[
            plot(
                dose_response(study),
                dpi,
                f"Change of {measure} by number of pairs {moved}, at {first} range. Mean over the numbers: {over}.",
                f"Effect of pairs {moved} in the top heads, and of the controls, with intervals; each grey point is a "
                "random ranking of the pairs.",
            )
        ],
        points=study.notes,
    )


def manipulation_command(study: ManipulationStudy, out: str = "manipulation") -> str:
    """The command that manipulates the same pairs; the scores are not in the result."""
    provenance = study.provenance
    settings, task = provenance["settings"], provenance["task"]
    words = ["positional-heads", "manipulate", model_name(provenance), "--scores", "report"]
    words += ["--task", str(task.get("name", study.task)), f"--how={study.how}"]
    words += [f"--factor={study.factor:.9g}"] if study.factor is not None else []
    words += [f"--counts={','.join(map(str, study.counts))}", f"--top={len(study.heads)}"]
    task_words, missing = common_task_options(task, settings["seed"])
    words += [*loading_options(provenance), *task_words]
    if study.rank_by in get_args(RankBy):
        words += [f"--rank-by={study.rank_by}"] if study.rank_by != "rho" else []
    else:
        missing.append(f"the command cannot rank heads by a measure of your own, {study.rank_by}")
    words += [f"--n-random={settings['n_random']}", f"--permutations={settings['n_permuted']}"]
    words += [f"--seed={settings['seed']}"]
    if settings.get("reference") == "own":
        missing.append("dominant pairs were found on a text of your own: add --reference FILE")
    if selected := provenance.get("selected"):
        missing.append(f"these are some answers of that study: ManipulationStudy.where(**{selected})")
    return printed([*words, "--out", out], [*missing, *not_repeated(provenance)])
