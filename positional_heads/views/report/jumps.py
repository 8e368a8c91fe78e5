"""Jump studies and distance responses in reports: the files of their folders, and their sections of the page."""

from positional_heads.results import jump_tables, response_tables
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.record import json_rows
from positional_heads.results.tables import ResultTable
from positional_heads.views.figures import png
from positional_heads.views.jumps import predicted_steps, responses_by_rho
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.sections import Section, Table, plot

REPORTED_HEADS = 10


def jump_files(study: JumpStudy) -> dict[str, bytes | str]:
    """Tables, plot and text of a jump study, by the names of their files."""
    line, agreement, steps = _jump_parts(study)
    return {
        "jumps.csv": study.to_frame().to_csv(index=False),
        "agreement.csv": study.agreement().to_csv(index=False),
        "jumps.png": png(predicted_steps(study), DPI),
        "jumps.md": f"""# Steps of D at the training length

{line}

**Verdict.** {study.verdict}

{agreement.markdown}

{jump_tables.LARGEST}

{steps.markdown}

![measured and predicted steps of D](jumps.png)

{last_line(study)} `jumps.csv` has every head.
""",
    }


def jump_section(study: JumpStudy, number: int, dpi: int) -> Section:
    """A jump study: how well each prediction tells the steps, and the largest steps."""
    line, agreement, steps = _jump_parts(study)
    said = "The measured step of D of every head against the predicted one."
    return Section(
        f"jumps-{number}",
        "Steps of D at the training length",
        verdict=study.verdict,
        paragraphs=[line],
        glossary=[*agreement.glossary, *(one for one in steps.glossary if one not in agreement.glossary)],
        tables=[
            Table("How well each prediction tells the steps of the heads", agreement.cells),
            Table(f"The {len(steps.lines)} largest steps", steps.cells),
        ],
        plots=[plot(predicted_steps(study), dpi, said, f"{said} On the line both are equal.")],
    )


def response_files(result: DistanceResponse) -> dict[str, bytes | str]:
    """Tables, plot and text of a distance response, by the names of their files."""
    line, heads, predicted = _response_parts(result)
    return {
        "responses.csv": result.to_frame().to_csv(index=False),
        "responses.png": png(responses_by_rho(result), DPI),
        "responses.md": f"""# What turning pairs does to the reach

{line}

**Verdict.** {result.verdict}

{response_tables.LARGEST}

{heads.markdown}

{predicted.markdown}

![response of the reach against rho](responses.png)

{last_line(result)} `responses.csv` has every head.
""",
    }


def response_section(result: DistanceResponse, number: int, dpi: int) -> Section:
    """A distance response: the heads that respond most, and whether a score predicts it."""
    line, heads, predicted = _response_parts(result)
    said = "The response of the reach of every head against its rho."
    return Section(
        f"responses-{number}",
        "What turning pairs does to the reach",
        verdict=result.verdict,
        paragraphs=[line],
        glossary=[*heads.glossary, *(one for one in predicted.glossary if one not in heads.glossary)],
        tables=[
            Table(f"The {len(heads.lines)} heads that respond most", heads.cells),
            Table("Whether a score predicts the response, over heads", predicted.cells),
        ],
        plots=[plot(responses_by_rho(result), dpi, said, f"{said} Lines are intervals; crosses, other pairs.")],
    )


def _jump_parts(study: JumpStudy) -> tuple[str, ResultTable, ResultTable]:
    return (
        jump_tables.jump_line(study.provenance, study.training_length, len(study.heads)),
        jump_tables.agreement_table(json_rows(study.agreement())),
        jump_tables.steps_table(json_rows(study.to_frame()), REPORTED_HEADS),
    )


def _response_parts(result: DistanceResponse) -> tuple[str, ResultTable, ResultTable]:
    return (
        response_tables.response_line(result.provenance, len(result.heads)),
        response_tables.response_table(json_rows(result.to_frame()), REPORTED_HEADS),
        response_tables.prediction_table(json_rows(result.correlations())),
    )
