"""A distance response against the model's own patterns while its pairs are manipulated, and on a planted head."""

import math

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr

import positional_heads as ph
from positional_heads.studies.distance_response import _Turns
from positional_heads.zoo.architecture import byte_tokenizer
from tests.support.tiny_models import COMMON, boot

LENGTH, SINKS, FACTORS = 24, 2, (0.5, 2.0)
TOKENS = torch.randint(97, 122, (4, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "gemma3", "mistral"])
def test_reach_is_that_of_the_models_own_pattern_while_its_pairs_turn_otherwise(family, tiny):
    model = tiny(family)
    found = ph.distance_response(model, TOKENS[:2], factors=FACTORS, n_random=1, sinks=SINKS, n=1)
    for head in (ph.Head(0, 1), ph.Head(1, 2)):
        for one, factor in ((0, 0.5), (0, 1.0), (1, 2.0)):
            pairs = found.pairs[one][head].tolist()
            with ph.manipulated_pairs(model, head, pairs, "scale", factor=factor, shared="split"):
                pattern = model.run_with_cache(TOKENS[:2])[1]["pattern", head.layer, "attn"][:, head.head].tolist()
            at = found.factors.tolist().index(factor)
            for row in range(2):
                queries = range(LENGTH // 2, LENGTH)
                seen = [(m - n, pattern[row][m][n]) for m in queries for n in range(SINKS, m + 1)]
                assert float(found.sums[one, at, row][head]) == pytest.approx(sum(t * a for t, a in seen), abs=2e-3)
                assert float(found.weights[one, at, row][head]) == pytest.approx(sum(a for _, a in seen), abs=1e-4)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """All tokens have one query and one key: the score of head 0 is A cos(w t - 0.2), with its peak at 20 tokens."""
    settings = {**COMMON, "num_hidden_layers": 1, "attention_bias": True, "num_key_value_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for part in (attention.q_proj, attention.k_proj):
            part.weight.zero_()
            part.bias.normal_(generator=torch.Generator().manual_seed(0))
            part.bias[:16] = 0
        frequency = 10_000.0 ** (-4 / 8)  # pair 4: channels 4 and 12
        ahead = 20 * frequency  # of the query, which turns further than a key behind it
        attention.q_proj.bias[4] = 50.0
        attention.k_proj.bias[4], attention.k_proj.bias[12] = 50 * math.cos(ahead), 50 * math.sin(ahead)
    folder = tmp_path_factory.mktemp("planted")
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return boot(folder).eval()


def test_a_head_that_attends_by_one_angle_alone_responds_by_exactly_1(planted):
    tokens = torch.randint(97, 122, (4, 240), generator=torch.Generator().manual_seed(5))
    found = ph.distance_response(planted, tokens, n=1, n_random=3)
    assert found.pairs[0, 0, 0].tolist() == [4]
    reach = (found.sums.sum(2) / found.weights.sum(2))[0, :, 0, 0]
    np.testing.assert_allclose(reach.numpy(), 20 / found.factors.numpy(), rtol=0.01)
    assert float(found.response[0, 0]) == pytest.approx(1, abs=0.01)
    assert float(found.others[0, 0]) == pytest.approx(0, abs=1e-6)
    assert ph.Head(0, 0) in found.following
    explicit = ph.distance_response(planted, tokens, "L0H0", pairs=[4], n_random=3)
    assert explicit.heads == [ph.Head(0, 0)]
    assert torch.equal(explicit.response[0, :1], found.response[0, :1])
    assert "1 of 1 heads follows the dominant pairs" in explicit.verdict


def test_slope_interval_and_correlation_follow_their_definitions(tiny):
    found = ph.distance_response(tiny("llama"), TOKENS, factors=FACTORS, n_random=2, sinks=SINKS, null_repeats=3)
    reach = (found.sums.sum(2) / found.weights.sum(2)).numpy()
    slope = np.polyfit(np.log(1 / found.factors.numpy()), np.log(reach[0, :, 1, 2]), 1)[0]
    assert float(found.response[1, 2]) == pytest.approx(slope, abs=1e-9)
    low, high = found.interval()[1, 2].tolist()
    assert low < slope < high
    rows = found.correlations().set_index("measure")
    for name, values in (("rho", found.scores.rho), ("excess", found.scores.excess)):
        expected = spearmanr(values.flatten().numpy(), found.response.flatten().numpy()).statistic
        assert rows.loc[name, "correlation"] == pytest.approx(expected, abs=1e-6)
        assert rows.loc[name, "low"] <= expected <= rows.loc[name, "high"]
    for one in range(1, 3):  # other pairs are others
        assert not bool((found.pairs[one, :, :, :, None] == found.pairs[0, :, :, None]).any())
    few = ph.distance_response(tiny("llama"), TOKENS[:3], factors=FACTORS, n_random=1, sinks=SINKS)
    assert bool(few.interval().isnan().all())
    assert "no interval below 4 groups of sequences" in few.verdict


def test_an_interrupted_run_resumes(tiny, tmp_path, monkeypatch):
    given = {"factors": FACTORS, "n_random": 1, "sinks": SINKS, "batch_size": 2}
    whole = ph.distance_response(tiny("llama"), TOKENS, **given)
    count = _Turns.count
    monkeypatch.setattr(_Turns, "count", lambda self, number: count(self, number) if number == 0 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ph.distance_response(tiny("llama"), TOKENS, checkpoint=tmp_path, **given)
    monkeypatch.setattr(_Turns, "dominance", lambda *_: 1 / 0)
    monkeypatch.setattr(_Turns, "count", lambda self, number: count(self, number) if number == 1 else 1 / 0)
    resumed = ph.distance_response(tiny("llama"), TOKENS, checkpoint=tmp_path, **given)
    assert torch.equal(resumed.sums, whole.sums)
    with pytest.raises(ValueError, match="another study"):
        ph.distance_response(tiny("llama"), TOKENS, checkpoint=tmp_path, **given | {"sinks": 1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"factors": []}, "must be positive, different, and not 1"),
        ({"factors": [1.0]}, "must be positive, different, and not 1"),
        ({"factors": [1 + 1e-9]}, "must be positive, different, and not 1"),
        ({"heads": []}, "no head given: name at least one"),
        ({"factors": [2, 2]}, "must be positive, different, and not 1"),
        ({"factors": [-1.0]}, "must be positive, different, and not 1"),
        ({"n": 5}, "5 of 8 pairs of layer 0 leave fewer others"),
        ({"pairs": [8]}, "different numbers of 0 to 7"),
        ({"pairs": [1, 1]}, "different numbers of 0 to 7"),
        ({"pairs": []}, "different numbers of 0 to 7"),
        ({"pairs": [1], "n": 1}, "leave it out where pairs are given"),
        ({"n_random": 0}, "n_random 0 must be at least 1"),
        ({"sinks": LENGTH}, "its second half must begin after the 24 sinks"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message, tiny):
    with pytest.raises(ValueError, match=message):
        ph.distance_response(tiny("llama"), TOKENS, **given)


def test_extended_and_manipulated_models_are_refused(tiny):
    model = tiny("llama")
    moved = ph.manipulated_pairs(model, "L0H0", [1], "freeze", shared="split")
    with moved, pytest.raises(RuntimeError, match="leave that block"):
        ph.distance_response(model, TOKENS)
    with pytest.raises(ph.UnsupportedModelError, match="not rotary"):
        ph.distance_response(tiny("gpt2"), TOKENS)
