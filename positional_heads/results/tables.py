"""Results as plain text, Markdown and HTML tables, and the one glossary of what their columns mean.

HTML has no style and no script, so it follows the notebook's own theme; every character of a name is made harmless.
"""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from positional_heads.results.text import LEAST_P, printable, rounded

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "name": "head",
    "low": "low 95 %",
    "high": "high 95 %",
    "null_mean": "null",
    "control_q_value": "control q",
    "rho_curve": "rho of curve",
    "saturation": "saturated",
    "reach": "range",
    "head_reach": "reach",
    "retrieval_score": "retrieval",
    "k": "heads",
    "difference": "top - random",
    "p_value": "p",
    "q_value": "q",
    "rho_a": "rho a",
    "rho_b": "rho b",
    "change": "change (b - a)",
    "change_low": "low 95 %",
    "change_high": "high 95 %",
    "change_q": "q",
    "excess_change": "change of excess",
    "excess_change_q": "q of that",
    "beats": "beats null in",
    "stays_in": "stays in",
    "share_low": "low 95 %",
    "share_high": "high 95 %",
    "times": "beats null",
    "times_stays": "stays",
    "p_shared": "p",
    "correlation_rho": "rank correlation of rho",
    "correlation_excess": "of the excess",
    "p_chance": "p",
    "loss_change": "change of loss",
    "loss_low": "low (long)",
    "loss_high": "high (long)",
    "within": "loss within",
    "within_change": "change within",
    "within_low": "low (short)",
    "within_high": "high (short)",
}
"""Titles of columns that are not their names."""
MEANINGS = {
    "rho": "Spearman's correlation of token distance and dominant dimension over query-key pairs",
    "low": "lower end of the 95 % interval, over sequences (scores) or units (studies)",
    "high": "its upper end",
    "null_mean": "mean rho with positions shuffled",
    "null_error": "standard error of null, because each shuffle counts a sample of the query-key pairs",
    "excess": "rho minus null",
    "q_value": "p-value of the excess after Benjamini-Hochberg over all heads",
    "control_rho": "rho with the first keys of each sequence left out, as many as control_keys says",
    "control_excess": "the same minus its own null",
    "control_q_value": "its q over all heads",
    "stays": "whether a head that beats its null (q <= 0.05, rho > 0) does so without the first keys as well",
    "rho_curve": "Spearman's correlation of distance and the mean dominant dimension at each distance",
    "saturation": (
        "share of query-key pairs in which one rotary pair holds over 99.9 % of the softmax: there the dominant "
        "dimension is the index of the largest contribution"
    ),
    "top": "effect of ablating the heads with the highest score; negative is harm",
    "random": "mean effect of sets of other heads, as many in every layer",
    "anywhere": "mean effect of sets of as many other heads of any layer",
    "lowest": "effect of the heads with the lowest score",
    "retrieval": "effect of the heads with the highest retrieval score",
    "difference": "effect of the top heads minus that of random heads",
    "p_value": (
        "permutation p-value: share of shuffled rankings that hurt at least as much. In a paper, quote the row 'all', "
        "the mean over all sizes with random sets"
    ),
    "random_sets": "number of random sets",
    "permutations": "number of permuted rankings",
    "p_within": "its one-sided p-value over permutations of the heads of each layer",
    "p_all": "its one-sided p-value over permutations of all heads",
    "rho_within": "mean rho over distances below the training length",
    "rho_beyond": "mean rho over distances from the training length on",
    "jump": "change of the mean dominant dimension across the training length, in standard deviations of the curve",
    "stretch": "factor that best maps the plain model's curve onto this one",
    "explained": "share of the curve's variance that the stretch explains",
    "exact": "share of right answers beyond the training length",
    "log_prob": "mean log probability of the answer's tokens, in nats per token",
    "efficiency": (
        "probability of the answer's tokens beyond the training length over that of the plain model within it"
    ),
    "loss": "nats per token of text beyond the training length",
    "rho_a": "rho in the first result, a",
    "rho_b": "rho in the second result, b",
    "change": "rho in b minus rho in a; its 95 % interval is over sequences",
    "change_q": "p-value of the change after Benjamini-Hochberg over all heads",
    "excess_a": "rho minus null in a",
    "excess_b": "rho minus null in b",
    "excess_change": "excess in b minus excess in a",
    "excess_change_q": "p-value of that after Benjamini-Hochberg over all heads, over sequences and shuffles",
    "beats": (
        "where the head beats its null with a positive rho; that it does in one only is no evidence of a difference, q "
        "of the change of excess is"
    ),
    "stays_in": "where the head beats its null with the first keys and without them",
    "curve_distance": "root mean square difference of the mean dominant dimension by distance, in rotary pairs",
    "slow_share": "share of the squared change of all pairs that sits in the slow half of them",
    "beyond_share": "the same of the pairs whose wavelength in a is longer than the length it was trained on",
    "wavelength_a": "tokens per turn of the pair in a",
    "wavelength_b": "the same in b",
    "share": "share of the pair in the squared change of a head, as a mean over heads; the interval is over heads",
    "even": "the share if every pair changed as much",
    "level": "part of the share that is the same at every distance, which alone leaves attention as it is",
    "times": "in how many results the head beats its null with a positive rho",
    "times_stays": "in how many results it does so without the first keys as well",
    "lowest_rho": "lowest rho of all results",
    "mean_rho": "mean rho of all results",
    "correlation": (
        "Spearman's rank correlation over heads, of rho in two results, or of a measure and the harm of ablating a "
        "head alone"
    ),
    "ceiling": "the correlation to expect if nothing but the sequences differed; of the excess, the least to expect",
    "fraction": "share of the heads that counts as top",
    "shared": "heads that are among the top ones by rho in both",
    "expected": "how many two random rankings share",
    "jaccard": "shared heads over heads in either",
    "by": "what chose the key heads: those with its lowest values have a window",
    "budget": "share of the key heads to choose from that keep all keys",
    "windows": "key heads with a window",
    "gain": "effect of the plan minus the mean effect of random plans; positive is better",
    "p_chance": "share of random plans that cost as little or less; quote the row 'all', the mean over all budgets",
    "plans": "number of random plans",
    "p_shared": "chance that two random rankings share as many or more",
    "is": (
        "what the head is by every rule that holds: retrieval (0.1 or more), previous token (0.4), induction (0.1), "
        "duplicate token (0.1), sink (sink mass 0.5), far (distant mass 0.2), local (0.05 or less), or mixed"
    ),
    "head_reach": (
        "mean distance of the attention in tokens, the first keys left out; of a sink, that of the little that is left"
    ),
    "distant_mass": "share of the attention beyond the window and past the first keys, of queries that have such keys",
    "sink_mass": "share of the attention on the first keys",
    "previous_token": "share of the attention on the token before",
    "induction": "share of the attention on what followed earlier occurrences of the token",
    "copying": "share of the attention on keys that hold the next token, of queries that have such keys",
    "retrieval_score": "share of the answer's tokens that the head copies from the needle",
    "key_head": "key head that the head reads; -1 in a layer that was not profiled",
    "mean_distance": "mean distance of the attention in tokens",
    "current_token": "share of the attention on the token itself",
    "duplicate_token": "share of the attention on earlier occurrences of the token",
    "semantic": "how alike the scores of the same keys are at other distances, as a correlation",
    "positional": "root mean square change of scores by a shift of one token, over their standard deviation",
    "massive_query": "channels of the query whose norm is over 5 times the mean of the head's",
    "massive_key": "the same of the key",
    "kernel": "from the weights alone: share of the slow pairs in the query-key kernel, times how low its rank is",
    "loss_change": "the same minus that of the same sequences without extension",
    "loss_low": "lower end of the 95 % interval of this change, of long texts, over sequences",
    "loss_high": "its upper end",
    "within": "nats per token of text up to the training length, in a run of its own",
    "within_change": "the same minus that without extension: what short texts lose",
    "within_low": "lower end of the 95 % interval of this change, of short texts, over sequences",
    "within_high": "its upper end",
    "config": "whether config.json can express it",
}
"""What the numbers in a column mean; a column that explains itself is not listed."""
FILE_MEANINGS = {
    "bound": "largest error of rho by binning and rounding",
    "sampling_sd": "standard deviation that sampling query-key pairs adds to rho, where they were sampled",
    "null_sd": "standard deviation of rho over the shuffles",
    "z": "excess divided by null_sd; it knows nothing of the spread over sequences, so judge heads by q_value",
    "p_value": "one-sided p-value of the excess, over shuffles and sequences",
    "q_value": "the same after Benjamini-Hochberg over all heads",
    "reason": "why a head has no score",
}
"""What columns of heads.csv mean that tables do not show, or show under another name."""
ALPHA = 0.05
"""False discovery rate of the verdicts; a test compares both, because importing theirs loads torch."""
NAMED_TEXTS = 3
"""Texts that a line names at most."""
SMALL = 5e-4
"""Numbers that three places would show as 0."""
ROUNDING = 1e-12
"""Numbers below are what rounding leaves of 0, as of a mean of equal numbers less each of them."""
HEAD_COLUMNS = (
    *("name", "rho", "low", "high", "null_mean", "null_error", "excess", "q_value"),
    *("control_rho", "stays", "rho_curve", "saturation"),
)
KINDS = ("top", "random", "anywhere", "lowest", "retrieval")
"""Kinds of sets that stand beside the top ones at each size; not every study has all."""
STUDY_COLUMNS = ("reach", "k", *KINDS, "difference", "low", "high", "p_value", "random_sets")
ROWS = 20
"""Rows that a notebook shows."""
LEGEND_WIDTH = 100
"""Characters in a line of a text table's legend."""


