"""Plans, studies of plans and recommendations have a page, with what they say and a command that makes them again."""

import hashlib
import json
import re
import shlex
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app
from positional_heads.views.report import head_profile, plan_sections
from positional_heads.views.report.commands import profile_command
from positional_heads.views.report.page import report_html
from positional_heads.views.report.plan_commands import (
    plan_command,
    plan_commands,
    plan_study_command,
    recommend_command,
)
from positional_heads.views.report.sections import Plot
from tests.support.planted_plans import SHAPE, planted_plans
from tests.support.synthetic_profile import synthetic_profile
from tests.support.synthetic_recommendation import planted_recommendation
from tests.views.test_tokens import Page

pytestmark = pytest.mark.usefixtures("undrawn")
RECALL = {"none": -7.0, "yarn 4": -0.1, "ntk 4": -0.1}
TASK = {"name": "passkey", "sha256": "0", "lengths": [256], "depths": [0.0, 0.5], "examples": 2, "seed": 3, "digits": 5}


def study_of_windows():
    drawn = np.random.default_rng(0).random(SHAPE)
    made = planted_plans(drawn, {"reach": drawn, "distant_mass": -drawn}, budgets=(0.25, 0.5), units=6, n_random=3)
    settings = {"window": 16, "sinks": 2, "n_random": 3, "n_matched": 0, "seed": 3}
    return replace(made, provenance=made.provenance | {"settings": settings, "task": TASK})


def study_of_pairs():
    made = study_of_windows()
    as_text = [replace(one, heads=tuple(f"L{head.layer}K{head.head}:0" for head in one.heads)) for one in made.cells]
    settings = {"how": "drop", "n_random": 3, "seed": 3}
    return replace(made, cells=as_text, planned="dropped pairs", provenance=made.provenance | {"settings": settings})


def recommended(**changed):
    made = planted_recommendation(None, RECALL)
    task = {"name": "passkey", "depths": 3, "examples": 2, "seed": 3}
    return replace(made, provenance=made.provenance | {"task": task}, **changed)


MADE = {
    "plan": lambda: ph.window_plan(synthetic_profile(), 0.5, window=4, sinks=1),
    "pairs": lambda: ph.pair_plan(synthetic_profile(), 0.5, how="drop"),
    "study": study_of_windows,
    "study of pairs": study_of_pairs,
    "recommendation": recommended,
}


def given(command):
    """The values that a command reads from a line, by the names of its arguments; nothing is run."""
    program, name, *words = shlex.split(command, comments=True)
    assert program == "positional-heads"
    with typer.main.get_command(app).commands[name].make_context(name, words) as context:
        return context.params


@pytest.mark.parametrize("kind", MADE)
def test_a_folder_that_holds_nothing_else_has_a_page(kind, tmp_path):
    made = MADE[kind]()
    made.save(tmp_path)
    html = report_html(tmp_path)
    said = unescape(html)
    assert said.count(made.verdict) == 1
    assert "Scores of the heads" not in said
    assert "no ablation study" not in said
    assert ("does not show what this one costs" in said) == (kind in {"plan", "pairs"})
    images = [own for tag, own in Page(html).elements if tag == "img"]
    assert len(images) == (0 if kind in {"plan", "pairs"} else 1)
    assert "from the command line" in said


def test_a_page_shows_them_beside_each_other(tmp_path):
    for kind, make in MADE.items():
        make().save(tmp_path / kind)
    said = unescape(report_html(tmp_path))
    for make in MADE.values():
        assert make().verdict in said
    table = study_of_windows().contrasts()
    line = table[(table["by"] == "distant_mass") & (table["budget"] == "all") & (table["reach"] == "long")].iloc[0]
    assert f'<th scope="row">distant_mass</th><td>all</td><td>long</td><td>{line["effect"]:.3f}</td>' in said
    assert MADE["pairs"]().digits[:2] == [["0110", "0011"], ["1001", "0101"]]
    assert '<th scope="row">0</th><td>1-2</td><td>2-3</td>' in said
    assert '<th scope="row">1</th><td>0, 3</td><td>1, 3</td>' in said
    assert MADE["plan"]().windowed.tolist() == [[True, False], [True, False], [False, False]]
    assert '<th scope="row">0-1</th><td>0</td><td>1</td>' in said


@pytest.fixture
def without_plots(monkeypatch):
    """Pages whose plots are not drawn, which takes most of their time."""
    for name in ("loss_by_budget", "loss_by_factor"):
        monkeypatch.setattr(plan_sections, name, lambda *_: None)
    monkeypatch.setattr(plan_sections, "plot", lambda _figure, _dpi, alt, said: Plot("", alt, said, 1))
    monkeypatch.setattr(head_profile, "_plots", lambda *_: [])


