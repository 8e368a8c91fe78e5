"""The page of findings says what the kept results say, and these are of one model, small, and name nobody's folders."""

import csv
import json
import math
import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from scipy.stats import false_discovery_control, spearmanr, ttest_1samp

import positional_heads as ph

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "experiments"
SCORES = sorted(path for path in (KEPT / "scores").iterdir() if path.is_dir())
EXTENDED = sorted(KEPT.glob("extrapolation*"))
PUBLISHED_RANKS = ROOT / "positional_heads/results/formats/published/mha2mla/smollm1_135M-2_norm_rank.pth"
STUDIES = sorted(path for path in (KEPT / "ablation").iterdir() if path.is_dir())


PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
SAID = " ".join(PAGE.split())


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Every kept result is read once, and so its tables, which it remembers, are made once."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (ph.AblationStudy, ph.ExtrapolationStudy, ph.HeadScores, ph.PlanStudy):
            patch.setattr(kind, "load", cache(kind.load))
        yield


def test_the_tables_are_those_of_the_kept_results(monkeypatch):
    monkeypatch.syspath_prepend(KEPT)
    tables = runpy.run_path(str(KEPT / "tables.py"))
    pages = {page.name: page.read_text(encoding="utf-8") for page in tables["PAGES"]}
    assert set(pages) == {"findings.md", "small_models.md", "README.md"}
    assert all(any(f"<!-- {name} -->" in page for page in pages.values()) for name in tables["TABLES"])
    tables["TABLES"].pop("predictors")  # its intervals take ten seconds
    for page in pages.values():
        assert tables["page"](page) == page


def test_random_sets_and_the_intact_model_are_counted_from_the_kept_answers():
    """Anew with NumPy, from the numbers in the file."""
    for name in ("rho-zero", "rho-far", "rho_curve-zero"):
        with safe_open(KEPT / "ablation" / name / "study.safetensors", "numpy") as file:
            known = json.loads(file.metadata()["positional_heads"])
            found = {key: file.get_tensor(f"values.{key}").astype(float) for key in ("log_prob", "exact")}
        sets = list(dict.fromkeys(tuple(heads) for *_, heads in known["cells"]))
        for part in ("passkey", "kv", "copy", "text"):
            far = [row["part"] == part and row["reach"] == "long" for row in known["rows"]]
            effects = found["log_prob"][:, far].mean(1)
            by_kind: dict[str, list[float]] = {}
            for kind, _, _, heads in known["cells"]:
                by_kind.setdefault(kind, []).append(effects[sets.index(tuple(heads))])
            cells = _line(f"{name.replace('-', ', ')}, {part}")
            for column, kind in ((3, "random"), (6, "anywhere")):
                milder = sum(effect > by_kind["top"][0] for effect in by_kind.get(kind, []))
                assert cells[column] == (f"{milder} of {len(by_kind[kind])}" if kind in by_kind else "")
            intact = _line(part)
            assert float(intact[1].split()[0]) == pytest.approx(effects[0], abs=0.006)
            assert float(intact[4]) == pytest.approx(found["exact"][0, far].mean(), abs=0.006)


PLANNED = {
    "windows": "exam-1024",
    "frozen pairs": "pairs-exam-1024-freeze",
    "dropped pairs": "pairs-exam-1024-drop",
}


@pytest.mark.parametrize(("what", "name"), PLANNED.items())
def test_the_costs_of_plans_are_counted_from_the_kept_answers(what, name):
    """Costs, the worst and the best random plan, and p."""
    costs = kept_costs(name, {"passkey", "copy"})
    chance = {budget: drawn for (by, budget), drawn in costs.items() if by == "chance"}
    assert [len(drawn) for drawn in chance.values()] == [20, 20, 20]
    block = PAGE.split(f"<!-- {what} -->")[1].split("<!-- end -->")[0].splitlines()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[3:]]
    told = {first.strip("`"): cells for first, *cells in lines}
    for by in {by for by, _ in costs} - {"none", "all", "chance"}:
        own = [costs[by, budget][0] for budget in chance]
        assert [float(cell.split()[0]) for cell in told[by][:3]] == pytest.approx(own, abs=0.006)
        milder = sum(sum(drawn) >= sum(own) - 1e-9 for drawn in zip(*chance.values(), strict=True))
        assert float(told[by][4]) == pytest.approx((1 + milder) / 21, abs=0.006)
    for cell, drawn in zip(told["chance, 20 plans"], chance.values(), strict=False):
        numbers = [float(part.strip("()")) for part in cell.replace(" to ", " ").split()]
        assert numbers == pytest.approx([sum(drawn) / 20, min(drawn), max(drawn)], abs=0.006)