def title(column: str) -> str:
    """The title of a column."""
    return TITLES.get(column, column.replace("_", " "))


def meanings(columns: Iterable[str], own: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Title and meaning of these columns, but for those that explain themselves.

    Args:
        columns: Names of the columns.
        own: Meanings that some have in this table only.
    """
    known = {**MEANINGS, **(own or {})}
    return [(title(name), known[name]) for name in columns if name in known]


def file_legend() -> str:
    """The meanings of the columns that only the file of all heads has, in one line."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in FILE_MEANINGS.items()) + "."


def legend(columns: Iterable[str], own: Mapping[str, str] | None = None) -> str:
    """The meanings of these columns in one line; arguments as in `meanings`."""
    return _in_one_line(meanings(columns, own))


def _in_one_line(glossary: Iterable[tuple[str, str]]) -> str:
    lines = [f"{name}: {meaning}" for name, meaning in glossary]
    return "; ".join(lines) + "." if lines else ""


@dataclass(frozen=True)
class ResultTable:
    """A table of a result: as a string it is aligned text, followed by what its columns mean.

    Attributes:
        columns: Names of the columns.
        lines: One mapping from columns to values per line; None is unknown.
        own: Meanings that columns have in this table only.
        words: Words of the text above the table, and what they mean.
    """

    columns: Sequence[str]
    lines: Sequence[Mapping[str, Any]]
    own: Mapping[str, str] | None = None
    words: Sequence[tuple[str, str]] = ()

    @property
    def cells(self) -> list[list[str]]:
        """Every cell as text, the titles first; an unknown number is a dash."""
        return [
            [title(name) for name in self.columns],
            *([_cell(line.get(name), name) for name in self.columns] for line in self.lines),
        ]

    @property
    def glossary(self) -> list[tuple[str, str]]:
        """Title and meaning of the columns, but for those that explain themselves, and the words of the text above."""
        return [*meanings(self.columns, self.own), *self.words]

    @property
    def markdown(self) -> str:
        """The table in Markdown, and what its columns mean."""
        lines = ["| " + " | ".join(row) + " |" for row in self.cells]
        lines.insert(1, "|" + " --- |" * len(self.columns))
        return "\n".join([*lines, "", _in_one_line(self.glossary)])

    def __str__(self) -> str:
        cells = self.cells
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([*lines, "", *textwrap.wrap(_in_one_line(self.glossary), LEGEND_WIDTH)])


def heads_table(table: Sequence[Mapping[str, Any]], top: int | None) -> ResultTable:
    """The first heads in the order of `ranked_rows`.

    Args:
        table: Rows of `HeadScores.to_frame`.
        top: How many heads; all when None.
    """
    return ResultTable([name for name in HEAD_COLUMNS if table and name in table[0]], ranked_rows(table)[:top])


def ranked_rows(table: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of the heads that have a score: those that beat their null first, each part by excess, the largest first.

    Without a null, by rho: alone it is no evidence, but it is all that there is.

    Args:
        table: Rows of `HeadScores.to_frame`.
    """
    scored = [row for row in table if row["rho"] is not None]
    if not ranked_by_excess(table):
        return sorted(scored, key=lambda row: -row["rho"])
    return sorted(
        scored, key=lambda row: (not beats_null(row), -float("-inf" if row["excess"] is None else row["excess"]))
    )


def ranked_by_excess(table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether heads have a null, whose excess ranks them."""
    return any(row.get("excess") is not None for row in table)


def beats_null(row: Mapping[str, Any]) -> bool:
    """Whether a head beats its null, as `HeadScores.beats_null` says, from its row alone."""
    known = row.get("q_value") is not None and row["q_value"] <= ALPHA
    return known and min(row["rho"], row["excess"]) > 0


def order_of_heads(table: Sequence[Mapping[str, Any]], top: int) -> str:
    """What `heads_table` shows, and in which order, in words without a full stop.

    Args:
        table: Rows of `HeadScores.to_frame`.
        top: How many heads at most.
    """
    scored = sum(row["rho"] is not None for row in table)
    beating, shown = sum(map(beats_null, table)), min(top, scored)
    heads = "head" if shown == 1 else f"{shown} heads"
    if not ranked_by_excess(table):
        return f"The {heads} with the highest rho"
    if not beating:
        return f"No head beats its null: the {heads} with the largest excess"
    if beating <= shown:
        first = f"The {beating} heads that beat their null, the largest excess first"
        return ("The head that beats its null" if beating == 1 else first) + ", then others" * (beating < shown)
    return f"The {heads} with the largest excess of the {beating} that beat their null"


def study_table(effects: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]]) -> ResultTable:
    """An ablation study, one line for every range and number of heads.

    Args:
        effects: Rows of `AblationStudy.effects`.
        contrasts: Rows of `AblationStudy.contrasts`.
    """
    by_set = {(row["reach"], row["k"], row["kind"]): row["effect"] for row in effects}
    lines = [{kind: by_set.get((row["reach"], row["k"], kind)) for kind in KINDS} | dict(row) for row in contrasts]
    without = () if any(line["anywhere"] is not None for line in lines) else ("anywhere",)
    return ResultTable([name for name in STUDY_COLUMNS if name not in without], lines)