def facts_of(html, section):
    """Terms and descriptions in a section of the page."""
    part = html.split(f'id="{section}"')[1].split("<details")[0].split("</section>")[0]
    return {unescape(term): unescape(said) for term, said in re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", part)}


@pytest.mark.usefixtures("without_plots")
def test_settings_on_a_page_are_said_to_be_those_of_plan_study_or_profile(tmp_path):
    for kind in ("plan", "pairs", "study"):
        MADE[kind]().save(tmp_path / kind)
    pages = {kind: report_html(tmp_path / kind) for kind in ("plan", "pairs", "study")}
    run, plan = facts_of(pages["plan"], "run"), facts_of(pages["plan"], "plan-1")
    assert "Settings" not in run
    assert "window 4, sinks 1" in run["Settings of the profile"]
    assert plan["Window"].startswith("the last 4 keys")
    assert (plan["Sinks"], plan["Budget"]) == ("the first 1 keys", "0.5 of the key heads keep all keys")
    assert plan["Measure"] == "reach"
    pairs = facts_of(pages["pairs"], "plan-1")
    assert (pairs["Budget"], pairs["Other pairs"]) == ("0.5 of the pairs keep their rotation", "dropped (drop)")
    study = facts_of(pages["study"], "plan-study-1")
    assert study["Window"].startswith("the last 16 keys")
    assert (study["Budgets"], study["Measures"]) == ("0.25, 0.5 of the key heads keep all keys", "reach, distant_mass")
    assert "Settings" not in facts_of(pages["study"], "run")
    assert "distance 15" not in pages["study"]
    profile = synthetic_profile()
    profile.save(tmp_path / "plan")
    assert "window 4, sinks 1" in facts_of(report_html(tmp_path / "plan"), "run")["Settings of the profile"]


@pytest.mark.usefixtures("without_plots")
def test_the_caveat_about_the_paper_stands_where_its_measures_are_shown(tmp_path):
    said = "The definitions are the paper's"
    for kind, make in MADE.items():
        make().save(tmp_path / kind)
        assert said not in unescape(report_html(tmp_path / kind)), kind
    ph.window_plan(synthetic_profile(), 0.5, by="rho").save(tmp_path / "rho")
    synthetic_profile().save(tmp_path / "profile")
    assert said in unescape(report_html(tmp_path / "rho"))
    assert said in unescape(report_html(tmp_path / "profile"))


def commands_of(html):
    lines = unescape("\n".join(re.findall("<code>(.*?)</code>", html, re.DOTALL))).splitlines()
    return [line for line in lines if line.startswith("positional-heads")]


@pytest.mark.usefixtures("without_plots")
def test_the_commands_of_a_page_write_folders_of_their_own_and_the_last_reports_on_them(tmp_path):
    ours = {"plan": "plan", "pairs": "plan", "study": "study", "recommendation": "recommendation"}
    for kind, folder in ours.items():
        MADE[kind]().save(tmp_path / kind)
        assert commands_of(report_html(tmp_path / kind))[-1] == f"positional-heads report {folder}"
    study_of_windows().save(tmp_path / "another study")
    *commands, last = commands_of(report_html(tmp_path))
    assert last == "positional-heads report ."
    written = [words[words.index("--out") + 1] for words in map(shlex.split, commands)]
    assert sorted(written) == ["plan-1", "plan-2", "profile", "recommendation", "study-1", "study-2"]
    plans = [shlex.split(line)[2] for line in commands if " plan profile --budget" in line]
    assert plans == ["profile", "profile"]


def test_each_plan_is_made_from_the_command_of_its_own_profile():
    first, other = synthetic_profile(), synthetic_profile()
    other = replace(other, provenance=other.provenance | {"settings": other.provenance["settings"] | {"window": 8}})
    made = [ph.window_plan(one, 0.5, window=4) for one in (first, other)]
    shown, unshown = plan_commands([first], made)
    assert [line.split()[1:3] for line in shown.splitlines()] == [["plan", "profile-1"]]
    assert shown.endswith(" --out plan-1")
    before, *_, line = [one for one in unshown.splitlines() if one.startswith("positional-heads")]
    assert "--window 8 " in before
    assert before.endswith(" --out profile-2")
    assert line.startswith("positional-heads plan profile-2 ")


@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("kind", [*MADE, "profile"])
def test_a_page_asks_for_the_text_only_where_a_command_names_one(kind, tmp_path):
    made = synthetic_profile() if kind == "profile" else MADE[kind]()
    for texts in (None, [{"sha256": hashlib.sha256(ph.bundled_text("prose").encode()).hexdigest()}]):
        drawn = {"texts": texts, "seed": 3, "sequences": 8, "length": 9, "plain_text": False}
        data = dict(made.provenance.get("data", {})) | ({"drawn": drawn} if texts else {})
        replace(made, provenance=made.provenance | {"data": data}).save(tmp_path)
        html = unescape(report_html(tmp_path))
        named = any("TEXT.txt" in line for line in commands_of(html))
        assert named == (texts is None and kind not in {"study", "study of pairs"})
        assert ("replace TEXT.txt by what was used" in html) == named


def test_what_a_profile_counts_when_nothing_is_asked_for_is_no_setting_that_is_missing():
    provenance = synthetic_profile().provenance

    def said(pairs, longest):
        changed = {
            "settings": provenance["settings"] | {"pairs": pairs},
            "data": provenance["data"] | {"longest": longest},
        }
        return re.findall("no option for pairs (.*)", profile_command(provenance | changed))

    assert said("all", 8191) == []
    assert said(2**20, 8192) == []  # 8192 * 8193 / 2 is above 2^25
    assert said("all", 8192) == ["all"]
    assert said(1024, 100) == ["1024"]


def test_the_block_to_paste_is_on_the_page_and_none_where_nothing_is_to_be_changed(tmp_path):
    made = recommended()
    made.save(tmp_path)
    after = unescape(report_html(tmp_path)).rsplit("To put into config.json, in place of what is there", 1)[1]
    assert json.JSONDecoder().raw_decode(after[after.index("{") :])[0] == made.config
    assert "rope_parameters (transformers 5), if the file has it, may stay" in after
    planted_recommendation({}, notes=["512 tokens are within the 512 that the model was trained on."]).save(tmp_path)
    said = unescape(report_html(tmp_path))
    assert "Nothing to do: 512 tokens" in said
    assert "To put into config.json" not in said


@pytest.mark.parametrize("kind", ["plan", "pairs", "chance"])
def test_the_printed_command_makes_the_same_plan(kind, tmp_path):
    profile = synthetic_profile()
    plan = ph.window_plan(profile, 0.5, window=4, sinks=1, by="chance", seed=5) if kind == "chance" else MADE[kind]()
    profile.save(tmp_path / "profile")
    (line,) = [one for one in plan_command(plan).splitlines() if one.startswith("positional-heads plan")]
    words = shlex.split(line)
    words[words.index("profile")], words[words.index("--out") + 1] = str(tmp_path / "profile"), str(tmp_path / "plan")
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output
    again = type(plan).load(tmp_path / "plan")
    assert again.verdict == plan.verdict
    values = ("windowed", "ranked_by") if isinstance(plan, ph.HeadPlan) else ("kept", "ranked_by")
    assert all(torch.equal(getattr(again, one).nan_to_num(), getattr(plan, one).nan_to_num()) for one in values)


def test_the_commands_of_studies_have_their_settings():
    windows, pairs = given(plan_study_command(study_of_windows())), given(plan_study_command(study_of_pairs()))
    for one in (windows, pairs):
        assert (one["study"], one["task"], one["length"], one["examples"]) == ("planted", "passkey", [256], 2)
        assert (one["by"], one["budget"], one["n_random"], one["seed"]) == (["reach", "distant_mass"], "0.25,0.5", 3, 3)
    assert (windows["pairs"], windows["window"], windows["sinks"]) == (False, 16, 2)
    assert (pairs["pairs"], pairs["how"], pairs["window"]) == (True, "drop", None)
    assert "# other settings of the task, which must be its defaults, were: digits 5" in plan_study_command(
        study_of_windows()
    )
    own = replace(study_of_windows(), cells=[replace(one, by="mine") for one in study_of_windows().cells])
    assert "cannot choose by a measure of your own, mine" in plan_study_command(own)


def test_the_command_of_a_recommendation_tries_the_same_candidates():
    read = given(recommend_command(recommended()))
    assert (read["model"], read["target_length"], read["training_length"]) == ("planted", 256, 64)
    assert (read["methods"], read["factors"], read["text"]) == ("yarn,ntk", "4", ["TEXT.txt"])
    assert (read["sequences"], read["in_order"], read["seed"]) == (8, True, 3)
    assert (read["task"], read["depths"], read["examples"]) == ("passkey", 3, 2)
    drawn = {"texts": [{"sha256": "0"}], "seed": 4, "sequences": 8, "length": 256, "plain_text": False}
    made = recommended()
    made = replace(made, provenance=made.provenance | {"data": {"sequences": 8, "drawn": drawn}})
    assert not given(recommend_command(made))["in_order"]
    assert "# --seed is also the seed of the drawn sequences, which was 4 here" in recommend_command(made)
    left_out = planted_recommendation({"none": 2.0, "yarn 4": 1.0, "ntk 8": 1.0})
    left_out = replace(left_out, provenance=left_out.provenance | {"task": {"name": None}})
    assert given(recommend_command(left_out))["task"] == "none"
    assert "these were tried: yarn 4, ntk 8" in recommend_command(left_out)