def kept_costs(name, parts):
    """What each measure's plans, and random ones, cost at each budget, anew with NumPy from the numbers in the file."""
    with safe_open(KEPT / "plans" / name / "plans.safetensors", "numpy") as file:
        known = json.loads(file.metadata()["positional_heads"])
        values = file.get_tensor("values.log_prob").astype(float)
    sets = list(dict.fromkeys(tuple(cell[3]) for cell in known["cells"]))
    means = values[:, [row["part"] in parts and row["reach"] == "long" for row in known["rows"]]].mean(1)
    costs: dict[tuple[str, float], list[float]] = {}
    for _, _, _, heads, by, budget in known["cells"]:
        costs.setdefault((by, budget), []).append(means[sets.index(tuple(heads))] - means[0])
    return costs


def test_measures_gain_as_much_over_chance_at_twice_the_length():
    """Gains on the copied passage over all budgets, p, and the agreement of their ranks, from the kept answers."""
    gains, p = {}, {}
    for name in ("exam-1024", "exam-2048"):
        costs = kept_costs(name, {"copy"})
        chosen = {by for by, budget in costs if budget == 0.5}
        over = {by: np.sum([costs[by, budget] for budget in (0.25, 0.5, 0.75)], axis=0) / 3 for by in chosen}
        chance = over.pop("chance")
        gains[name] = {by: cost[0] - chance.mean() for by, cost in over.items()}
        p[name] = {by: (1 + (chance >= over[by][0] - 1e-9).sum()) / 21 for by in gains[name]}
    said = next(line for line in PAGE.replace("\n  ", " ").splitlines() if "at twice the length" in line)
    both = [[gains[name][by] for by in gains["exam-1024"]] for name in gains]
    assert len(both[0]) == 13
    assert f"rank correlation {spearmanr(*both).statistic:.2f}" in said
    assert f"rho {gains['exam-2048']['rho']:+.2f} (p = {p['exam-2048']['rho']:.2f})" in said
    for by in ("kernel", "reach", "distant_mass", "excess"):
        assert f"{by} {gains['exam-2048'][by]:+.2f}" in said


def test_random_plans_with_as_many_windows_in_every_layer_cost_more_than_those_by_reach():
    """Gain and p anew from every answer; the interval as the study gives it."""
    study = ph.PlanStudy.load(KEPT / "plans" / "exam-1024-layers").where(part=["passkey", "copy"])
    means = study.values["log_prob"][:, [row["reach"] == "long" for row in study.rows]].mean(1).tolist()
    costs: dict[tuple[str, int], float] = {}
    for cell in study.cells:
        effect = means[study.sets.index(cell.heads)] - means[0]
        costs[cell.kind, cell.number] = costs.get((cell.kind, cell.number), 0) + effect / 3  # budgets
    random = [costs["layers", number] for number in range(20)]
    gain = costs["plan", 0] - sum(random) / 20
    p = (1 + sum(cost >= costs["plan", 0] for cost in random)) / 21
    row = study.contrasts(control="layers").query("reach == 'long' and budget == 'all'").iloc[0]
    said = f"(gain {gain:+.2f}, 95 %\n  interval {row['low']:+.2f} to {row['high']:+.2f}, p = {p:.3f})"
    assert said in PAGE


