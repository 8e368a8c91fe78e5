"""The record of a head plan: who gets a window, what is kept, ties, missing values, and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from positional_heads.core.heads import Head
from positional_heads.core.key_heads import lowest, permuted_within_layers
from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.window_plan import ranking, window_plan
from tests.support.synthetic_profile import synthetic_profile

SIX = torch.arange(6, dtype=torch.float64).view(3, 2)


def with_windows(profile, *windows):
    rotary = [{"layer": layer, "window": window} for layer, window in enumerate(windows)]
    return replace(profile, provenance={**profile.provenance, "rotary": rotary})


@pytest.mark.parametrize("name", ["reach", "rho", "kernel"])
def test_the_lowest_by_their_most_demanding_reader_get_windows(name) -> None:
    profile = synthetic_profile()
    values = profile.values(name).numpy()
    readers = {(layer, key): [2 * key, 2 * key + 1] for layer in (0, 1) for key in (0, 1)}
    need = {place: max(values[place[0], head] for head in heads) for place, heads in readers.items()}
    assert torch.equal(ranking(profile, name)[1].nan_to_num(-9), profile.by_key_head(name).nan_to_num(-9))
    for budget, n_windows in ((0, 4), (0.25, 3), (0.5, 2), (0.6, 2), (0.63, 1), (0.875, 0), (1, 0)):
        plan = window_plan(profile, budget, by=name)
        expected = sorted(need, key=need.get)[:n_windows]
        assert sorted(map(tuple, plan.windowed.nonzero().tolist())) == sorted(expected)
        assert plan.heads == sorted(Head(layer, head) for layer, key in expected for head in readers[layer, key])
    least = window_plan(profile, 0.5, by=f"-{name}")
    need = {place: max(-values[place[0], head] for head in heads) for place, heads in readers.items()}
    assert sorted(map(tuple, least.windowed.nonzero().tolist())) == sorted(sorted(need, key=need.get)[:2])


def test_kept_entries_are_counted_one_by_one() -> None:
    plan = window_plan(with_windows(synthetic_profile(), None, 7, None), 0.5, window=3, sinks=2)
    assert plan.windowed.sum() == 1
    for length in (1, 4, 6, 20):
        kept = whole = 0
        for layer in range(3):
            for key in range(2):
                for position in range(length):
                    back = length - 1 - position
                    own = layer != 1 or back < 7
                    whole += own
                    kept += own and (not plan.windowed[layer, key] or back < 3 or position < 2)
        assert plan.kept(length) == kept
        assert plan.kept_share(length) == pytest.approx(kept / whole)
    with pytest.raises(ValueError, match="length 0 must be at least 1"):
        plan.kept(0)


def test_layers_that_cannot_get_windows_stay_and_do_not_count() -> None:
    profile = synthetic_profile()
    plan = window_plan(with_windows(profile, 7, None, None), 0.5)
    assert plan.windowed.nonzero().tolist() == [[1, int(profile.by_key_head("reach")[1].argmin())]]
    assert not plan.windowed[2].any()
    assert plan.notes == [
        "Layers 2 were not profiled, and stay as they are.",
        "Layers 0 have a sliding window of their own, and stay as they are.",
    ]
    assert plan.own_windows.tolist() == [7, 0, 0]
    with pytest.raises(ValueError, match="no key head can get a window: every layer has a sliding window"):
        window_plan(with_windows(profile, 7, 7, None))
    assert torch.equal(plan.full_attention, 1 - plan.windowed.double())


def test_what_nobody_knows_is_not_counted_and_said() -> None:
    profile = synthetic_profile()
    short = replace(profile, provenance={**profile.provenance, "cache": profile.provenance["cache"][:2]})
    plan = window_plan(short, 0.5, window=4, sinks=1)
    assert plan.kept(20) == 2 * 20 + 2 * 5  # of layers 0 and 1
    assert plan.kept_share(20) == 50 / 80
    assert plan.notes[-1].startswith("How many key heads layers 2 hold is not known: all numbers of entries leave them")
    assert "Entries of the cache that are kept (layers 2 left out): " in plan.verdict
    assert set(plan.to_frame()["layer"]) == {0, 1}
    older = {name: value for name, value in profile.provenance.items() if name != "cache"}
    said = window_plan(replace(profile, provenance=older)).notes
    assert "This profile does not say whether layers share keys; if they do (Gemma-3n, Gemma-4), profile the" in said[1]


def test_equal_values_are_broken_by_order_and_said() -> None:
    profile, same = synthetic_profile(), torch.tensor([[1.0, 0.0], [0.0, 0.0], [9.0, 9.0]]).double()
    plan = window_plan(profile, 0.5, by=("mine", same))
    assert plan.windowed.tolist() == [[False, True], [True, False], [False, False]]
    assert plan.notes[1:] == [
        "3 key heads share the value 0 of mine; 2 of them get a window, the first by layer and number, for no other "
        "reason."
    ]
    assert len(window_plan(profile, 0.25, by=("mine", same)).notes) == 1
    assert plan.by == "mine"


def test_key_heads_without_a_value_keep_all_keys() -> None:
    profile = synthetic_profile()
    values = torch.tensor([[torch.nan, 5.0], [torch.nan, 6.0], [0.0, 0.0]]).double()
    plan = window_plan(profile, 0.5, by=("mine", values))
    assert plan.windowed.tolist() == [[False, True], [False, True], [False, False]]
    assert "2 key heads have no value of mine, and keep all keys." in plan.notes
    with pytest.raises(ValueError, match="windows to 3 key heads, and only 2 have a value of mine: give a larger"):
        window_plan(profile, 0.25, by=("mine", values))
    by_reader = torch.full((3, 4), torch.nan).double()
    by_reader[0, 1], by_reader[1, 2] = 3.0, 2.0
    assert window_plan(profile, 0.75, by=("mine", by_reader)).windowed.nonzero().tolist() == [[1, 1]]


def test_chance_draws_every_key_head_alike_and_the_same_by_seed() -> None:
    profile = synthetic_profile()
    drawn = torch.stack([window_plan(profile, 0.25, by="chance", seed=seed).windowed for seed in range(200)])
    assert torch.equal(drawn[3], window_plan(profile, 0.25, by="chance", seed=3).windowed)
    assert set(drawn.sum((1, 2)).tolist()) == {3}
    assert not drawn[:, 2].any()
    # 200 draws of 3 of 4: 150 of each, with a standard deviation of 6
    np.testing.assert_allclose(drawn.sum(0)[:2].numpy(), 150, atol=25)
    among, values = torch.ones(3, 5, dtype=torch.bool), torch.arange(15, dtype=torch.float64).view(3, 5)
    among[0, 0], values[1, 3] = False, torch.nan
    own = lowest(values, among, 6)
    drawn = torch.stack([lowest(permuted_within_layers(values, among, str(seed)), among, 6) for seed in range(200)])
    assert set(map(tuple, drawn.sum(-1).tolist())) == {tuple(own.sum(-1).tolist())}
    assert not drawn[:, 0, 0].any()
    n_chosen = own.sum(-1).double()
    expected = 200 * n_chosen[:, None] / among.sum(-1, keepdim=True)
    np.testing.assert_allclose(drawn.sum(0)[among].numpy(), expected.expand(3, 5)[among].numpy(), atol=30)


def test_a_plan_is_applied_as_an_ablation_and_says_what_it_is(tmp_path) -> None:
    plan = window_plan(synthetic_profile(), 0.5, window=16, sinks=3)
    assert plan.ablation == {"heads": plan.heads, "mode": "far", "distance": 15, "sinks": 3}
    assert plan.description.startswith("made up: 2 of 6 key heads, those lowest by reach, see the first 3 and the last")
    assert "This is a choice, not yet evidence" in plan.verdict
    none, every = (window_plan(synthetic_profile(), budget) for budget in (1, 0))
    assert none.verdict.startswith("no key head of 6 has a window: all stay as they are. Entries of the cache that are")
    assert every.description.startswith("made up: 4 of 6 key heads, all that can have a window, see the first 1 and")
    frame = plan.to_frame()
    assert list(frame["windowed"]) == plan.windowed.flatten().tolist()
    assert frame["readers"][3] == "L1H2 L1H3"
    assert frame["readers"][5] == ""
    loaded = HeadPlan.load(plan.save(tmp_path))
    assert loaded.to_frame().equals(frame)
    assert loaded.ablation == plan.ablation
    assert (loaded.verdict, loaded.notes, loaded.budget) == (plan.verdict, plan.notes, 0.5)


BAD = {
    "share": ({"budget": 1.5}, "budget 1.5 must be from 0 to 1"),
    "percent": ({"budget": 50}, "budget 50 must be from 0 to 1"),
    "window": ({"window": 1}, "window 1 must be at least 2"),
    "sinks": ({"sinks": -1}, "sinks -1 must be at least 0"),
    "measure": ({"by": "lenght"}, "'lenght' is no measure of this profile"),
    "minus": ({"by": "-lenght"}, "'lenght' is no measure of this profile"),
    "taken": ({"by": ("reach", SIX)}, "'reach' is a name of ours"),
    "unprintable": ({"by": ("mi\0ne", SIX)}, "holds characters that cannot be printed"),
    "chance": ({"by": ("chance", SIX)}, "'chance' is a name of ours"),
    "form": ({"by": ("mine",)}, "by is a tuple, but not of a name and values"),
    "shape": ({"by": ("mine", SIX.T)}, r"mine has shape \[2, 3\], this model \[3, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_plans_are_refused(case) -> None:
    settings, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        window_plan(synthetic_profile(), **settings)
