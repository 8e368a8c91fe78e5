"""`positional-heads profile`: what it prints, writes and resumes, and its place on the report page."""

import json
import shlex
from dataclasses import replace
from html import unescape

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.cli import profile as cli_profile
from positional_heads.results.head_names import RULES, head_labels
from positional_heads.results.profile_tables import named_lines, order_of, profile_table
from positional_heads.results.tables import MEANINGS
from positional_heads.results.unfinished import unfinished
from positional_heads.scoring.counter import EntryCounter
from positional_heads.studies import head_profile as studies
from positional_heads.studies.retrieval_trials import RetrievalTrials
from positional_heads.views.report.caveats import caveats
from positional_heads.views.report.commands import profile_command
from positional_heads.views.report.lines import profile_lines
from tests.cli.test_cli import heavy_imports
from tests.support.synthetic_examples import synthetic_examples
from tests.support.synthetic_profile import synthetic_profile
from tests.support.undrawn import leave_undrawn

OPTIONS = "--length 64 --sequences 2 --null-repeats 2 --window 16 --sinks 2 --retrieval-examples 1 --seed 3"
COMMAND = ["profile", "bundled", "--text", "bundled", *OPTIONS.split()]
SETTINGS = {"null_repeats": 2, "window": 16, "sinks": 2, "retrieval_examples": 1, "seed": 3}


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def loaded(bundled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_profile, "load_named", lambda *_, **__: bundled)
        leave_undrawn(patch)
        yield


@pytest.fixture(scope="module")
def tokens(bundled):
    return ph.cut_text(bundled, ph.bundled_text(), 64, sequences=2, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory, loaded, bundled, tokens):
    """A finished run that went on from one that had counted everything; `show` says how to."""
    folder = tmp_path_factory.mktemp("cli") / "profile"
    folder.mkdir()
    profile = ph.profile_heads(bundled, tokens, checkpoint=folder, **SETTINGS)
    said = invoke("show", folder)
    sums = (folder / "sums.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EntryCounter, "count", None)
        patch.setattr(RetrievalTrials, "measure", None, raising=False)
        done = invoke(*COMMAND, "--out", folder)
    assert done.exit_code == 0, done.output
    (folder / "sums.safetensors").write_bytes(sums)  # as a call in Python leaves them
    assert unfinished(folder) is None
    (folder / "sums.safetensors").unlink()
    return folder, done, said, profile


def test_an_interrupted_run_is_resumed_and_leaves_only_its_result(made):
    folder, done, said, profile = made
    assert done.stderr.endswith(f"\npositional-heads explore {folder} shows every head\n")
    assert said.exit_code == 1
    assert "sums.safetensors: unfinished, " in said.stderr
    assert said.stderr.count("repeat the same positional-heads profile command, or profile_heads call") == 2
    assert sorted(file.name for file in folder.iterdir()) == [
        *("correlations.csv", "correlations.png", "examples.safetensors", "heads.safetensors", "pairs.csv"),
        *("pairs.png", "profile.csv", "profile.md", "profile.png"),
    ]
    pd.testing.assert_frame_equal(ph.HeadProfile.load(folder).to_frame(), profile.to_frame())
    assert ph.HeadProfile.load(folder).provenance == profile.provenance


def test_examples_are_of_the_best_heads_and_the_clearest_of_each_name(made):
    folder, done, _, profile = made
    examples = ph.HeadExamples.load(folder)
    assert str(folder / "examples.safetensors") in done.stderr
    assert (len(examples.tokens), examples.n_kept) == (64, 64)
    values = {head: float(profile.values("excess")[head]) for head in profile.heads}
    best = sorted(values, key=lambda head: -values[head])
    first = [heads[0] for name, heads in profile.by_name.items() if name != "mixed"]
    assert examples.heads[:3] == best[:3]
    assert len(examples.heads) == len({*examples.heads}) == 8
    assert {*first} <= {*examples.heads}


@pytest.mark.parametrize(("option", "length"), [("--examples=0", None), ("--examples=20", 20)])
def test_examples_have_as_many_tokens_as_asked_and_old_ones_do_not_stay(made, tmp_path, option, length):
    folder, *_, profile = made
    synthetic_examples().save(tmp_path)
    (tmp_path / "heads.safetensors").write_bytes((folder / "heads.safetensors").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "profile_heads", lambda *_, **__: profile)
        done = invoke(*COMMAND, "--out", tmp_path, "--overwrite", option)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "examples.safetensors").exists() == (length is not None)
    if length:
        assert len(ph.HeadExamples.load(tmp_path).tokens) == length
    else:
        assert f"removed, of the result that was replaced: {tmp_path / 'examples.safetensors'}" in done.stderr