def test_windows_went_to_the_key_heads_with_the_lowest_measures():
    """From the table of measures: no key head with a window has a reader above all readers of one without."""
    with (KEPT / "plans" / "heads.csv").open(encoding="utf-8") as file:
        heads = {row["name"]: row for row in csv.DictReader(file)}
    study = ph.PlanStudy.load(KEPT / "plans" / "exam-1024")
    plans = [cell for cell in study.cells if cell.kind == "plan"]
    assert len(plans) == 3 * len(study.by) >= 3 * 12
    for cell in plans:
        sign, name = (-1, cell.by[1:]) if cell.by.startswith("-") else (1, cell.by)
        windowed = set(map(str, cell.heads))
        needed: dict[tuple[str, str], float] = {}
        for row in heads.values():
            place = row["layer"], row["key_head"]
            needed[place] = max(needed.get(place, -math.inf), sign * float(row[name]))
        chosen = {(heads[one]["layer"], heads[one]["key_head"]) for one in windowed}
        assert windowed == {one for one, row in heads.items() if (row["layer"], row["key_head"]) in chosen}
        assert len(chosen) == cell.k == 90 - math.floor(90 * cell.budget + 0.5)
        assert max(needed[one] for one in chosen) <= min(needed[one] for one in needed.keys() - chosen) + 1e-5