def change_line(measure: str, effects: Sequence[Mapping[str, Any]], of: str = "", whole: str = "As it is") -> str:
    """What effects are changes of, and from where, in one line.

    Args:
        measure: The measure.
        effects: Rows of the effects of a study, those of kind "none" among them.
        of: What changes it, e.g. " with windows".
        whole: How the model is in the rows of kind "none".
    """
    plain = [row for row in effects if row["kind"] == "none" and row["reach"] in {"long", "short"}]
    levels = ", ".join(f"{row['reach']} {rounded(row['effect'])}" for row in plain)
    known = f" {whole}, it is {levels}." if levels else ""
    return f"Change of {printable(measure, newlines=False)}{of}; negative is harm.{known}"


def single_heads_table(by_head: Sequence[Mapping[str, Any]], top: int) -> ResultTable:
    """The heads whose ablation alone harms most.

    Args:
        by_head: Rows of `AblationStudy.by_head`.
        top: How many heads.
    """
    return ResultTable(list(by_head[0]), by_head[:top])


def extrapolation_table(table: Sequence[Mapping[str, Any]]) -> ResultTable:
    """An extrapolation study, one line for every method and length.

    Args:
        table: Rows of `ExtrapolationStudy.to_frame`.
    """
    return ResultTable(list(table[0]), table)


