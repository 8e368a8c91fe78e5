"""A folder that says what was found: the result itself, a table, two plots and a page of text."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from positional_heads.files import write_atomically
from positional_heads.result_files import FILE_NAME, read_result
from positional_heads.results import HeadScores
from positional_heads.tables import heads_table, summary_line
from positional_heads.views import allocation_curves, rho_heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORTED_HEADS = 10


def write_report(scores: HeadScores, folder: Path) -> list[Path]:
    """Write result, table, plots and text to a folder, each file whole or not at all.

    Args:
        scores: What `score_heads` returned.
        folder: Where to; made if missing.

    Returns:
        The files written, the result first.
    """
    result = scores.save(folder / FILE_NAME)
    content = {
        "heads.csv": scores.to_frame().to_csv(index=False).encode(),
        "rho.png": _png(rho_heat_map(scores)),
        "curves.png": _png(allocation_curves(scores)),
        "report.md": _text(result).encode(),
    }
    for name, data in content.items():
        write_atomically(folder / name, data)
    return [result, *(folder / name for name in content)]


def _text(result: Path) -> str:
    content, _ = read_result(result)
    versions = ", ".join(f"{name} {number}" for name, number in content["provenance"]["versions"].items())
    return f"""# Positional Heads

{summary_line(content["provenance"])}

**Verdict.** {content["verdict"]}

{heads_table(content["table"], REPORTED_HEADS, markdown=True)}

rho: Spearman's correlation of token distance and dominant dimension over all query-key pairs, with its bootstrap
interval over sequences. null: the same with positions shuffled. excess: rho less null. q: its p-value after
Benjamini-Hochberg.

![rho of every head](rho.png)

![mean dominant dimension over distance](curves.png)

A high rho alone is not evidence that a head carries distance: geometry moves the dominant dimension too (see null), and
only masking the head shows what the model loses without it.

Made with {versions}. Everything is in `{FILE_NAME}`: `positional_heads.HeadScores.load("{FILE_NAME}")`.
"""


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