def test_a_key_head_that_recalls_reaches_far_and_rests_on_the_first_keys():
    """The page's example of why reach and distant mass part: its rank among the 90 key heads by each."""
    with (KEPT / "plans" / "heads.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, lowest, highest in (("reach", 90, 90), ("kernel", 90, 90), ("distant_mass", 10, 12), ("excess", 1, 1)):
        most: dict[tuple[str, str], float] = {}
        for row in rows:
            most[row["layer"], row["key_head"]] = max(most.get((row["layer"], row["key_head"]), -2), float(row[name]))
        assert lowest <= sorted(most.values()).index(most["18", "2"]) + 1 <= highest


def test_pairs_rank_as_published_for_a_like_model():
    """With torch and scipy from both files: agreement of the mean rank, and none of key head with key head."""
    theirs = torch.load(PUBLISHED_RANKS, weights_only=True)[..., :32].double()
    ours = torch.load(KEPT / "plans" / "ranks" / "all.pth", weights_only=True)[..., :32].double()
    found = spearmanr(ours.mean((0, 1)), theirs.mean((0, 1))).statistic
    assert found > 0.95
    (line,) = [line for line in PAGE.split("<!-- ranks -->")[1].splitlines() if line.startswith("| all |")]
    assert float(line.split("|")[2]) == pytest.approx(found, abs=0.0006)


def _line(first: str) -> list[str]:
    """The cells of the last row before the plans that begins so, the first one may be a header."""
    *_, line = [line for line in PAGE.split("## Plans")[0].splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("reach", "label"), [("long", "far"), ("short", "near")])
def test_the_predictions_of_harm_are_rank_correlations_of_the_kept_numbers(reach, label):
    alone, scores = ph.AblationStudy.load(KEPT / "ablation" / "singles"), ph.HeadScores.load(KEPT / "scores/prose-512")
    answers = alone.to_frame().query("reach == @reach")
    intact = answers[answers.kind == "none"].groupby(["part", "unit"]).log_prob.mean()
    for column, part in enumerate(("passkey", "kv", "copy", "text")):
        single = answers[(answers.kind == "single") & (answers.part == part)]
        harm = (intact[part] - single.groupby(["heads", "unit"]).log_prob.mean()).groupby("heads").mean()
        rho = [float(scores.rho[ph.Head.parse(head)]) for head in harm.index]
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| rho, {label} |")]
        assert float(line.split("|")[2 + column].split()[0]) == pytest.approx(spearmanr(rho, harm).statistic, abs=0.006)


def test_the_excess_of_two_texts_agrees_more_than_the_least_to_expect():
    some, others = (ph.HeadScores.load(KEPT / "scores" / f"{kind}-8192") for kind in ("prose", "code"))
    found = ph.compare(some, others)
    seen = spearmanr(some.excess.flatten(), others.excess.flatten()).statistic
    assert seen > found.agreement["excess"].ceiling + 0.1
    assert (
        f"{found.agreement['rho'].ceiling:.2f} to be expected if only the sequences differed) for rho" in found.verdict
    )
    assert f"; at least {found.agreement['excess'].ceiling:.2f} to be expected" in found.verdict


def test_the_results_are_of_one_model_and_were_made_by_name():
    extended = map(ph.ExtrapolationStudy.load, EXTENDED)
    planned = [ph.PlanStudy.load(path.parent) for path in sorted(KEPT.glob("plans/*/time.json"))]
    results = [*map(ph.HeadScores.load, SCORES), *map(ph.AblationStudy.load, STUDIES), *extended, *planned]
    models = [result.provenance["model"] for result in results]
    assert len(results) >= 28
    assert all(model == models[0] for model in models)
    assert models[0]["name"] == "smollm2"
    assert models[0]["origin"]["storage"] == "dequantised from Q4_1 and Q8_0"


@pytest.mark.parametrize("folder", EXTENDED, ids=lambda folder: folder.name)
def test_efficiency_is_the_ratio_of_the_kept_probabilities(folder):
    study = ph.ExtrapolationStudy.load(folder)
    assert study.plain["log_prob"] > -0.5  # within its training length the model recalls the passkey
    log_probs = study.performance["log_prob"].tolist()
    for label, length, log_prob in zip(study.labels, study.lengths, log_probs, strict=True):
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {label}, {length} tokens | ")]
        cells = [float(cell) for cell in line.split("|")[2:4]]
        assert cells == pytest.approx([log_prob, math.exp(log_prob - study.plain["log_prob"])], abs=0.006)


def test_moved_pairs_cost_what_is_counted_from_the_kept_answers():
    """Effects and p of each kind of pairs anew with NumPy from the numbers in the file."""
    with safe_open(KEPT / "beyond" / "moved-rho-freeze" / "manipulation.safetensors", "numpy") as file:
        known = json.loads(file.metadata()["positional_heads"])
        values = file.get_tensor("values.log_prob").astype(float)
    sets = list(dict.fromkeys(tuple(cell[3]) for cell in known["cells"]))
    block = PAGE.split("<!-- moved -->")[1].split("<!-- end -->")[0].splitlines()
    told = {first.strip(): cells for first, *cells in ([*line.strip("|").split("|")] for line in block[3:])}
    p_values = []
    for column, part in enumerate(("passkey", "copy", "text")):
        for offset, reach in enumerate(("long", "short")):
            rows = [row["part"] == part and row["reach"] == reach for row in known["rows"]]
            means = values[:, rows].mean(1)
            effects: dict[str, list[float]] = {}
            for kind, _, _, heads in known["cells"]:
                effects.setdefault(kind, []).append(means[sets.index(tuple(heads))] - means[0])
            assert [len(effects[kind]) for kind in ("random pairs", "random heads")] == [20, 20]
            for kind, cells in told.items():
                assert float(cells[2 * column + offset].split()[0]) == pytest.approx(np.mean(effects[kind]), abs=6e-4)
            if reach == "long":
                p_values.append((1 + sum(one <= effects["slowest"][0] for one in effects["random pairs"])) / 21)
                assert effects["slowest"][0] > -0.0085
                assert part == "text" or effects["dominant"][0] < min(effects["random pairs"])
    assert f"(p = {p_values[0]:.2f}, {p_values[1]:.2f} and {p_values[2]:.2f})" in PAGE


def test_pairs_of_retrieval_heads_cost_what_is_counted_from_the_kept_answers():
    """Frozen and zeroed: effects, passkeys that are left, and p-values anew from the numbers in the files."""
    block = PAGE.split("<!-- pairs of retrieval heads -->")[1].split("<!-- end -->")[0].splitlines()
    told = {first.strip(): cells for first, *cells in ([*line.strip("|").split("|")] for line in block[3:])}
    assert [*told] == ["slowest", "fastest", "dominant", "random pairs", "all pairs"]
    costs, left, p_values = {}, {}, {}
    for place, how in enumerate(("freeze", "zero")):
        with safe_open(KEPT / "beyond" / f"moved-retrieval-{how}" / "manipulation.safetensors", "numpy") as file:
            known = json.loads(file.metadata()["positional_heads"])
            values, exact = (file.get_tensor(f"values.{name}").astype(float) for name in ("log_prob", "exact"))
        assert any("248 heads share the value 0; 5 of them are in the set" in note for note in known["notes"])
        sets = list(dict.fromkeys(tuple(cell[3]) for cell in known["cells"]))
        assert "random heads" not in {cell[0] for cell in known["cells"]}
        for column, part in enumerate(("passkey", "copy", "text")):
            rows = [row["part"] == part and row["reach"] == "long" for row in known["rows"]]
            effects: dict[str, list[float]] = {}
            for kind, _, _, heads in known["cells"]:
                number = sets.index(tuple(heads))
                effects.setdefault(kind, []).append(values[number, rows].mean() - values[0, rows].mean())
                left.setdefault((how, part, kind), []).append(exact[number, rows].mean())
            for kind, cells in told.items():
                said = float(cells[4 * place + column].split()[0])
                assert said == pytest.approx(np.mean(effects[kind]), abs=6e-4)
                costs[how, part, kind] = -np.mean(effects[kind])
            fewer = sum(one <= effects["slowest"][0] for one in effects["random pairs"])
            p_values[how, part] = (1 + fewer) / 21
        for kind, cells in told.items():
            assert float(cells[4 * place + 3]) == pytest.approx(np.mean(left[how, "passkey", kind]), abs=6e-3)
    assert max(costs["freeze", part, "slowest"] for part in ("passkey", "copy", "text")) < 0.0075
    assert all(costs["freeze", part, "slowest"] < costs["freeze", part, "random pairs"] for part in ("passkey", "copy"))
    assert left["zero", "passkey", "slowest"] == [0]
    assert np.mean(left["zero", "passkey", "random pairs"]) == pytest.approx(0.17, abs=0.005)
    assert left["zero", "passkey", "fastest"] == left["freeze", "passkey", "none"] == [1]
    assert left["freeze", "passkey", "all pairs"] == [1 / 8]
    assert [round(p_values["zero", part], 2) for part in ("passkey", "copy", "text")] == [0.05, 0.05, 0.24]
    others = [costs["freeze", "passkey", kind] for kind in ("slowest", "fastest", "random pairs")]
    assert max(others) < costs["freeze", "passkey", "dominant"] == pytest.approx(0.15, abs=0.005)


def test_steps_and_responses_are_those_of_the_kept_tables():
    jumps, responses = (pd.read_csv(KEPT / "beyond" / f"{name}.csv") for name in ("jumps", "response"))
    assert len(jumps) == len(responses) == 270
    variation = ((jumps["step"] - jumps["step"].mean()) ** 2).sum()
    explained = {
        name: 1 - ((jumps["step"] - jumps[name]) ** 2).sum() / variation for name in ("predicted", "held", "before")
    }
    assert [round(explained[name], 2) for name in ("predicted", "held")] == [0.99, 0.98]
    assert explained["before"] < 0
    assert spearmanr(jumps["step"], jumps["predicted"]).statistic == pytest.approx(0.98, abs=0.005)
    assert set(jumps["unseen_pairs"]) == {12}
    visible = jumps[jumps["jump"].abs() > 3].iloc[0]
    assert (jumps["jump"].abs() > 3).sum() == 1
    steps = f"{visible['step']:.2f} pairs, predicted {visible['predicted']:.2f}"
    said = f"{visible['name']} ({visible['jump']:.1f} sd: {steps})"
    assert said in PAGE.replace("\n", " ")
    assert responses["response"].median() == pytest.approx(0.06, abs=0.005)
    assert responses["others"].median() == pytest.approx(0.02, abs=0.005)
    assert spearmanr(responses["rho"], responses["response"]).statistic == pytest.approx(0.26, abs=0.005)
    assert (responses["high"] < 0).sum() == 94
    most = responses.loc[responses["response"].idxmax()]
    said = f"{most['name']} most ({most['response']:.2f}, 95 % interval {most['low']:.2f} to {most['high']:.2f})"
    assert said in PAGE.replace("\n", " ")


def test_the_excess_needs_no_order_of_words():
    mixed, scores = pd.read_csv(KEPT / "beyond" / "order.csv"), ph.HeadScores.load(KEPT / "scores" / "prose-512")
    prose = scores.to_frame()
    counts, named = [], []
    for heads in (mixed, prose):
        above = heads[(heads["excess"] > 0) & (heads["rho"] > 0) & (heads["q_value"] < 0.05)]
        stay = above[above["stays"] == True]  # noqa: E712  empty cells
        counts += [len(above), len(stay)]
        named += [{*above["name"]}, {*stay["name"]}]
    said = " ".join(PAGE.split())
    assert f"{counts[0]} heads beat their null, not {counts[2]}, and {counts[1]} stay without the first 64 keys" in said
    assert f"first 64 keys, not {counts[3]}." in said
    same = len(named[0] & named[2]), len(named[1] & named[3])
    assert f"{same[0]} of the {counts[2]} heads, {same[1]} of the {counts[3]}, are the same" in said
    agreed = [spearmanr(mixed[name], prose[name]).statistic for name in ("rho", "excess")]
    assert f"(rank correlation of rho {agreed[0]:.2f}, of the excess {agreed[1]:.2f})" in said


ADAPTED = [f"{way}-{seed}" for way in ("trained", "permuted", "scaled") for seed in "01"]


def test_an_adapter_changes_what_the_page_says():
    """Loss, tests of rho, ranks, curves and shares anew from the kept rows, with intervals by Student's t."""
    heads = pd.read_csv(KEPT / "adapter" / "heads.csv")
    losses = json.loads((KEPT / "adapter" / "losses.json").read_text())
    told = {first: cells for first, *cells in _block("adapter")}
    counts: dict[str, list[tuple[float, ...]]] = {}
    sizes: dict[tuple[str, str], float] = {}
    assert len(heads) == 270 * len(told) == 270 * 2 * len(ADAPTED)
    for run in ADAPTED:
        for text in ("code", "prose"):
            one = heads[(heads["run"] == run) & (heads["text"] == text)]
            cells = told[f"{text}, {run.replace('-', ', seed ')}"]
            assert len(set(one["name"])) == 270
            change = np.subtract(losses[run][text], losses["off"][text])
            moved, pairs, slow = (one[name].to_numpy() for name in ("curve_distance", "pair_change", "slow_share"))
            assert float(cells[0].split()[0]) == pytest.approx(change.mean(), abs=0.0051)
            assert int(cells[1]) == (false_discovery_control(one["change_p"]) <= 0.05).sum()
            ranks = spearmanr(one["rho_a"], one["rho_b"]).statistic
            assert float(cells[2].split()[0]) == pytest.approx(ranks, abs=0.0006)
            sides = [int((one["beats"] == side).sum()) for side in ("b only", "a only")]
            assert cells[3] == f"{sides[0]} / {sides[1]}"
            assert [*map(float, cells[4:6])] == pytest.approx([np.median(moved), np.median(pairs)], abs=0.0051)
            interval = ttest_1samp(slow, 0.5).confidence_interval(0.95)
            assert numbers_in(cells[6]) == pytest.approx([slow.mean(), *interval], abs=0.0101)
            assert interval.low > 0.5
            sizes[run, text] = np.median(pairs)
            counts.setdefault(run.split("-")[0], []).append((int(cells[1]), change.mean(), slow.mean(), *sides))
    spans = {way: [(min(one), max(one)) for one in zip(*found, strict=True)] for way, found in counts.items()}
    trained, scaled = spans["trained"], spans["scaled"]
    assert "rho differs in {} to {} of 270 heads".format(*trained[0]) in SAID
    assert "the loss *rise* by {:.2f} to {:.2f} does much the same: ".format(*scaled[1]) in SAID
    assert "much the same: {} to {} heads".format(*scaled[0]) in SAID
    assert "detectably in {} to {}.".format(*spans["permuted"][0]) in SAID
    assert "{:.2f} to {:.2f} of it does".format(*trained[2]) in SAID
    assert "the scaled control's, {:.2f} to {:.2f}.".format(*scaled[2]) in SAID
    ends = "({} or {}), more cease to ({} to {}); with the scaled controls {} to {} and {} to {}."
    assert ends.format(*trained[3], *trained[4], *scaled[3], *scaled[4]) in SAID
    differ = {first: int(cells[1]) for first, cells in told.items() if first.startswith("prose")}
    assert max(differ[f"prose, scaled, seed {n}"] for n in "01") < min(
        differ[f"prose, trained, seed {n}"] for n in "01"
    )
    for seed in "01":
        for text, (small, large) in {"prose": (0.03, 0.18), "code": (0.04, 0.23)}.items():
            ends = sizes[f"permuted-{seed}", text], sizes[f"trained-{seed}", text]
            assert ends == pytest.approx((small, large), abs=0.0051)
            assert 1 / 7 < ends[0] / ends[1] < 1 / 5
    told_of = json.loads((KEPT / "adapter" / "comparisons.json").read_text())
    for text in ("code", "prose"):
        assert f"{told_of[f'off, {text}']['slow']:.2f} of the squared mean contributions" in SAID


def test_adapters_agree_over_heads_as_the_page_says():
    """Rank correlations over heads of the size of the change, and the slow share above the control's."""
    rows = pd.read_csv(KEPT / "adapter" / "heads.csv").set_index(["run", "text"])
    for text, both, controls, mixed, *more in _block("adapter pairs"):
        size, slow = (
            {run: rows.loc[(run, text), name].to_numpy() for run in ADAPTED} for name in ("pair_change", "slow_share")
        )
        agreed = [spearmanr(size[f"{way}-0"], size[f"{way}-1"]).statistic for way in ("trained", "scaled")]
        crossed = [spearmanr(size[f"trained-{a}"], size[f"scaled-{b}"]).statistic for a in "01" for b in "01"]
        told = [numbers_in(both), numbers_in(controls)]
        middles = [told[0][0], told[1][0], *map(float, mixed.split(" to "))]
        assert middles == pytest.approx([*agreed, min(crossed), max(crossed)], abs=0.0051)
        assert f"{agreed[0]:.2f} on {text}" in SAID
        assert max(agreed[1], *crossed) < told[0][1]
        drawn = np.random.default_rng(0).integers(270, size=(500, 270))
        for way, (_, *ends) in zip(("trained", "scaled"), told, strict=True):
            again = [spearmanr(size[f"{way}-0"][row], size[f"{way}-1"][row]).statistic for row in drawn]
            assert ends == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.04)
        for seed, cell in zip("01", more, strict=True):
            difference = slow[f"trained-{seed}"] - slow[f"scaled-{seed}"]
            interval = ttest_1samp(difference, 0).confidence_interval(0.95)
            assert numbers_in(cell) == pytest.approx([difference.mean(), *interval], abs=0.0101)


