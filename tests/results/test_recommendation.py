"""The rules by which one extension is taken, or none, and what the record says of pairs and heads."""

import json
import math
import random

import numpy as np
import pytest
import torch

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


TIED = {"none": 2.0, "yarn 4": 1.2, "ntk 8": 1.201, "ntk 4": 1.202, "linear 4": 1.9}


def test_of_candidates_that_are_not_told_apart_the_simplest_is_taken():
    made = planted_recommendation(TIED)
    assert made.taken == "ntk 4"
    assert "yarn 4, ntk 8 are as good within the interval of the difference (yarn 4 has the lowest" in made.verdict
    assert f"it is the simplest to deploy (the order is {', '.join(SIMPLEST)})." in made.verdict
    assert "its factor is the smallest that reaches the target, and" in made.verdict  # 8 is not
    apart = planted_recommendation({"none": 2.0, "yarn 4": 1.2, "ntk 4": 1.25})
    assert apart.taken == "yarn 4"


def test_what_short_texts_lose_goes_before_factor_and_simplicity():
    made = planted_recommendation(TIED, within={"ntk 4": 1.1, "ntk 8": 1.1})
    assert made.taken == "yarn 4"
    assert "ntk 8, ntk 4 are as good within the interval of the difference; of these it is taken" in made.verdict
    assert "taken because it loses least on short texts." in made.verdict
    made = planted_recommendation(TIED, within={"yarn 4": 1.1})
    assert made.taken == "ntk 4"
    assert SIMPLEST.index("llama3") < SIMPLEST.index("yarn")  # versions of transformers read YaRN's block differently
    least, own = sorted(float(made.losses_within[made.labels.index(one)].mean()) for one in ("ntk 4", "ntk 8"))
    assert own - least < 1e-9  # planted alike
    assert "on short texts, 1.000, is " in made.verdict
    assert "(2 of 3 are alike there), and its factor is the smallest that reaches" in made.verdict


def test_a_loss_on_short_texts_that_is_the_largest_of_the_tied_is_not_called_the_least():
    made = planted_recommendation(
        {"none": 2.0, "yarn 4": 1.2, "ntk 8": 1.2, "ntk 4": 1.2}, within={"ntk 4": 1.003, "ntk 8": 1.002}
    )
    assert made.taken == "ntk 4"
    table = made.to_frame().set_index("candidate")["within"]
    assert table[["yarn 4", "ntk 8", "ntk 4"]].is_monotonic_increasing
    assert "its loss on short texts, 1.003, is not told apart from the least, 1.000, " in made.verdict
    assert "as little as any" not in made.verdict
    assert "the least, 1.000" not in planted_recommendation(TIED, within={"yarn 4": 1.1, "ntk 8": 1.2}).verdict


def test_a_factor_that_fits_goes_before_simplicity():
    made = planted_recommendation({"none": 2.0, "ntk 8": 1.2, "llama3 4": 1.2, "yarn 2": 1.2})
    assert made.taken == "llama3 4"  # 256 of 64 tokens
    short = planted_recommendation({"none": 2.0, "ntk 2": 1.2, "llama3 3": 1.2})
    assert short.taken == "llama3 3"  # none reaches 4
    grows = planted_recommendation({"none": 2.0, "llama3 4": 1.2, "dynamic 2": 1.2})
    assert grows.taken == "dynamic 2"  # with the run, as far as it goes
    assert "stays 64: tell programs that limit a context by it 256 otherwise" in grows.verdict


def brute_force(losses, within, answers, names, writable, ratio):
    """The rules once more in plain Python, by elimination."""

    def lower(table, one, other, level=0.95, margin=0.0):
        """Whether the interval of the first's value minus the other's lies below zero."""
        gap = [a - b + margin for a, b in zip(table[one], table[other], strict=True)]
        return float(mean_interval(torch.tensor(gap, dtype=torch.float64), level)[1]) < 0

    def mean(table, place):
        return math.fsum(table[place]) / len(table[place])

    level = 1 - 0.05 / (len(names) - 1)
    left = []
    for place in range(1, len(names)):
        gains = lower(losses, place, 0, level)
        if answers and lower(answers, 0, place, level) and not lower(losses, 0, place, level):
            gains = True
        left += [place] if gains and writable[place] else []
    if answers and left:
        recalling = max(left, key=lambda place: mean(answers, place))
        left = [place for place in left if not lower(answers, place, recalling, margin=0.1)]
    for table in (losses, within):
        least = min((mean(table, place) for place in left), default=None)
        best = next((place for place in left if mean(table, place) == least), None)
        left = [place for place in left if place == best or not lower(table, best, place)]
    while len(left) > 1:
        (one, at), (other, by) = ((names[place].split()[0], float(names[place].split()[1])) for place in left[:2])
        one_fits, other_fits = (name == "dynamic" or size >= ratio for name, size in ((one, at), (other, by)))
        if one_fits != other_fits:
            worse = left[1] if one_fits else left[0]
        elif at != by:
            worse = left[1] if (at < by) == one_fits else left[0]
        else:
            order = ["ntk", "linear", "yarn", "llama3", "dynamic"]
            worse = left[1] if order.index(one) < order.index(other) else left[0]
        left.remove(worse)
    return names[left[0]] if left else None


def test_the_rules_are_those_of_brute_force():
    generator = random.Random(0)
    names = ["none", *(f"{name} {factor}" for name in SIMPLEST for factor in (2, 4, 8))]
    taken = []
    for _ in range(30):
        own = ["none", *generator.sample(names[1:], generator.randrange(2, 7))]
        losses = {name: generator.choice([1.2, 1.201, 1.202, 1.25, 2.0]) for name in own} | {"none": 2.0}
        within = {name: generator.choice([1.0, 1.001, 1.05]) for name in own}
        recall = {name: generator.choice([-0.01, -0.05, -0.5]) for name in own} if generator.random() < 0.4 else None
        made = planted_recommendation(losses, recall, within=within, noise=generator.choice([0.003, 0.01]))
        tables = (made.losses.tolist(), made.losses_within.tolist())
        answers = made.answers["log_prob"].tolist() if recall else None
        writable = [block is not None for block in made.blocks]
        assert made.taken == brute_force(*tables, answers, own, writable, 4.0), (losses, within, recall)
        taken.append(made.taken)
    assert len({*taken}) > 7


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
