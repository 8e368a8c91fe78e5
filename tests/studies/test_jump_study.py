"""Steps of D across the training length, measured and predicted, against plain Python in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import positional_heads as ph
from positional_heads.core.predicted_curve import predicted_curve
from tests.support.synthetic_studies import planted_jumps


def plain_dominance(contributions):
    top = max(contributions)
    weights = [math.exp(one - top) for one in contributions]
    return sum(index * weight for index, weight in enumerate(weights)) / sum(weights)


def test_a_curve_is_the_mean_over_pairs_of_queries_and_keys_turned_apart():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 5, 3)) + 1j * rng.normal(size=(2, 5, 3)) for _ in range(2))
    frequencies, distances = [1.0, 0.1, 0.01], [0, 3, 40]
    product = torch.from_numpy(q * k.conj()).to(torch.complex64)
    found = predicted_curve(product, torch.tensor(frequencies).double(), torch.tensor(distances)[:, None], 0.5)
    for head in range(2):
        for column, distance in enumerate(distances):
            ds = []
            for sample in range(5):
                turned = [
                    (q[head, sample, i] * np.exp(1j * w * distance) * k[head, sample, i].conjugate()).real / 0.5
                    for i, w in enumerate(frequencies)
                ]
                ds.append(plain_dominance(turned))
            assert float(found[head, column]) == pytest.approx(np.mean(ds), abs=1e-5)


@pytest.fixture(scope="module")
def jumps(bundled):
    return ph.jump_study(bundled, ph.bundled_text()[:3000], training_length=64, sequences=8, samples=1024)


def test_a_study_measures_what_scoring_does_and_predicts_from_the_other_sequences(bundled, jumps):
    assert [str(head) for head in jumps.heads[:2]] == ["L0H0", "L0H1"]
    ids = [256, *ph.bundled_text()[:3000].encode()]
    rows = torch.tensor([[256, *ids[1 + 79 * row : 80 + 79 * row]] for row in range(8)])
    curve = ph.score_heads(bundled, rows[:4], null_repeats=0).curve
    torch.testing.assert_close(jumps.measured[9], curve[1, 1, :68].double(), atol=1e-4, rtol=0)
    _, cache = bundled.run_with_cache(rows[4:, :64])  # hook_q and hook_k come before the rotation
    head, pairs = 5, 16
    parts = [cache[f"blocks.0.attn.hook_{name}"][:, :, head].double().flatten(0, 1).split(pairs, -1) for name in "qk"]
    q, k = (torch.complex(*part) for part in parts)
    frequencies = 10000.0 ** (-torch.arange(pairs).double() / pairs)
    for place in (0, 40, len(jumps.places) - 1):
        distance = int(jumps.places[place])
        turned = (q[:, None] * k[None].conj() * torch.polar(torch.ones(pairs).double(), frequencies * distance)).real
        weights = turned.softmax(-1)
        every = (weights * torch.arange(pairs)).sum(-1)
        found, error = float(jumps.predicted[head, place]), 5 * float(every.std()) / 32
        assert found == pytest.approx(float(every.mean()), abs=error)


def test_pairs_are_held_where_their_angles_would_be_unseen(jumps):
    frequencies = 10000.0 ** (-np.arange(16) / 16)
    assert jumps.to_frame()["unseen_pairs"].tolist() == [int((2 * np.pi / frequencies > 64).sum())] * 32
    within = jumps.places < 64
    assert torch.equal(jumps.predicted[:, within], jumps.held[:, within])
    assert (jumps.predicted[:, ~within] - jumps.held[:, ~within]).abs().max() > 1e-3


def test_steps_and_agreement_are_those_of_numpy():
    study = planted_jumps()
    frame, found = study.to_frame(), study.agreement().set_index("prediction")
    measured, places = study.measured.numpy(), study.places.numpy()
    step = measured[:, 64:68].mean(1) - measured[:, 60:64].mean(1)
    np.testing.assert_allclose(frame["step"], step)
    np.testing.assert_allclose(frame["before"], measured[:, 60:64].mean(1) - measured[:, 56:60].mean(1))
    beyond, within = (places >= 64), (places >= 60) & (places < 64)
    for name, column, curve in (("rotation", "predicted", study.predicted), ("unseen angles held", "held", study.held)):
        predicted = curve.numpy()[:, beyond].mean(1) - curve.numpy()[:, within].mean(1)
        np.testing.assert_allclose(frame[column], predicted)
        assert found.loc[name, "correlation"] == pytest.approx(spearmanr(step, predicted).statistic)
        explained = 1 - ((step - predicted) ** 2).sum() / ((step - step.mean()) ** 2).sum()
        assert found.loc[name, "explained"] == pytest.approx(explained)
        assert found.loc[name, "explained_low"] < explained < found.loc[name, "explained_high"]


def test_the_verdict_says_follow_only_where_it_does():
    study = planted_jumps()
    assert "follow from rotation alone" in study.verdict
    wrong = replace(study, predicted=study.predicted.flip(0))
    assert "do not follow from rotation alone" in wrong.verdict
    assert wrong.agreement()["p_value"][0] > 0.05 > study.agreement()["p_value"][0]


def test_what_makes_no_sense_is_refused(bundled):
    with pytest.raises(ValueError, match=r"the text has 20 tokens, a sequence at the jump study needs 640"):
        ph.jump_study(bundled, "in the beginning was")
    with pytest.raises(ValueError, match="at least two are needed"):
        ph.jump_study(bundled, ph.bundled_text()[:150], training_length=64)
    with pytest.raises(ValueError, match="training_length 63 is too short"):
        ph.jump_study(bundled, ph.bundled_text(), training_length=63)
    with ph.extended_rope(bundled, "linear", 2), pytest.raises(RuntimeError, match="extended"):
        ph.jump_study(bundled, ph.bundled_text())