def test_scores_do_not_replace_the_examples_of_a_profile(made):
    folder, *_ = made
    refused = invoke("score", "bundled", "--text", "bundled", "--out", folder)
    assert refused.exit_code == 1
    assert "holds heads.safetensors, whose examples.safetensors would be replaced" in refused.stderr


def test_files_hold_the_tables_of_the_record(made):
    folder, *_, profile = made
    tables = {"profile": profile.to_frame(), "pairs": profile.pair_frame()}
    tables["correlations"] = profile.correlations().reset_index(names="measure")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), table, check_dtype=False, rtol=1e-5)
    text = (folder / "profile.md").read_text()
    assert profile.verdict in text
    assert "kernel: from the weights alone" in text
    assert "agreement: share of the head's best-scored keys" in text


def test_show_prints_the_heads_that_look_furthest_and_those_of_each_name(made):
    folder, done, _, profile = made
    assert invoke("show", folder).stdout == done.stdout
    assert heavy_imports(["show", str(folder)]) == set()
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bundled: 4 layers of 8 heads, 2 sequences of up to 64 tokens of bundled:revelation, a ")
    assert "a window of 16 tokens, 2 sinks, 2 shuffles, retrieval by 1 examples of passkey, seed 3" in lines[0]
    assert lines[1] == "The heads with the largest distant mass first."
    expected = profile.to_frame().sort_values("distant_mass", ascending=False)["name"].tolist()[:10]
    assert [line.split()[0] for line in lines[3:13]] == expected
    for line in named_lines(profile.by_name):
        assert line in lines
    assert lines[-1].startswith("Verdict: Of 32 heads, each by the first rule that holds: ")
    content = json.loads(invoke("show", folder / "heads.safetensors", "--json").stdout)
    assert [*content] == ["verdict", "table", "heads_by_name", "correlations", "provenance"]
    assert content["heads_by_name"] == {name: [*map(str, heads)] for name, heads in profile.by_name.items()}
    assert content["correlations"][0]["measure"] == "rho"


def test_show_prints_every_measure_of_one_head(made, tmp_path):
    folder, *_, profile = made
    first, _, *rows = invoke("show", folder, "--head", "l1h2").stdout.splitlines()
    names = ", ".join(profile.labels[ph.Head(1, 2)] or ["mixed"])
    assert first == f"L1H2: {names}. It reads key head 2 of its layer alone."
    printed = {row.split()[0]: row.split() for row in rows[: len(profile.names)]}
    assert [*printed] == [name for name in profile.names if not profile.values(name).isnan().all()]
    assert printed["reach"][1] == f"{float(profile.values('reach')[1, 2]):.3f}"
    shown = json.loads(invoke("show", folder, "--head", "L1H2", "--json").stdout)
    assert {row["measure"]: row["rank"] for row in shown} == profile.head_frame("L1H2")["rank"].to_dict()
    grouped = synthetic_profile()
    grouped.save(tmp_path)
    assert "It reads key head 0 of its layer, as does L0H0." in invoke("show", tmp_path, "--head", "L0H1").stdout
    assert invoke("show", tmp_path, "--head", "L2H1").stdout == "L2H1 was not profiled.\n"
    assert "no head 'L7H0' in this profile: it has L0H0 to L2H3" in invoke("show", tmp_path, "--head", "L7H0").stderr
    grouped.scores.save(tmp_path / "scores")
    assert "--head shows one head of a profile" in invoke("show", tmp_path / "scores", "--head", "L0H1").stderr


def test_results_are_not_replaced_unless_asked(made):
    done = invoke(*COMMAND, "--out", made[0])
    assert done.exit_code == 1
    assert "already holds results" in done.stderr


def test_the_report_page_has_a_section_and_how_to_repeat_it(made, bundled, monkeypatch):
    folder, *_, profile = made
    assert invoke("report", folder).exit_code == 0
    html = unescape((folder / "report.html").read_text())
    assert html.count(profile.verdict) == 1
    assert html.count('<figure class="plotted">') == 3
    assert "A head profile says where heads attend" in html
    for shown in (profile_command(profile.provenance), profile_lines(profile.provenance)):
        assert shown.split("\n# ")[0] in html
    words = shlex.split(profile_command(profile.provenance), comments=True)
    expected = "bundled --text bundled:revelation --length 64 --sequences 2 --null-repeats 2 --window 16 --sinks 2"
    assert sorted(words[2:]) == sorted(f"{expected} --retrieval-examples=1 --seed 3 --out profile".split())
    monkeypatch.setattr(ph, "load_bundled_model", lambda: bundled)
    namespace: dict[str, object] = {}
    exec(profile_lines(profile.provenance), namespace)
    again = namespace["profile"]
    assert again.provenance == profile.provenance
    assert torch.equal(again.values("retrieval"), profile.values("retrieval"))


