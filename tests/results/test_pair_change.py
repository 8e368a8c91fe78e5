"""A change of some pairs is found in these pairs alone, and its numbers are those of plain arrays."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.results.pair_change import PairChange
from positional_heads.results.record import json_rows
from tests.support import hugging_face
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_profile import synthetic_profile

TOKENS = torch.randint(256, (5, 40), generator=torch.Generator().manual_seed(0))
PAIRS, WIDTH, CHANGED, FACTOR = 8, 16, ph.Head(1, 2), 1.5


@pytest.fixture(scope="module")
def planted(tiny_folder):
    """A model before, and with the queries of some pairs of one head of the last layer enlarged after."""
    before = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))

    def altered(pairs):
        after = copy.deepcopy(before)
        weight = after.model.layers[CHANGED.layer].self_attn.q_proj.weight
        with torch.no_grad():
            for pair in pairs:
                weight[CHANGED.head * WIDTH + torch.tensor([pair, pair + PAIRS])] *= FACTOR
        return after

    return before, altered


def profile(model):
    wrapped = ph.load_model(copy.deepcopy(model))  # a bridge changes the model under it
    return ph.profile_heads(wrapped, TOKENS, retrieval=None, resamples=50)


@pytest.fixture(scope="module")
def first(planted):
    return profile(planted[0])


def by_hand(model, edges):
    """Mean contribution of every pair of the head in every range of distances, [pair range]."""
    sums, counts = np.zeros((PAIRS, len(edges) - 1)), np.zeros(len(edges) - 1)
    for row in TOKENS:
        q, k, _ = hugging_face.read_loaded(copy.deepcopy(model), row.numpy())[CHANGED.layer]
        q, k = q[CHANGED.head].astype(float), k[CHANGED.head].astype(float)
        for m in range(len(row)):
            for n in range(m + 1):
                place = max(number for number, edge in enumerate(edges) if edge <= m - n)
                counts[place] += 1
                for pair in range(PAIRS):
                    both = q[m, pair] * k[n, pair] + q[m, pair + PAIRS] * k[n, pair + PAIRS]
                    sums[pair, place] += both / WIDTH**0.5
    return sums / counts


@pytest.mark.parametrize(("pairs", "slow"), [((4, 6), 1.0), ((0, 3), 0.0), ((2, 5), None)])
def test_the_whole_change_sits_in_the_pairs_that_were_altered(planted, first, pairs, slow):
    before, altered = planted
    after = altered(pairs)
    found = ph.compare(first, profile(after), names=["before", "after"])
    assert [head for head in found.heads if found.pairs.changed[head]] == [CHANGED]
    shares = found.pairs.shares[CHANGED]
    assert float(shares[list(pairs)].sum()) == pytest.approx(1, abs=1e-6)
    held = found.to_frame().set_index("name").loc[str(CHANGED), "slow_share"]
    if slow is not None:
        assert held == pytest.approx(slow, abs=1e-6)
        return
    edges = first.edges.numpy()
    change = by_hand(after, edges) - by_hand(before, edges)
    width = np.diff(edges) / edges[-1]
    squared = [sum(w * x**2 for w, x in zip(width, row, strict=True)) for row in change]
    np.testing.assert_allclose(found.pairs.squared[CHANGED], squared, rtol=1e-4, atol=1e-12)
    level = [sum(w * x for w, x in zip(width, row, strict=True)) ** 2 for row in change]
    np.testing.assert_allclose(found.pairs.level[CHANGED], level, rtol=1e-3, atol=1e-12)
    assert held == pytest.approx(squared[5] / sum(squared), rel=1e-4)
    assert found.to_frame().set_index("name").loc[str(CHANGED), "pair_change"] == pytest.approx(sum(squared) ** 0.5)
    assert "The mean contributions of rotary pairs changed in 1 head: " in found.verdict
    assert "These intervals are over heads" not in found.verdict
    assert found.curve_distance[CHANGED] > 0.01
    assert float(found.curve_distance.flatten().sort().values[-2]) < 1e-4
    assert f"differs most in {CHANGED} (" in found.verdict


def test_an_equal_model_has_no_pair_that_changed(first):
    found = ph.compare(first, replace(first, scores=replace(first.scores, rho_curve=first.scores.rho_curve + 0.01)))
    assert not found.pairs.changed.any()
    assert "No rotary pair changed its mean contribution by more than rounding." in found.verdict
    assert found.pair_frame()["share"].isna().all()
    assert "is the same in all heads, within 0.005 rotary pairs" in found.verdict


def test_means_over_heads_have_an_interval_and_what_to_expect():
    generator = torch.Generator().manual_seed(0)
    squared = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64)
    squared[1, :, 3] = torch.nan  # this layer has three pairs
    squared[0, 0] = 0.0  # a head that did not change
    frequencies = torch.tensor([[1.0, 0.1, 0.01, 0.001], [1.0, 0.5, 0.25, torch.nan]]).double()
    change = PairChange(squared, squared / 2, torch.stack([frequencies, frequencies / 10]))
    assert change.slow.tolist() == [[False, False, True, True], [False, False, True, False]]
    assert change.beyond(100).tolist() == [[False, False, True, True], [False, False, False, False]]
    found = change.mean_share(change.slow)
    by_head = [(row[2] + row[3]) / row.sum() for row in squared[0, 1:].numpy()]
    by_head += [row[2] / row[:3].sum() for row in squared[1].numpy()]
    assert found.heads == 9
    assert found.share == pytest.approx(np.mean(by_head))
    assert found.even == pytest.approx((4 * 2 / 4 + 5 * 1 / 3) / 9)
    assert 0 <= found.low < found.share < found.high <= 1
    student = 2 * 2.31 * np.std(by_head, ddof=1) / 3
    assert 0.6 * student < found.high - found.low < 1.7 * student
    frame = change.to_frame()
    assert frame["share"][3] == pytest.approx(np.mean([row[3] / row.sum() for row in squared[0, 1:].numpy()]))
    assert frame["even"][3] == pytest.approx(1 / 4)
    assert frame["wavelength_a"][0] == pytest.approx(2 * np.pi)
    assert frame["wavelength_b"][3] == pytest.approx(2 * np.pi * 1e4)
    assert frame["wavelength_a"].isna().tolist() == [False, True, True, False]
    np.testing.assert_allclose(frame["level"], frame["share"] / 2)
    assert (frame["share_low"] < frame["share"]).all()
    assert repr(change) == "PairChange(2 layers of 5 heads, 4 pairs, 9 heads changed)"


def test_curves_are_compared_over_the_distances_that_both_have():
    a, b = synthetic_scores(), synthetic_scores(seed=1)
    curve = b.curve.clone()
    curve[0, 0, 2] = torch.nan
    null = replace(b.null, curve_mean=None, curve_sd=None)
    found = ph.compare(a, replace(b, curve=curve[..., :7], pair_counts=b.pair_counts[:, :7], null=null))
    for layer, head in ((0, 0), (1, 3)):
        squares = [
            (float(curve[layer, head, t]) - float(a.curve[layer, head, t])) ** 2
            for t in range(7)
            if not curve[layer, head, t].isnan()
        ]
        assert len(squares) == 7 - (not layer)
        assert float(found.curve_distance[layer, head]) == pytest.approx((sum(squares) / len(squares)) ** 0.5)
    assert found.curve_distance[2].isnan().all()
    assert found.to_frame()["curve_distance"][0] == float(found.curve_distance[0, 0])
    assert "other sequences alone move curves, too" in found.verdict
    short = ph.compare(a.without_curves(), b)
    assert short.curve_distance is None
    assert "curve_distance" not in short.to_frame()
    assert "by distance differs" not in short.verdict


def test_a_comparison_of_profiles_is_saved_and_an_earlier_file_still_loads(tmp_path):
    found = ph.compare(synthetic_profile(), synthetic_profile(seed=1))
    back = ph.Comparison.load(found.save(tmp_path))
    assert back.verdict == found.verdict
    assert back.to_frame().equals(found.to_frame())
    assert back.pair_frame().equals(found.pair_frame())
    assert "Frequencies differ" not in found.verdict
    tensors = {name: one for name, one in found._tensors().items() if not name.startswith(("pairs", "curve_d"))}
    content = {name: one for name, one in found._content().items() if name != "pairs"}
    earlier = ph.Comparison._from_file(content, tensors)
    assert earlier.pairs is None
    assert earlier.curve_distance is None
    assert not {"slow_share", "curve_distance"} & {*earlier.to_frame()}
    with pytest.raises(ValueError, match="only two head profiles show the change by pair"):
        earlier.pair_frame()


def test_pairs_that_do_not_turn_have_an_infinite_wavelength():
    still = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.1, torch.nan]]).double()
    change = PairChange(torch.ones(2, 2, 3).double(), torch.ones(2, 2, 3).double(), torch.stack([still, still]))
    assert change.to_frame()["wavelength_b"][2] == np.inf
    assert change.beyond(10**9)[0].tolist() == [False, False, True]
    (row,) = [row for row in json_rows(change.to_frame()) if row["pair"] == 2]
    json.dumps(row, allow_nan=False)


def test_profiles_of_the_same_scores_and_other_measures_are_no_same_result():
    a = synthetic_profile()
    b = replace(a, pairs=replace(a.pairs, contribution=a.pairs.contribution * 2))
    assert ph.compare(a, b).pairs.changed.any()
    with pytest.raises(ValueError, match="a and b are the same result, every number is equal"):
        ph.compare(a, replace(a))


def test_one_set_of_pairs_is_told_once_and_an_empty_one_not_at_all():
    found = ph.compare(synthetic_profile(), synthetic_profile(seed=1))
    wavelengths = 2 * np.pi / found.pairs.frequencies[0, 0].numpy()
    turns_in = sorted(wavelengths[~np.isnan(wavelengths)])
    half = (len(turns_in) + 1) // 2

    def told(length):
        a = {**found.provenance["a"], "model": {**found.provenance["a"]["model"], "context": length}}
        return replace(found, provenance={**found.provenance, "a": a}).verdict

    assert "tokens, the longest sequence of a, whose context is not recorded" in told(None)

    slow = int(turns_in[half - 1]) + 1  # the slow half turns less than once in so many
    assert turns_in[half - 1] < slow < turns_in[half]
    assert f"slow half of the pairs, which are the pairs that do not turn once within {slow} tokens" in told(slow)
    assert ") in the pairs that do not turn once within 1 tokens" in told(1)
    assert f"pairs; there is no pair that does not turn once within {10**9} tokens" in told(10**9)


def test_profiles_that_cannot_be_compared_by_pair_are_refused():
    a, b = synthetic_profile(), synthetic_profile(seed=1)
    axes = {"frequencies": -1, "query_norm": -1, "key_norm": -1, "agreement": -1, "contribution": -2}
    axes |= {"query_center": -2, "key_center": -2}
    twice = {name: torch.cat([getattr(b.pairs, name)] * 2, axis) for name, axis in axes.items()}
    wide = replace(b, pairs=replace(b.pairs, **twice))
    for other, message in (
        (b.scores, "a is a head profile and b scores only: give two of a kind"),
        (a, "a and b are the same result"),
        (wide, r"a has 4 rotary pairs in a head and b 8.*their \.scores can be compared by head"),
        (replace(b, edges=torch.tensor([0, 1, 4, 12])), "a has 3 ranges up to 9 tokens and b 3 ranges up to 12 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            ph.compare(a, other)
    with pytest.raises(ValueError, match="b is a head profile and a scores only"):
        ph.compare(a.scores, b)
    raised = replace(b, pairs=replace(b.pairs, frequencies=b.pairs.frequencies / 2))
    assert "Frequencies differ: pairs are matched by index." in ph.compare(a, raised).verdict


@pytest.mark.usefixtures("undrawn")
def test_the_command_compares_two_profile_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = synthetic_profile(), synthetic_profile(seed=1)
    a.save(tmp_path / "before")
    b.save(tmp_path / "after")
    b.scores.save(tmp_path / "scores")
    printed = CliRunner().invoke(app, ["compare", "before", "after", "--out", "out"])
    assert printed.exit_code == 0, printed.output
    assert ph.compare(a, b, names=["before", "after"]).verdict in printed.stdout
    assert "slow share" in printed.stdout
    assert "all changed alike" in (tmp_path / "out" / "comparison.md").read_text()
    assert len((tmp_path / "out" / "pairs.csv").read_text().splitlines()) == 5
    assert CliRunner().invoke(app, ["show", "out"]).stdout == printed.stdout
    refused = CliRunner().invoke(app, ["compare", "before", "scores"])
    assert refused.stderr.startswith("error: before is a head profile and scores scores only")
    page = CliRunner().invoke(app, ["report", "out"])
    assert page.exit_code == 0, page.output
    assert "Pairs with the largest share of the change" in (tmp_path / "out" / "report.html").read_text()
