"""A manipulation study finds the one pair of one head that a model recalls by, and measures what it says it moved."""

import copy
import random
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.cli.wording import in_options
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.studies.manipulated_sets import manipulated_sets
from positional_heads.studies.manipulation import manipulation_study
from positional_heads.studies.tasks.task import AnswerTask, Example
from tests.support.planted_pairs import HEADS, PAIRS, RECALLS, recall_task, save_recalling_model

TOKENS = torch.randint(97, 122, (2, 24), generator=torch.Generator().manual_seed(3))
RANKING = [ph.Head(0, 1), ph.Head(1, 2), ph.Head(1, 0), ph.Head(0, 3)]
RANKED = torch.full((2, 4), torch.nan).index_put_(tuple(torch.tensor(RANKING).T), -torch.arange(4.0))
QUICK = {"counts": [2, 4], "top": 2, "n_random": 1, "rank_by": ("mine", RANKED)}
SMALL = {"length": 64, "depths": 1, "examples": 2}


def pairs_of(text: str) -> list[int]:
    """The pairs of "L0H5:0-2,7"."""
    spans = [part.split("-") for part in text.partition(":")[2].split(",")]
    return [pair for span in spans for pair in range(int(span[0]), int(span[-1]) + 1)]


@pytest.fixture(scope="module")
def recalling(tmp_path_factory):
    return ph.load_model(str(save_recalling_model(tmp_path_factory.mktemp("recalling"))))


@pytest.fixture(scope="module")
def found(recalling):
    scores = ph.score_heads(recalling, TOKENS)
    by = "planted", torch.nn.functional.one_hot(torch.tensor([RECALLS]), HEADS).double()
    settings = {"how": "zero", "counts": [1, 3], "top": 1, "rank_by": by}
    return manipulation_study(recalling, scores, recall_task(), **settings)


def test_the_pair_that_recalls_is_found(found) -> None:
    needed = f"L0H{RECALLS}"
    for cell in found.cells:
        hit = any(text.startswith(f"{needed}:") and PAIRS - 1 in pairs_of(text) for text in cell.heads)
        change = found.values["log_prob"][found.sets.index(cell.heads)] - found.values["log_prob"][0]
        assert bool((change < -1).all()) if hit else bool((change.abs() < 0.1).all()), cell
    assert found.heads == [ph.Head(0, RECALLS)]
    assert {cell.k for cell in found.cells if cell.kind == "all pairs"} == {PAIRS}
    assert found.values["exact"][0].mean() == 1
    (dominant,) = {cell.heads for cell in found.cells if (cell.kind, cell.k) == ("dominant", 1)}
    assert dominant == (f"{needed}:{PAIRS - 1}",)
    rows = found.contrasts().query("pairs == 'all' and reach == 'long'").set_index(["kind", "against"])
    sets = {(one.kind, one.k, one.number): one.heads for one in found.cells}
    # a random ranking hurts as much only where it takes the pair as early
    early = sum(sets["random pairs", 1, number] == (f"{needed}:{PAIRS - 1}",) for number in range(20))
    assert rows.loc[("slowest", "random pairs"), "p_value"] == (1 + early) / 21
    assert rows.loc[("slowest", "random heads"), "p_value"] == 1 / 21
    assert rows.loc[("fastest", "random pairs"), "p_value"] > 0.5
    assert "Zeroing the slowest pairs of the top head changes log_prob of recall by -" in found.verdict
    assert "The slowest pairs of these heads cost more than the slowest pairs of random heads" in found.verdict
    assert "Heads are ranked by planted" in found.verdict


@pytest.fixture(scope="module")
def task():
    rng = random.Random(1)

    def example(unit: int, reach: str) -> Example:
        return Example(torch.tensor([rng.randrange(97, 122) for _ in range(24)]), ((20, 24),), unit, reach)

    made = tuple(example(unit, reach) for unit in range(6) for reach in ("long", "short"))
    return AnswerTask("random", made[:8], made[8:], {})


@pytest.fixture(scope="module")
def scores(tiny):
    return ph.score_heads(tiny("llama"), TOKENS)


@pytest.fixture(scope="module")
def study(tiny, scores, task):
    return manipulation_study(tiny("llama"), scores, task, **QUICK)