def test_without_a_retrieval_score_commands_ask_for_none():
    provenance = synthetic_profile().provenance
    assert "--retrieval none" in profile_command(provenance)
    assert "retrieval=None" in profile_lines(provenance)
    asked = provenance | {"retrieval": "No retrieval scores: no tokenizer"}
    assert "--retrieval" not in profile_command(asked)
    assert "retrieval" not in profile_lines(asked)
    other = provenance["settings"] | {"temperature": 2.0, "ranges": 9}
    command = profile_command(provenance | {"settings": other})
    assert "# the command has no option for temperature 2.0" in command
    assert "# the command has no option for ranges 9" in command
    assert "names are thresholds" in " ".join(caveats(None, [], [], [synthetic_profile()]))
    assert "names are thresholds" not in " ".join(caveats(None, [], []))


def test_where_no_text_is_longer_than_the_window_reach_orders_the_heads():
    profile = synthetic_profile()
    rows = profile.to_frame().astype(object).where(profile.to_frame().notna(), None).to_dict("records")
    assert order_of(rows) == "distant_mass"
    short = [row | {"distant_mass": None} for row in rows]
    assert order_of(short) == "reach"
    table = profile_table(short, 3)
    assert list(table.columns)[:7] == ["name", "is", "rho", "null_mean", "excess", "q_value", "head_reach"]
    head = ph.Head(*(int(part) for part in str(table.lines[0]["name"])[1:].split("H")))
    assert table.lines[0]["is"] == ", ".join(profile.labels[head] or ["mixed"])
    assert table.lines[0]["q_value"] == profile.scores.q_values[head]
    old = [{name: row[name] for name in row if name != "names"} for row in short]
    assert profile_table(old, 3).lines[0]["is"] == profile.name(head)  # a file of before has the first name only
    expected = profile.to_frame().sort_values("reach", ascending=False)["name"].tolist()[:3]
    assert [line["name"] for line in table.lines] == expected
    assert len(profile_table(rows, 99).lines) == 8  # not the layer that was not profiled


def test_the_glossary_states_the_thresholds_of_the_rules():
    def named(**values):
        measures = {name: torch.zeros(1, 1).double() for rule in RULES for name in rule.needs}
        head = ph.Head(0, 0)
        return head_labels(
            [head], measures | {k: torch.full((1, 1), v, dtype=torch.float64) for k, v in values.items()}
        )[head]

    stated = {"retrieval": ("retrieval", 0.1), "previous token": ("previous_token", 0.4)}
    stated |= {"induction": ("induction", 0.1), "duplicate token": ("duplicate_token", 0.1)}
    stated |= {"sink": ("sink_mass", 0.5), "far": ("distant_mass", 0.2)}
    for name, (measure, least) in stated.items():
        assert f"{name} (" in MEANINGS["is"]
        assert f"{least:g}" in MEANINGS["is"].split(f"{name} (")[1].split(")")[0]
        assert name in named(**{measure: least})
        assert name not in named(**{measure: least - 1e-6})
    assert "local" in named(distant_mass=0.05)
    assert "local" not in named(distant_mass=0.0501)
    assert [rule.name for rule in RULES] == [*stated, "local"]
    places = [MEANINGS["is"].index(f"{name} (") for name in [*stated, "local"]]
    assert places == sorted(places)


def test_a_study_beside_a_profile_is_still_found(tmp_path):
    """`show` prints studies before profiles, and profiles before scores; the page has all of them."""
    profile = synthetic_profile()
    profile.save(tmp_path)
    profile.scores.save(tmp_path)
    assert invoke("show", tmp_path).stdout.splitlines()[1] == "The heads with the largest distant mass first."
    assert invoke("show", tmp_path / "scores.safetensors").stdout.splitlines()[-1] == (
        f"Verdict: {profile.scores.verdict.replace('control_keys=64', '--control-keys 64')}"
    ).replace("run ablation_study", "run positional-heads ablate")
    replace(profile, provenance=profile.provenance | {"retrieval": "No retrieval scores: no needle"}).save(tmp_path)
    assert "No retrieval scores: no needle" in invoke("show", tmp_path).stdout
