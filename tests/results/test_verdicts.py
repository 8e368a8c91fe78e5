"""Verdicts say what the numbers say, including that nothing was found."""

import re

import pytest
import torch

from positional_heads.results.verdicts import scores_verdict

RHO, EXCESS = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.1, 0.2]])


@pytest.mark.parametrize(
    ("q", "excess", "rho", "groups", "words"),
    [
        (None, None, RHO, 4, "2 heads scored, without a null model"),
        (None, None, RHO * torch.nan, 4, "No head has a defined score"),
        (torch.tensor([[0.5, 0.9]]), torch.tensor([[0.1, 0.2]]), RHO, 4, "No head beats its null: of 2 heads"),
        (torch.tensor([[0.01, 0.01]]), torch.tensor([[-0.1, -0.2]]), RHO, 4, "No head beats its null"),
        (
            torch.tensor([[0.01, 0.9]]),
            torch.tensor([[0.125, 0.2]]),
            RHO,
            4,
            r"1 of 2 heads beat their null with a positive rho \(at.*sequences\); the largest.*0.125",
        ),
        (
            *(torch.tensor([[0.01, 0.01]]), torch.tensor([[0.1, 0.2]]), RHO, 4),
            r"^1 of 2 heads beat their null with a positive rho .*; 1 more has a significant excess but rho of 0 or "
            r"less: no Positional Heads; the largest excess .* is 0.100",
        ),
        (
            *(torch.tensor([[0.01, 0.01]]), torch.tensor([[0.1, 0.2]]), -RHO.abs(), 4),
            r"^No head with a positive rho beats its null .*; 2 of 2 heads have a significant excess but rho of 0",
        ),
        (torch.tensor([[0.01, 0.9]]), torch.tensor([[0.125, 0.2]]), RHO, 1, "over a single sequence"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(q, excess, rho, groups, words):
    assert re.search(words, scores_verdict(rho, excess, q, n_groups=groups, repeats=20))


@pytest.mark.parametrize(
    ("groups", "repeats", "few"),
    [
        (4, 4, None),
        (4, 3, "3 shuffles and 4 groups"),
        (3, 4, "4 shuffles and 3 groups"),
        (1, 20, "20 shuffles and 1 group of"),
    ],
)
def test_a_run_of_little_power_is_undecided(groups, repeats, few):
    said = scores_verdict(RHO, EXCESS, torch.tensor([[0.5, 0.9]]), n_groups=groups, repeats=repeats)
    assert said.startswith("Undecided: " if few else "No head beats its null")
    assert not few or few in said
    assert not few or "Score again with null_repeats=20 and at least 8 sequences" in said
    found = scores_verdict(RHO, EXCESS, torch.tensor([[0.01, 0.9]]), n_groups=groups, repeats=repeats)
    assert found.startswith("1 of 2 heads beat their null")


@pytest.mark.parametrize(
    ("control", "said", "unsaid"),
    [
        (None, "Leading positions differ.*score with control_keys=64", "stay"),
        (
            (64, torch.tensor([[True, False]])),
            r"1 of the 1 stays when the first 64 keys are left out \(L0H0\); ",
            "control_keys",
        ),
        ((8, torch.tensor([[False, False]])), "0 of the 1 stay when the first 8 keys are left out", "control_keys"),
    ],
)
def test_the_verdict_says_how_many_heads_stay(control, said, unsaid):
    found = scores_verdict(RHO, EXCESS, torch.tensor([[0.01, 0.9]]), n_groups=4, repeats=20, control=control)
    assert re.search(said, found)
    assert unsaid not in found
    undecided = scores_verdict(RHO, EXCESS, torch.tensor([[0.5, 0.9]]), n_groups=1, repeats=20, control=control)
    assert "keys" not in undecided


def test_the_verdict_names_ten_heads_that_stay_the_largest_excess_first():
    excess = torch.arange(1, 13).double()[None] / 100
    stays = torch.ones(1, 12, dtype=torch.bool)
    found = scores_verdict(excess, excess, 0 * excess, n_groups=4, repeats=20, control=(64, stays))
    names = ", ".join(f"L0H{head}" for head in range(11, 1, -1))
    assert f"12 of the 12 stay when the first 64 keys are left out ({names} and 2 more); " in found