def test_each_set_has_the_measures_of_its_manipulation(study, tiny, scores, task) -> None:
    model, n_pairs, top = tiny("llama"), scores.frequencies.shape[1], RANKING[:2]
    assert study.heads == top
    kinds = [cell.kind for cell in study.cells]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "none": 1,
        "slowest": 2,
        "fastest": 2,
        "dominant": 2,
        "random pairs": 2,
        "random heads": 2,
        "permuted heads": 2,
        "all pairs": 1,
    }
    chosen = {
        ("slowest", 2): range(n_pairs - 2, n_pairs),
        ("fastest", 4): range(4),
        ("all pairs", n_pairs): range(n_pairs),
    }
    long = [number for number, row in enumerate(study.rows) if row["reach"] == "long"]
    plain, effects = task.measure(model)["log_prob"], study.by_set().query("reach == 'long'")
    for cell in study.cells:
        heads = [text.partition(":")[0] for text in cell.heads]
        if cell.kind in {"slowest", "fastest", "dominant", "random pairs", "all pairs"}:
            assert heads == [*map(str, sorted(top))]
        if (cell.kind, cell.k) in chosen:
            assert all(pairs_of(text) == [*chosen[cell.kind, cell.k]] for text in cell.heads)
        if cell.kind == "random pairs":
            assert len({text.partition(":")[2] for text in cell.heads}) == 1
        if cell.kind == "random heads":
            assert not {*heads} & {*map(str, top)}
            assert sorted(name[:2] for name in heads) == sorted(str(head)[:2] for head in top)
            assert all(pairs_of(text) == [*range(n_pairs - cell.k, n_pairs)] for text in cell.heads)
        assert all(len(pairs_of(text)) == cell.k for text in cell.heads)
        with ExitStack() as blocks:
            for text in cell.heads:
                head = text.partition(":")[0]
                blocks.enter_context(ph.manipulated_pairs(model, head, pairs_of(text), "freeze", shared="split"))
            expected = task.measure(model)
        measured = study.values["log_prob"][study.sets.index(cell.heads)]
        torch.testing.assert_close(measured, expected["log_prob"], atol=1e-6, rtol=0)
        row = effects.query("kind == @cell.kind and k == @cell.k and number == @cell.number")
        change = float((expected["log_prob"] - plain)[long].mean())
        assert row["effect"].item() == pytest.approx(change, abs=1e-6)
    assert (study.values["log_prob"][1:] - study.values["log_prob"][0]).abs().amax(1).min() > 0
    assert study.provenance["manipulation"] == {"how": "freeze", "factor": None, "shared": "split"}
    assert any("were manipulated alone" in note for note in study.notes)


def test_a_pair_that_matters_in_all_heads_makes_others_special_no_oftener_than_by_chance() -> None:
    ranking = [ph.Head(0, number) for number in range(6)]
    slowest, found = {head: [*range(16)] for head in ranking}, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        special, noise = rng.integers(16), {}
        cells, moved = manipulated_sets(ranking, 3, slowest, None, [4], n_random=19, n_permuted=0, seed=seed)
        for cell in cells:
            hits = sum(special in pairs for pairs in moved[cell.heads].values())
            noise[cell] = -hits + rng.normal(0, 0.01)
        (own,) = (effect for cell, effect in noise.items() if cell.kind == "slowest")
        drawn = [effect for cell, effect in noise.items() if cell.kind == "random pairs"]
        found.append((1 + sum(effect <= own for effect in drawn)) / 20)
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09  # 0.05 expected, with a standard error of 0.011
    assert 0.4 < np.mean(np.array(found) <= 0.5) < 0.6


