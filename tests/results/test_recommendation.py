"""The rules by which one extension is taken, or none, and what the record says of pairs and heads."""

import json
import math

import numpy as np
import pytest

import positional_heads as ph
from positional_heads.core.statistics import mean_interval
from positional_heads.results.choosing import ALPHA, SIMPLEST
from tests.support.synthetic_recommendation import planted_recommendation

LOSSES = {"none": 2.0, "linear 4": 2.5, "yarn 4": 1.2, "yarn 8": 1.4, "ntk 4": 1.5}


def test_the_lowest_loss_is_taken_and_the_runner_up_named():
    made = planted_recommendation(LOSSES)
    assert made.taken == "yarn 4"
    assert made.rope_scaling == {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}
    assert made.config == {"max_position_embeddings": 64, "rope_scaling": made.rope_scaling}
    low, high = mean_interval(made.losses[2] - made.losses[0]).tolist()
    assert f"its loss is 1.200 nats per token, -0.800 ({low:+.3f} to {high:+.3f}) against no" in made.verdict
    assert "The runner-up is yarn 8, whose loss is 0.200 (" in made.verdict
    assert made.choice.level == pytest.approx(1 - ALPHA / 4)


def test_of_candidates_that_are_not_told_apart_the_simplest_is_taken():
    made = planted_recommendation({"none": 2.0, "yarn 4": 1.2, "ntk 8": 1.201, "ntk 4": 1.202, "linear 4": 1.9})
    assert made.taken == "ntk 4"
    assert "yarn 4, ntk 8 are as good within the interval of the difference (yarn 4 has the lowest" in made.verdict
    assert f"so the simplest is taken (the order is {', '.join(SIMPLEST)}, then" in made.verdict
    apart = planted_recommendation({"none": 2.0, "yarn 4": 1.2, "ntk 4": 1.25})
    assert apart.taken == "yarn 4"


def test_a_candidate_that_recalls_less_is_set_aside_whatever_its_loss():
    losses = {"none": 2.0, "ntk 4": 1.0, "yarn 4": 1.2, "dynamic 4": 1.3}
    made = planted_recommendation(losses, {"none": -7.0, "ntk 4": -0.6, "yarn 4": -0.05, "dynamic 4": -0.001})
    assert made.taken == "yarn 4"  # 0.05 nats behind the best, which is not noticeable
    assert [made.labels[place] for place in made.choice.behind] == ["ntk 4"]
    assert "ntk 4 recalls noticeably less and is set aside." in made.verdict
    assert "it recalls 1.00 of 10 answers" in made.verdict


def test_better_recall_at_the_same_loss_is_better_but_not_at_a_worse_one():
    recall = {"none": -7.0, "yarn 4": -0.1}
    assert planted_recommendation({"none": 2.0, "yarn 4": 2.0}, recall).taken == "yarn 4"
    assert planted_recommendation({"none": 2.0, "yarn 4": 2.2}, recall).taken is None
    assert planted_recommendation({"none": 2.0, "yarn 4": 2.0}, dict.fromkeys(recall, -7.0)).taken is None


def test_where_nothing_is_better_nothing_is_recommended():
    made = planted_recommendation({"none": 2.0, "yarn 4": 2.001, "linear 4": 2.5})
    assert (made.taken, made.config, made.rope_scaling) == (None, None, None)
    assert made.verdict.startswith("Keep the model as it is: of 2 candidates that a configuration can express, none")
    worse = planted_recommendation({"none": 2.0, "yarn 4": 1.995}, noise=0.05)
    assert worse.taken is None


def test_with_few_sequences_it_is_undecided_and_no_block_is_handed_out():
    made = planted_recommendation(LOSSES, sequences=3)
    assert made.config is None
    assert made.verdict.startswith("Undecided: the lowest loss at 256 tokens is that of yarn 4, 0.800 nats per token")
    assert (
        "3 sequences are too few to compare 4 candidates by; give a longer text, for at least 8 sequences"
        in made.verdict
    )
    assert made.blocks[made.labels.index("yarn 4")] is not None


def test_a_better_method_that_needs_code_is_named_and_not_taken():
    made = planted_recommendation({"none": 2.0, "yarn 4": 1.2, "self_extend 4": 0.9})
    assert made.taken == "yarn 4"
    assert "self_extend 4 has a loss that is 0.300 (" in made.verdict
    assert made.verdict.endswith("lower still, but it rewrites attention scores.")
    none = planted_recommendation({"none": 2.0, "yarn 4": 2.2, "self_extend 4": 0.9})
    assert "of 1 candidate that a configuration can express, none is better than doing nothing; the low" in none.verdict
    assert "that of yarn 4, +0.200 (" in none.verdict
    alone = planted_recommendation({"none": 2.0, "self_extend 4": 0.9})
    assert alone.config is None
    assert alone.verdict.startswith("Keep the model as it is: no candidate was tried that a configuration can express.")
    assert "self_extend 4 has a loss that is 1.100 (" in alone.verdict


def test_the_table_has_paired_differences_and_their_intervals():
    made = planted_recommendation(LOSSES, dict.fromkeys(LOSSES, -1.0))
    table = made.to_frame().set_index("candidate")
    assert list(table.index) == list(LOSSES)
    np.testing.assert_allclose(table["loss"], [*LOSSES.values()])
    np.testing.assert_allclose(table["loss_change"], [loss - 2.0 for loss in LOSSES.values()])
    ends = mean_interval(made.losses[3] - made.losses[0]).tolist()
    assert table.loc["yarn 8", ["loss_low", "loss_high"]].tolist() == ends
    assert table["config"].tolist() == [False, True, True, True, True]
    assert {"exact", "log_prob", "recall_change"} <= {*table.columns}
    assert "exact" not in planted_recommendation(LOSSES).to_frame()


def test_pairs_are_diagnosed_by_their_turns_within_and_beyond_the_training_length():
    made = planted_recommendation()
    pairs = made.pair_frame()
    assert pairs["layers"].tolist() == ["0, 2"] * 4 + ["1"] * 2
    for row, frequency in zip(pairs.to_dict("records"), [1.0, 0.1, 0.01, 0.001, 0.5, 0.05], strict=True):
        longest, trained = (16, 16) if row["layers"] == "1" else (256, 64)
        assert row["wavelength"] == pytest.approx(2 * math.pi / frequency)
        assert row["completed"] == (2 * math.pi / frequency <= trained)
        seen, met = (min(2 * math.pi, length * frequency) for length in (trained, longest))
        assert row["unseen"] == pytest.approx((met - seen) / (2 * math.pi))
    assert "layers 0, 2: 2 of 4 rotary pairs never completed a turn in 64 tokens (pairs 2-3, wave" in made.diagnosis
    assert "layers 1: their window of 16 tokens is within the training length" in made.diagnosis
    assert made.diagnosis.endswith(
        "of 1 of 2 heads visibly jumps at 64 tokens: L2H0 (-4.0 sd), L0H1 (+0.5 sd), the highest rho first."
    )


def test_a_saved_recommendation_says_the_same(tmp_path):
    made = planted_recommendation(LOSSES, dict.fromkeys(LOSSES, -1.0), notes=["a note"])
    made.save(tmp_path)
    back = ph.Recommendation.load(tmp_path)
    assert (back.verdict, back.diagnosis, back.config) == (made.verdict, made.diagnosis, made.config)
    assert back.provenance == json.loads(json.dumps(made.provenance))
    assert back.to_frame().equals(made.to_frame())
    assert back.kinds == made.kinds
