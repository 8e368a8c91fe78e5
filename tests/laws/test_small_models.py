"""The page of small models says what the kept results say: counted anew from the kept rows."""

import csv
import json
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats

import positional_heads as ph

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "experiments" / "small"
LONGER = ROOT / "experiments" / "longer"
PAGE = (ROOT / "docs" / "small_models.md").read_text(encoding="utf-8")
SAID = " ".join(PAGE.split())
RUNS = [f"{kind}-{seed}" for seed in "01" for kind in ("rotary-1e3", "rotary-1e4", "rotary-1e6")]


def rows(name, **where):
    with (KEPT / f"{name}.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in where.items())]


def block(name):
    lines = PAGE.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def above(heads):
    """Heads with a positive rho whose excess is significantly positive at a false discovery rate of 0.05."""
    return [one for one in heads if float(one["excess"]) > 0 < float(one["rho"]) and float(one["q_value"] or 1) < 0.05]


def test_heads_beat_their_null_where_the_model_was_not_trained():
    seen, counts = {"1000": 128, "1750": 256, "2929": 512}, {"trained": [0, 0], "beyond": [0, 0]}
    for told in block("lengths"):
        heads = rows("lengths", step=told[0], length=told[2])
        rho = [float(one["rho"]) for one in heads]
        stay = sum(one["stays"] == "True" for one in heads)
        least = [f"{median(rho):.2f}", f"{max(rho):.2f}", f"{len(above(heads))} of {len(heads)}", str(stay)]
        assert told[1:] == [str(seen[told[0]]), told[2], *least]
        beyond = int(told[2]) > seen[told[0]]
        assert (median(rho) > 0) == beyond
        counts["beyond" if beyond else "trained"][0] += stay
        counts["beyond" if beyond else "trained"][1] += len(heads)
    assert counts == {"trained": [0, 648], "beyond": [16, 216]}
    assert "16 of 216" in SAID
    assert "none of 648" in SAID


def test_no_head_beats_its_null_at_the_end_and_none_is_born():
    """From the rows of every checkpoint and head inside the files."""
    highest, orders = [], []
    for name in [*RUNS, "passages-0"]:
        study = ph.EmergenceStudy.load(KEPT / f"emergence-{name}")
        heads = study.to_frame().to_dict("records")
        found = {step: above([one for one in heads if one["step"] == step]) for step in study.steps}
        (told,) = [line for line in block("emergence") if line[0] == name]
        assert told[3] == str(len(found[2929])) == "0"
        most = max(found, key=lambda step: len(found[step]))
        assert told[2] == f"{len(found[most])} at step {most}"
        assert not any(found[step] for step in (2000, 2500))
        highest.append(max(one["rho"] for one in heads if one["step"] == 0))
        assert study.order().empty
        orders += study.order("retrieval")["first"].tolist()
    assert f"a rho of up to {max(highest):.2f}" in SAID
    assert f"By the retrieval score {len(orders)} are, {orders.count('skill')} of them after the skill" in SAID
    assert orders.count("head") == 0


def test_every_encoding_has_heads_that_far_recall_needs():
    most = {}
    for told in block("encodings"):
        answers = {}
        for row in rows("needed", run=told[0]):
            answers.setdefault(row["head"], {})[row["unit"]] = float(row["log_prob"])
        plain, needed = answers.pop("none"), 0
        for found in answers.values():
            costs = [plain[unit] - found[unit] for unit in plain]
            test = stats.ttest_1samp(costs, 0)
            needed += test.confidence_interval(0.95).low > 0.1
            most[told[0]] = max(most.get(told[0], 0), fmean(costs))
        assert told[7] == str(needed)
        assert 1 <= needed <= 6
        assert float(told[8].split()[0]) == pytest.approx(most[told[0]], abs=0.006)
        passkeys = rows("answers", run=told[0], base="", measure="passkey", reach="long")
        assert float(told[2].split()[0]) == pytest.approx(fmean(float(one["log_prob"]) for one in passkeys), abs=0.006)
        assert float(told[3]) == pytest.approx(fmean(float(one["exact"]) for one in passkeys), abs=0.006)
        assert told[4] == str(sum(one["far"] == "True" for one in rows("distances", run=told[0]))) == "0"
    others = [cost for run, cost in most.items() if not run.startswith("none")]
    assert min(most["none-0"], most["none-1"]) > max(others)
    assert f"({most['none-0']:.1f} and {most['none-1']:.1f} nats)" in SAID


def test_reach_is_as_told():
    reach = {}
    for row in rows("distances"):
        reach.setdefault(row["run"], []).append(float(row["reach"]))
    furthest = {run: max(found) for run, found in reach.items()}
    rotary = [furthest[run] for run in RUNS]
    others = [furthest[f"{kind}-{seed}"] for kind in ("none", "alibi", "sinusoidal") for seed in "01"]
    assert f"reaches {min(rotary):.0f} to {max(rotary):.0f} tokens" in SAID
    assert f"reach {min(others):.0f} to {max(others):.0f}." in SAID
    none = [row for row in rows("distances") if row["run"].startswith("none")]
    first, later = (
        [float(row["reach"]) for row in none if (row["layer"] == "0") == is_first] for is_first in (True, False)
    )
    assert f"(reach {min(first):.0f} to {max(first):.0f})" in SAID
    assert f"look {min(later):.0f} to {max(later):.0f} tokens back" in SAID


def test_another_base_costs_within_the_training_length_and_a_larger_one_may_help_beyond():
    for seed in "01":
        for trained in ("1e3", "1e4", "1e6"):
            run = f"rotary-{trained}-{seed}"
            losses = {
                float(base): fmean(float(one["loss"]) for one in rows("answers", run=run, measure="loss", base=base))
                for base in ("1000.0", "10000.0", "1000000.0")
            }
            own = losses.pop(float(trained))
            assert min(losses.values()) - own > 0.07
            assert max(losses.values()) - own < 1.55
        beyond = {one["method"]: one for one in rows("bases", run=f"rotary-1e3-{seed}")}
        own, larger = (beyond[f"base (factor 1, base {base})"] for base in (1000, 10000))
        assert float(larger["loss"]) < float(own["loss"])
        assert float(larger["log_prob"]) > float(own["log_prob"])


def test_rotation_explains_the_steps_of_every_base():
    for told in block("small jumps"):
        heads = [one for one in rows("jumps") if one["run"].startswith(told[0])]
        steps = [float(one["step"]) for one in heads]
        total = sum((step - fmean(steps)) ** 2 for step in steps)
        for column, name in ((3, "predicted"), (4, "held"), (5, "before")):
            missed = sum((step - float(one[name])) ** 2 for step, one in zip(steps, heads, strict=True))
            assert float(told[column]) == pytest.approx(1 - missed / total, abs=0.006)
        assert float(told[3]) > 0.98


def test_longer_training_changed_what_the_page_says():
    """Shares anew with NumPy from the squared changes in the files, and the recall beside them."""
    recall = json.loads((LONGER / "recall.json").read_text())
    table = {line[0]: line[1:] for line in block("longer")}
    slow, distances = {}, {}
    for way, name in {"raised": "2048, base 1e5", "longer": "2048", "control": "512"}.items():
        for seed in "01":
            for place, read in enumerate(("512", "2048")):
                with safe_open(LONGER / f"{way}-{seed}-{read}.safetensors", "numpy") as kept:
                    squared, frequencies = kept.get_tensor("pairs.squared"), kept.get_tensor("pairs.frequencies")
                    distances[way, seed, read] = kept.get_tensor("curve_distance").flatten()
                assert ((2 * np.pi / frequencies[0] > 512) == [False] * 8 + [True] * 8).all()
                shares = (squared / squared.sum(-1, keepdims=True)).reshape(12, 16)
                slow[way, seed, read] = shares[:, 8:].sum(1)
                told = [cell.split(" / ")[int(seed)] for cell in table[name][place::2]]
                moved = np.median(distances[way, seed, read])
                numbers = (moved, slow[way, seed, read].mean(), recall[f"{way}-{seed}"][read])
                assert [float(one) for one in told] == pytest.approx(numbers, abs=0.0051)
    for seed in "01":
        for read in ("512", "2048"):
            control = distances["control", seed, read]
            assert (np.minimum(distances["longer", seed, read], distances["raised", seed, read]) > 4 * control).all()
            difference = slow["longer", seed, read] - slow["control", seed, read]
            interval = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
            assert interval.low < 0 < interval.high
            assert 0.035 < difference.mean() < 0.065
            assert (
                recall[f"raised-{seed}"]["2048"] > 3 * recall[f"longer-{seed}"]["2048"] > 10 * recall["before"]["2048"]
            )
            assert recall[f"control-{seed}"]["2048"] == recall["before"]["2048"]


def test_the_kept_results_are_small_and_name_no_folder():
    kept = [path for folder in (KEPT, LONGER) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 3e6
    for path in kept:
        assert b"/tmp/" not in path.read_bytes()