def test_dominant_pairs_are_those_with_the_largest_mean_contributions(study, tiny, task) -> None:
    held_out = torch.stack([example.tokens for example in task.held_out])
    cache = tiny("llama").run_with_cache(held_out)[1]
    n_pairs = study.frequencies.shape[1]
    for number, head in enumerate(study.heads):
        prefix = f"blocks.{head.layer}.attn.hook_"
        query, key = (cache[f"{prefix}rot_{one}"].double() for one in "qk")
        group = query.shape[2] // key.shape[2]
        query, key = query[:, :, head.head], key[:, :, head.head // group]
        mean, counts = torch.zeros(n_pairs, 24).double(), torch.zeros(24)
        for late in range(24):
            for early in range(late + 1):
                products = (query[:, late] * key[:, early]).sum(0) / query.shape[-1] ** 0.5
                mean[:, late - early] += products[:n_pairs] + products[n_pairs:]
                counts[late - early] += len(held_out)
        sizes = (mean / counts).abs() @ counts.double() / counts.sum()
        torch.testing.assert_close(study.sizes[number], sizes, rtol=1e-4, atol=1e-6)
        cell = next(one for one in study.cells if (one.kind, one.k) == ("dominant", 2))
        (own,) = [text for text in cell.heads if text.startswith(f"{head}:")]
        assert pairs_of(own) == sorted(sizes.argsort(descending=True)[:2].tolist())


@pytest.mark.parametrize("how", ["freeze", "zero"])
def test_pairs_that_do_not_turn_are_only_zeroed(how, tiny, scores, task) -> None:
    """Llama's last pair stopped, as p-RoPE stops it: to freeze it would count as a pair that no head needs."""
    model = copy.deepcopy(tiny("llama"))
    last = scores.frequencies.shape[1] - 1
    model.original_model.model.rotary_emb.inv_freq[last] = 0
    stopped = ph.score_heads(model, TOKENS)
    assert stopped.frequencies[:, last].eq(0).all()
    study = manipulation_study(model, stopped, task, how=how, **QUICK)
    chosen = {cell.kind: pairs_of(cell.heads[0]) for cell in study.cells if cell.heads}
    assert chosen["slowest"] == [*range(last - 4 + (how == "zero"), last + (how == "zero"))]
    assert (last in chosen["all pairs"]) == (how == "zero")
    assert any("frequency 0" in note for note in study.notes) == (how == "freeze")


def test_an_interrupted_study_is_resumed_with_the_same_bits(study, tiny, scores, task, tmp_path, monkeypatch) -> None:
    measure, measured = AnswerTask.measure, []

    def counted(self, *arguments):
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    model, n_sets = tiny("llama"), len(study.sets)
    monkeypatch.setattr(AnswerTask, "measure", counted)
    with pytest.raises(KeyboardInterrupt, match=f"3 of {n_sets} parts are finished and saved"):
        manipulation_study(model, scores, task, **QUICK, checkpoint=tmp_path)
    resumed = manipulation_study(model, scores, task, **QUICK, checkpoint=tmp_path)
    assert len(measured) == n_sets + 1
    assert {name: one.tolist() for name, one in resumed.values.items()} == {
        name: one.tolist() for name, one in study.values.items()
    }
    assert (resumed.cells, resumed.verdict) == (study.cells, study.verdict)
    more = manipulation_study(model, scores, task, **{**QUICK, "counts": [2]}, checkpoint=tmp_path)
    assert len(measured) == n_sets + 1, "a study with other counts shares parts"
    assert more.counts == [2]
    with pytest.raises(ValueError, match=r"another study \(different: manipulation\)"):
        manipulation_study(model, scores, task, **QUICK, how="zero", checkpoint=tmp_path)


def test_a_task_without_examples_goes_without_dominant_pairs_unless_there_is_a_text(tiny, scores) -> None:
    def score(model):
        return model.W_E[:5, 0]  # runs nothing, so costs no time

    quick = {**QUICK, "counts": [2]}
    made = manipulation_study(tiny("llama"), scores, score, **quick)
    assert made.sizes is None
    assert "dominant" not in {cell.kind for cell in made.cells}
    assert any("No dominant pairs: they need reference=" in note for note in made.notes)
    assert "dominant" not in made.verdict
    ph.views.dose_response(made)
    given = manipulation_study(tiny("llama"), scores, score, **quick, reference=TOKENS)
    assert "dominant" in {cell.kind for cell in given.cells}


def test_heads_are_ranked_by_their_retrieval_scores(tiny, scores, task, monkeypatch) -> None:
    from positional_heads.studies.retrieval_trials import RetrievalTrials

    values = torch.arange(8).view(2, 4).double()
    monkeypatch.setattr(RetrievalTrials, "scores", lambda *_: (values, []))
    made = manipulation_study(tiny("llama"), scores, task, **{**QUICK, "rank_by": "retrieval"})
    assert made.heads == [ph.Head(1, 3), ph.Head(1, 2)]
    assert made.rank_by == "retrieval"


BAD = {
    "none": ({"counts": []}, "no count given"),
    "zero": ({"counts": [0]}, "counts: 0 of 8 pairs leaves nothing to choose: give numbers from 1 to 7"),
    "every": ({"counts": [8]}, "counts: 8 of 8 pairs leaves nothing to choose"),
    "share": ({"top": 1.5}, "top 1.5 is no number of heads from 1 to 4, and no share"),
    "heads": ({"top": 9}, "top 9 is no number of heads"),
    "headless": ({"top": 0}, "top 0 is no number of heads"),
    "factor": ({"factor": 0.5}, "factor=0.5 goes with how='scale', not with how='freeze': leave it out"),
    "twice": ({"counts": [2, 2, 4]}, "counts names 2 twice: give each once"),
    "unmoved": ({"how": "scale", "factor": 1}, "factor=1 leaves every frequency as it is: there would be no effect"),
    "lengths": ({"length": [64, 64]}, "length names 64 twice"),
    "depths": ({"depths": [0.5, 0.25, 0.5]}, "depths names 0.5 twice"),
    "factorless": ({"how": "scale"}, "^how='scale' needs factor=, e.g. factor=0.5$"),
    "random": ({"n_random": 0}, "n_random 0 must be at least 1"),
    "misspelt": ({"n_randoms": 3}, "manipulation_study has no n_randoms; did you mean n_random?"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_studies_are_refused(case, tiny, scores) -> None:
    settings, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        manipulation_study(tiny("llama"), scores, **{"task": "passkey", **QUICK, **SMALL, **settings})


def test_other_models_and_extended_ones_are_refused(tiny, scores, task) -> None:
    with pytest.raises(ValueError, match="score this model, loaded this way, first"):
        manipulation_study(tiny("neox"), scores, task, **QUICK)
    with ph.extended_rope(tiny("llama"), "yarn", 2), pytest.raises(RuntimeError, match="leave the extended_rope block"):
        manipulation_study(tiny("llama"), scores, task, **QUICK)


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.usefixtures("undrawn")
def test_the_command_manipulates_pairs_and_has_a_page(tiny_folder, tiny, scores, tmp_path) -> None:
    scores.save(tmp_path / "scores")
    out, folder = tmp_path / "out", tiny_folder("llama")
    task = ("--length", 128, "--depths", 1, "--examples", 2)
    settings = ("--how", "scale", "--factor", 0.5, "--counts", "2,4", "--top", 2, "--n-random", 1)
    given = ("manipulate", folder, "--scores", tmp_path / "scores", *settings, *task)
    code, shown, said = run(*given, "--out", out)
    assert code == 0, said
    found = ManipulationStudy.load(out)
    expected = manipulation_study(
        tiny("llama"),
        scores,
        how="scale",
        factor=0.5,
        counts=[2, 4],
        top=2,
        n_random=1,
        length=128,
        depths=1,
        examples=2,
    )
    assert (found.cells, found.how, found.factor) == (expected.cells, "scale", 0.5)
    torch.testing.assert_close(found.values["log_prob"], expected.values["log_prob"], atol=1e-5, rtol=0)
    assert in_options(found.verdict) in shown
    assert "sets of pairs scaled by 0.5; top heads by rho" in shown
    assert run("show", out)[1] == shown
    assert {file.name for file in out.iterdir()} == {
        *("manipulation.safetensors", "effects.csv", "contrasts.csv", "answers.parquet"),
        *("dose_response.png", "manipulation.md"),
    }
    assert run("report", out)[0] == 0
    page = (out / "report.html").read_text()
    assert "Rotary pairs scaled by 0.5: passkey" in page
    command = next(line for line in page.splitlines() if "positional-heads manipulate" in line)
    assert "--how=scale --factor=0.5 --counts=2,4 --top=2" in command
    code, _, said = run(*given, "--out", out)
    assert (code, "already holds results" in said) == (1, True)
    for wrong, message in (
        (("--counts", "2,x"), "--counts '2,x' must be numbers"),
        (("--counts", "2,2"), "error: --counts names 2 twice: give each once"),
        (("--counts", "1.5"), "--counts '1.5' must be whole numbers"),
        (("--top", "1,2"), "--top '1,2' must be one number of heads"),
        (("--how", "drop"), "--how 'drop' is unknown"),
    ):
        code, _, said = run(*given, "--out", tmp_path / "new", *wrong)
        assert code == 1, said
        assert message in said
    assert not (tmp_path / "new").exists()
