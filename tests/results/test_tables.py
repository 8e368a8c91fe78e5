"""Tables rank heads, show every column with its meaning, and mark unknown numbers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from positional_heads.core.heads import Head
from positional_heads.results import text
from positional_heads.results.comparison_tables import AGREEMENT_COLUMNS, CHANGE_COLUMNS, PAIR_COLUMNS
from positional_heads.results.recommendation_tables import COLUMNS, recommendation_table
from positional_heads.results.tables import (
    HEAD_COLUMNS,
    MEANINGS,
    STUDY_COLUMNS,
    ResultTable,
    heads_table,
    model_label,
    order_of_heads,
    scores_line,
    table_html,
    title,
)
from positional_heads.results.text import p_text, rounded, signed
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_recommendation import planted_recommendation


def row_of(name, rho, excess=None, q=None):
    return {"name": name, "rho": rho} | ({} if excess is None else {"excess": excess, "q_value": q})


def test_heads_that_beat_their_null_come_first_and_each_part_by_excess():
    """Neither a high rho, nor an excess that is not significant, nor one with a negative rho, comes before them."""
    rows = [
        row_of("geometry", 0.9, 0.01, 0.9),
        row_of("weak", 0.1, 0.05, 0.01),
        row_of("strong", 0.2, 0.15, 0.05),
        row_of("falling", -0.1, 0.4, 0.001),
        row_of("chance", 0.3, 0.3, 0.051),
        {"name": "none", "rho": None, "excess": None, "q_value": None},
    ]
    names = ["strong", "weak", "falling", "chance", "geometry"]
    assert [row["name"] for row in heads_table(rows, None).lines] == names
    assert [row["name"] for row in heads_table(rows, 2).lines] == names[:2]
    assert order_of_heads(rows, 1) == "The head with the largest excess of the 2 that beat their null"
    assert order_of_heads(rows, 2) == "The 2 heads that beat their null, the largest excess first"
    assert order_of_heads(rows, 9) == "The 2 heads that beat their null, the largest excess first, then others"
    assert order_of_heads(rows[:1], 9) == "No head beats its null: the head with the largest excess"
    plain = [row_of("low", 0.1), row_of("high", 0.2)]
    assert [row["name"] for row in heads_table(plain, 9).lines] == ["high", "low"]
    assert order_of_heads(plain, 9) == "The 2 heads with the highest rho"


def test_the_table_ranks_heads_and_leaves_out_those_without_a_score():
    scores = synthetic_scores()
    rows = scores.to_frame().replace({np.nan: None}).to_dict("records")
    lines = str(heads_table(rows, 20)).splitlines()
    assert lines[1].split()[0] == "L0H3"
    excess = [float(scores.excess[Head.parse(line.split()[0])]) for line in lines[2:9]]
    assert excess == sorted(excess, reverse=True)
    assert [line.split()[0] for line in lines[1:9]] == scores._main_table()["name"].tolist()
    assert lines.index("") == 9
    assert heads_table(rows, 2).markdown.splitlines()[1] == "|" + " --- |" * 8


def test_an_unknown_number_is_a_dash():
    rows = [{"name": "L0H0", "rho": 0.25, "low": None, "high": None}, {"name": "L10H1", "rho": None, "low": None}]
    assert str(heads_table(rows, 5)).splitlines()[:2] == [
        "head    rho  low 95 %  high 95 %",
        "L0H0  0.250         -          -",
    ]
    assert heads_table(rows, 5).markdown.splitlines()[2] == "| L0H0 | 0.250 | - | - |"
    assert heads_table([], 5).cells == [[]]


def test_the_table_holds_as_many_heads_as_asked_for_and_every_column():
    scores = synthetic_scores()
    null = replace(scores.null, sampling_sd=0.001 * scores.rho.abs())
    scores = replace(scores, saturation=scores.rho.abs(), null=null, control=scores)
    rows = scores.to_frame().replace({np.nan: None}).to_dict("records")
    lines = heads_table(rows, 2).markdown.splitlines()
    assert lines[0] == "| " + " | ".join(title(name) for name in HEAD_COLUMNS) + " |"
    assert lines.index("") == 4
    assert [line.split(" | ")[9] for line in lines[2:4]] == ["yes", "-"]  # the second does not beat its null at all


TABLES = {
    "heads": HEAD_COLUMNS,
    "ablation": STUDY_COLUMNS,
    "changes": CHANGE_COLUMNS,
    "agreement": AGREEMENT_COLUMNS,
    "pairs": PAIR_COLUMNS,
    "recommendation": COLUMNS,
}


@pytest.mark.parametrize("table", TABLES)
def test_no_two_columns_of_a_table_have_one_title(table):
    titles = [title(name) for name in TABLES[table]]
    assert len({*titles}) == len(titles), sorted(titles)


def test_the_legend_of_a_recommendation_explains_the_words_of_its_diagnosis():
    made = planted_recommendation()
    assert "the curve of D of" in made.diagnosis
    assert " sd)" in made.diagnosis
    table = recommendation_table(made._content())
    named = dict(table.glossary)
    assert {"D", "sd", "low (long)", "low (short)"} <= {*named}
    assert all(f"{word}: {meaning}" in str(table).replace("\n", " ") for word, meaning in named.items())
    unfollowed = replace(made, heads=[], jumps=made.jumps[:0], rho=made.rho[:0])
    assert "D" not in dict(recommendation_table(unfollowed._content()).glossary)


def test_a_text_table_ends_with_what_its_columns_mean():
    rows = [{"name": "L0H0", "rho": 0.25, "excess": 0.1}]
    table, _, meanings = str(heads_table(rows, 5)).partition("\n\n")
    assert table.splitlines()[0].split() == ["head", "rho", "excess"]
    assert meanings.replace("\n", " ") == f"rho: {MEANINGS['rho']}; excess: {MEANINGS['excess']}."


def test_a_small_p_value_is_never_printed_as_zero():
    columns = ["name", "p_value", "change_q", "change"]
    lines = [{"name": "x", "p_value": value, "change_q": value, "change": value} for value in (0.0, 0.0009, 0.001)]
    assert [row[1:] for row in ResultTable(columns, lines).cells[1:]] == [
        ["< 0.001", "< 0.001", "0.000"],
        ["< 0.001", "< 0.001", "0.001"],
        ["0.001", "0.001", "0.001"],
    ]
    shown = table_html(pd.DataFrame([*lines, {"name": "y"}]))
    assert shown.count("&lt; 0.001") == 4
    assert shown.count("<td>-</td>") == 3
    assert [p_text(value) for value in (0.0, 0.0005, 0.001, 0.25)] == [
        "p < 0.001",
        "p < 0.001",
        "p = 0.001",
        "p = 0.250",
    ]


@pytest.mark.parametrize(
    ("settings", "texts", "said"),
    [
        (
            {"skip_keys": 1},
            ["a.txt"],
            "tokens of a.txt, all query-key pairs but those with the first 1 key of a sequence, ",
        ),
        (
            {"skip_keys": 64, "min_distance": 2, "max_distance": 5, "control_keys": 128},
            ["a", None, "b", "c", "d"],
            "tokens of a, another text, b and 2 more, all query-key pairs but those with the first 64 keys of a "
            "sequence or at distances below 2 or at distances above 5, 6 shuffles, a control without the first 128 key",
        ),
        ({"pairs": 7}, [], "tokens, 7 sampled query-key pairs of each sequence, "),
    ],
)
def test_the_line_of_a_run_names_its_texts_and_says_what_is_left_out(settings, texts, said):
    provenance = synthetic_scores().provenance
    data = provenance["data"] | {"texts": texts}
    assert said in scores_line(provenance | {"settings": provenance["settings"] | settings, "data": data})


def test_a_number_that_rounds_to_zero_has_no_sign():
    changes = {-0.0: "0.000", -4e-4: "0.000", 4e-4: "0.000", -0.12: "-0.120", 0.12: "+0.120"}
    assert [*map(signed, changes)] == [*changes.values()]
    assert [rounded(value, 2) for value in (-0.004, -0.006, 0.006)] == ["0.00", "-0.01", "0.01"]
    assert (signed(float("nan")), signed(float("-inf"))) == ("+nan", "-inf")
    table = ResultTable(["effect"], [{"effect": value} for value in (-0.0, -1e-17, -4e-4, -0.12)])
    assert table.cells[1:] == [["0.000"], ["0.000"], ["-0.0004"], ["-0.120"]]
    sources = [file for file in Path(text.__file__).parents[1].rglob("*.py") if file != Path(text.__file__)]
    own = {file.name for file in sources if re.search(r":\+\.\d+f\}", file.read_text())}
    assert own <= {"comparison_verdict.py"}, "say changes by results.text.signed"


def test_the_line_of_a_run_names_model_and_data():
    line = scores_line(synthetic_scores().provenance)
    assert (
        line == "made up: 3 layers of 4 heads, 5 sequences of up to 9 tokens, all query-key pairs, 6 shuffles, seed 0"
    )


def test_a_model_with_an_adapter_or_quantised_is_not_named_as_its_base():
    model = {"name": "base", "quantization": "torchao", "adapter": "lora"}
    assert model_label({"model": model}) == "base (quantised by torchao, adapter lora)"
    assert model_label({"model": {"name": "base"}}) == "base"