def numbers_in(cell):
    """A number and the ends of its interval."""
    return [float(part.strip("()")) for part in cell.replace(" to ", " ").split()]


def _block(name):
    """The cells of each row of a table of the page, without its header."""
    lines = PAGE.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_results_are_small():
    kept = [path for path in KEPT.rglob("*") if path.is_file() and "unfinished" not in path.parts]
    assert sum(path.stat().st_size for path in kept) < 13.7e6


def test_a_kept_result_is_said_to_have_other_settings(capsys):
    """Every kept score and study is what run.py asks for now; a changed number is said, and only that."""
    run = runpy.run_path(str(KEPT / "run.py"))
    scope, model = run["score"].__globals__, None
    run["scores"](model)
    run["ablations"](model)
    run["singles"](model)
    said = capsys.readouterr().out.splitlines()
    assert len(said) > 12
    assert not [line for line in said if "although" in line]
    scope["SHUFFLES"], scope["EXAM"] = 10, {"length": 256, "examples": 8}
    run["score"](model, "code", 512)
    run["ablation"](model, "rho", "zero", 20)
    code, _, rho = capsys.readouterr().out.splitlines()
    assert "although it was made with null_repeats 20, not 10; remove experiments/scores/code-512" in code
    assert "made with n_permuted 99, not 20; lengths [512], not [256]; remove experiments/ablation/rho-zero" in rho
