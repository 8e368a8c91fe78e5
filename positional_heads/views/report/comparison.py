"""Comparisons in reports: the files of their folder, and their sections of the page."""

from collections.abc import Mapping
from typing import Any

from positional_heads.results.comparison import Comparison
from positional_heads.results.comparison_tables import comparison_line, comparison_tables, stability_tables
from positional_heads.results.differing import PRECISION_ONLY
from positional_heads.results.stability import Stability
from positional_heads.results.tables import meanings, text_label
from positional_heads.results.text import printable
from positional_heads.views.comparison import comparison as comparison_plot
from positional_heads.views.comparison import stability as stability_plot
from positional_heads.views.figures import png
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.sections import Explored, Section, Table, plot
from positional_heads.views.scores import SHOWN

REPORTED_HEADS = 10
MOST_NAMED = 4
"""Results, or differences, that a title names at most."""


def comparison_files(comparison: Comparison) -> dict[str, bytes | str]:
    """Tables, plot and text of a comparison, by the names of their files."""
    by_pair = {} if comparison.pairs is None else {"pairs.csv": comparison.pair_frame().to_csv(index=False)}
    return {
        **by_pair,
        "changes.csv": comparison.to_frame().to_csv(index=False),
        "agreement.csv": comparison.agreement_frame().to_csv(index=False),
        "top.csv": comparison.top_frame().to_csv(index=False),
        "comparison.png": png(comparison_plot(comparison), DPI),
        "comparison.md": _comparison_text(comparison),
    }


def stability_files(stability: Stability) -> dict[str, bytes | str]:
    """Tables, plot and text of several results side by side, by the names of their files."""
    return {
        "heads.csv": stability.to_frame().to_csv(index=False),
        "pairs.csv": stability.pairs().to_csv(index=False),
        "stability.png": png(stability_plot(stability), DPI),
        "stability.md": _stability_text(stability),
    }


def comparison_section(comparison: Comparison | Stability, number: int, dpi: int) -> Section:
    """Two results head by head, or several side by side."""
    if isinstance(comparison, Stability):
        tables = stability_tables(comparison._content(), REPORTED_HEADS)
        captions = ["Heads that beat their null in most results", "How alike two results are"]
        drawn = plot(stability_plot(comparison), dpi, comparison.verdict, "Heads that beat their null in most results.")
    else:
        tables = comparison_tables(comparison._content(), REPORTED_HEADS)
        captions = ["Heads whose rho changes most", "How far the ranks agree", "Top heads shared by both"]
        captions += ["Pairs with the largest share of the change"] * (comparison.pairs is not None)
        drawn = plot(comparison_plot(comparison), dpi, comparison.verdict, "Every head in one against the other.")
    names = (printable(name, newlines=False) for name in comparison.names)
    provenance = comparison.provenance
    sides = provenance.get("results") or {
        name: provenance[key] for name, key in zip(comparison.names, "ab", strict=True)
    }
    columns = [column for table in tables for column in table.columns]
    return Section(
        f"comparison-{number}",
        f"Comparison: {', '.join(names)}",
        verdict=comparison.verdict,
        glossary=meanings(dict.fromkeys(columns)),
        tables=[Table(caption, table.cells) for caption, table in zip(captions, tables, strict=True)],
        plots=[drawn],
        points=[_side(name, side) for name, side in sides.items()],
        explored=Explored("the change of", "compared", [row[0] for row in tables[0].cells[1 : SHOWN + 1]]),
    )


def compared_title(result: Comparison | Stability) -> str:
    """What is compared, and for two results in what they differ: the model alone would be the title of either."""
    names = [printable(name, newlines=False) for name in result.names]
    model = printable(result.model_name, newlines=False)
    if isinstance(result, Stability):
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return f"{', '.join(names[:MOST_NAMED])}{more} side by side, {model}"
    found = [one for one in result.differing if one.name != "model" and one.name not in PRECISION_ONLY]
    said = [one.name if one.a == one.b else f"{one.name} {one.b} against {one.a}" for one in found[:MOST_NAMED]]
    return f"{names[1]} against {names[0]}, {model}" + (f"; {', '.join(said)}" if said else "")


def _comparison_text(comparison: Comparison) -> str:
    content = comparison._content()
    changes, agreement, top, *pairs = comparison_tables(content, REPORTED_HEADS)
    by_pair = "".join(f"Pairs with the largest share of the change:\n\n{table.markdown}\n\n" for table in pairs)
    sides = "\n".join(
        "- " + _side(name, comparison.provenance[key]) for name, key in zip(comparison.names, "ab", strict=True)
    )
    return f"""# {" against ".join(printable(name, newlines=False) for name in reversed(comparison.names))}

{comparison_line(content)}

**Verdict.** {comparison.verdict}

The heads whose rho changes most:

{changes.markdown}

![every head in one against the other](comparison.png)

How far the ranks of the heads agree:

{agreement.markdown}

{top.markdown}

{by_pair}{sides}

{last_line(comparison)}
"""


def _stability_text(stability: Stability) -> str:
    heads, pairs = stability_tables(stability._content(), REPORTED_HEADS)
    sides = "\n".join("- " + _side(name, stability.provenance["results"][name]) for name in stability.names)
    return f"""# {len(stability.names)} results side by side

**Verdict.** {stability.verdict}

{heads.markdown}

![heads that beat their null in most results](stability.png)

{pairs.markdown}

{sides}

{last_line(stability)}
"""


def _side(name: str, provenance: Mapping[str, Any]) -> str:
    """One result by its model, text and settings."""
    model, data, settings = (provenance.get(part, {}) for part in ("model", "data", "settings"))
    chosen = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    tokens = str(data.get("sha256", "unknown"))[:12]
    named = f" of {texts}" if (texts := text_label(provenance)) else ""
    said = (
        f"{model.get('name', 'a model')}, {data.get('sequences', '?')} sequences of up to {data.get('longest', '?')} "
        f"tokens{named} (fingerprint {tokens}); {chosen}"
    )
    return f"{printable(name, newlines=False)}: {printable(said, newlines=False)}"