def model_label(provenance: Mapping[str, Any]) -> str:
    """Name of the model, and what made its weights others: how they were stored if converted, quantised, an adapter."""
    model = provenance.get("model") or {}
    how = [str(origin["storage"])] if "storage" in (origin := model.get("origin") or {}) else []
    how += [f"quantised by {model['quantization']}"] if "quantization" in model else []
    how += [f"adapter {model['adapter']}"] if "adapter" in model else []
    name = str(model.get("name", "a model"))
    return f"{name} ({', '.join(how)})" if how else name


def text_label(provenance: Mapping[str, Any]) -> str:
    """Names of the texts that were scored, "" where none is known."""
    names = [name or "another text" for name in (provenance.get("data") or {}).get("texts", [])]
    more = f" and {len(names) - NAMED_TEXTS} more" if len(names) > NAMED_TEXTS else ""
    return printable(", ".join(names[:NAMED_TEXTS]) + more, newlines=False)


def counted_label(settings: Mapping[str, Any]) -> str:
    """Which query-key pairs a score counts."""
    pairs, skipped = settings.get("pairs", "all"), settings.get("skip_keys")
    least, most = settings.get("min_distance"), settings.get("max_distance")
    counted = "all query-key pairs" if pairs == "all" else f"{pairs} sampled query-key pairs of each sequence"
    without = [f"with the first {skipped} key{'s' * (skipped > 1)} of a sequence"] if skipped else []
    without += [f"at distances below {least}"] if least else []
    without += [f"at distances above {most}"] if most is not None else []
    return f"{counted} but those {' or '.join(without)}" if without else counted


