"""Files of a recommendation in its report folder: tables, a plot, the block for config.json, and a page of text."""

from positional_heads.results.recommendation import Recommendation
from positional_heads.results.recommendation_tables import (
    BESIDE,
    IN_PLACE,
    config_text,
    recommendation_line,
    recommendation_table,
)
from positional_heads.views.figures import png
from positional_heads.views.recommendation import loss_by_factor
from positional_heads.views.report.last_line import DPI, last_line


def recommendation_files(made: Recommendation) -> dict[str, bytes | str]:
    """Content of each file by its name."""
    config = config_text({"config": made.config})
    return {
        "recommendation.csv": made.to_frame().to_csv(index=False),
        "pairs.csv": made.pair_frame().to_csv(index=False),
        "heads.csv": made.head_frame().to_csv(index=False),
        **({"loss_by_factor.png": png(loss_by_factor(made), DPI)} if made.labels else {}),
        **({} if config is None else {"rope_scaling.json": config + "\n"}),
        "recommendation.md": _text(made),
    }


def _text(made: Recommendation) -> str:
    content = made._content()
    table, config = recommendation_table(content), config_text(content)
    notes = "".join(f"- {note}\n" for note in made.notes)
    block = "" if config is None else f"{IN_PLACE}:\n\n```json\n{config}\n```\n\n{BESIDE}\n"
    return f"""# Extending the context

{recommendation_line(content)}

**Diagnosis.** {made.diagnosis}

**Verdict.** {made.verdict}

{block}
{"" if table is None else table.markdown}

{"![change of loss by factor](loss_by_factor.png)" if made.labels else ""}
{notes}
{last_line(made)}
"""