def scores_line(provenance: Mapping[str, Any]) -> str:
    """What was scored on what, in one line."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    text_names = f" of {named}" if (named := text_label(provenance)) else ""
    null = f"{settings['null_repeats']} shuffles"
    if settings["null_repeats"] and settings.get("null_pairs", "all") != "all":
        null += " of sampled query-key pairs"
    control = f"a control without the first {keys} keys, " if (keys := settings.get("control_keys")) else ""
    return (
        f"{model_label(provenance)}: {model['layers']} layers of {model['heads']} heads, {data['sequences']} sequences "
        f"of up to {data['longest']} tokens{text_names}, {counted_label(settings)}, {null}, {control}seed "
        f"{settings['seed']}"
    )


def study_line(provenance: Mapping[str, Any], answers: int, sets: int) -> str:
    """What was ablated for which task, in one line."""
    task, ablation = provenance["task"], provenance["ablation"]
    distance = "" if ablation["distance"] is None else f" at distance {ablation['distance']}"
    return (
        f"{model_label(provenance)}: {task['name']}, {answers} answers under each of {sets} sets of heads, mode "
        f"{ablation['mode']}{distance}, heads ranked by {printable(provenance['scores']['rank_by'], newlines=False)}"
    )


def trained_on(provenance: Mapping[str, Any], training_length: int) -> str:
    """What a study takes the model to be trained on and, where that is not the model's context, where it comes from.

    Args:
        provenance: Of the study; parts may be missing.
        training_length: Tokens that the model was trained on.
    """
    context = (provenance.get("model") or {}).get("context")
    if not context or context == training_length:
        return f"trained on {training_length} tokens"
    return (
        f"taken as trained on {training_length} tokens (set for this study, or the context before the model's own "
        f"extension; the model's context is {context} tokens)"
    )


def extrapolation_line(provenance: Mapping[str, Any], training_length: int, heads: Sequence[str]) -> str:
    """What was extended and measured, in one line."""
    return (
        f"{model_label(provenance)}, {trained_on(provenance, training_length)}: {provenance['task']['name']} beyond "
        f"them, allocation of {', '.join(heads)} on {provenance['data']['sequences']} sequences"
    )


def result_html(
    kind: str,
    description: str,
    verdict: str | None,
    frame: "pd.DataFrame",
    provenance: Mapping[str, Any] | None = None,
    rows: int = ROWS,
    *,
    own: Mapping[str, str] | None = None,
) -> str:
    """A record as notebooks show it.

    Args:
        kind: Name of the record.
        description: What was done, in one line.
        verdict: What it shows, in words.
        frame: A table; its first rows are shown under the titles of their columns.
        provenance: Provenance in full; folded.
        rows: Rows of the table to show.
        own: Meanings that columns have in this table only.
    """
    parts = [f"<p><b>{text(kind)}</b> {text(description)}</p>"]
    if verdict is not None:
        parts.append(f"<p><b>Verdict.</b> {text(verdict)}</p>")
    if len(frame):
        parts.append(table_html(frame.head(rows)))
        parts.append(f"<p>{text(meaning)}</p>" if (meaning := legend(frame, own)) else "")
    if len(frame) > rows:
        parts.append(f"<p>The first {rows} of {len(frame)} rows.</p>")
    if provenance is not None:
        details = json.dumps(provenance, indent=1, default=str, ensure_ascii=False)
        parts.append(f"<details><summary>What was run</summary><pre>{text(details)}</pre></details>")
    return f"<div>{''.join(parts)}</div>"


def table_html(frame: "pd.DataFrame") -> str:
    """A table as HTML under titles, numbers to three places (small ones to one digit), an unknown number as a dash."""
    shown = frame.copy()
    numbers = {*shown.select_dtypes("number")}
    for column in shown:
        if column not in numbers:
            shown[column] = [value if value is None else printable(_cell(value)) for value in shown[column]]
        elif is_p_value(column):
            shown[column] = [None if isnan(value) else _cell(value, column) for value in shown[column]]
    shown = shown.rename(columns=lambda name: printable(title(name), newlines=False))
    return str(shown.to_html(index=False, na_rep="-", float_format=_cell, escape=True, border=0))


def text(value: object) -> str:
    """Text for an HTML page: escaped, control characters and lone surrogates made visible."""
    return html.escape(printable(value))


def is_p_value(column: str) -> bool:
    """Whether a column holds p-values, or those adjusted for many heads."""
    return column in {"p_within", "p_all", "p_shared", "p_chance"} or column.endswith(
        ("p_value", "q_value", "_p", "_q")
    )


def _cell(value: Any, column: str = "") -> str:
    if value is None:
        return "-"
    if is_p_value(column) and value < LEAST_P:
        return f"< {LEAST_P:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return rounded(value) if not ROUNDING < abs(value) < SMALL else f"{value:.1g}"
