"""The command line as a user meets it: a process of its own, what it prints, writes and returns."""

import functools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads import cli
from positional_heads.bridge.provenance import data_hash
from positional_heads.bridge.rope_scaling.methods import METHODS
from positional_heads.cli import ablate as cli_ablate
from positional_heads.cli import app
from positional_heads.cli import extrapolate as cli_extrapolate
from positional_heads.cli import profile as cli_profile
from positional_heads.cli import recommend as cli_recommend
from positional_heads.cli import score as cli_score
from positional_heads.results import tables
from positional_heads.results.verdicts import ALPHA
from positional_heads.studies import checkpoint_sources
from positional_heads.studies.tasks.evaluate import TASKS, task_setting_names
from positional_heads.studies.tasks.recall import RECALL
from tests.support.processes import Process, command_line, command_line_on_a_full_disk, interrupted_command_line
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_comparison import planted_nulls

SCORE = ("score", "bundled", "--null-repeats", "3", "--sequences", "2", "--length", "64")


def run(*arguments, stdin=b""):
    return Process(command_line, *map(str, arguments), stdin=stdin).ended()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "report"
    done = run(*SCORE, "--text", "bundled", "--out", folder)
    assert done.returncode == 0, done.stderr.decode()
    return folder, done


def test_a_score_prints_heads_and_verdict_and_writes_a_report(report):
    folder, done = report
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith(
        "bundled: 4 layers of 8 heads, 2 sequences of up to 64 tokens of bundled:revelation, all query-key pairs, 3 "
        "shuffles"
    )
    assert len([line for line in lines if line.strip().startswith("L")]) == 10
    assert lines[-1].startswith("Verdict: ")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("curves.png", "examples.safetensors", "heads.csv", "report.md", "rho.png", "scores.safetensors")
    ]
    assert (folder / "rho.png").read_bytes().startswith(b"\x89PNG")
    assert "2 sequences of at most 64 tokens drawn from 1 text at random (--seed 0; --in-order" in done.stderr.decode()
    scores = ph.HeadScores.load(folder)
    first = (scores.positional_heads(alpha=ALPHA) or [max(scores.heads, key=lambda head: float(scores.excess[head]))])[
        0
    ]
    assert re.search(r"(?:--- \|)+\n\| (\w+) ", (folder / "report.md").read_text())[1] == str(first)
    assert scores.verdict in (folder / "report.md").read_text()


def test_show_prints_what_score_printed_and_loads_nothing_heavy(report):
    folder, done = report
    assert run("show", folder).stdout == done.stdout
    assert heavy_imports(["show", str(folder)]) <= {"numpy"}


def test_help_loads_no_library_but_that_of_the_command_line():
    commands = [command.callback.__name__ for command in app.registered_commands]
    assert len(commands) >= 6
    assert heavy_imports(["--help"], *([command, "--help"] for command in commands)) == set()


def heavy_imports(*commands):
    """Libraries that take long to import, among those that these commands load, one after the other."""
    code = f"""
import sys
from positional_heads.cli import app
for arguments in {commands}:
    try: app(arguments)
    except SystemExit as end: assert not end.code
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    heavy = "torch transformers transformer_lens numpy scipy pandas matplotlib plotly jaxtyping einops safetensors ray"
    return loaded & {*heavy.split()}


def test_show_names_the_heads_that_beat_their_null(tmp_path):
    scores, _ = planted_nulls()
    scores = replace(scores, rho=scores.rho + scores.rho.cumsum(-1) / 100)  # no two heads have one excess
    scores.save(tmp_path / "scores.safetensors")
    beating = scores.positional_heads(alpha=ALPHA)
    lines = CliRunner().invoke(app, ["show", str(tmp_path), "--top", "1"]).stdout.splitlines()
    assert len(beating) > 1
    assert f"Beat their null, the largest excess first: {', '.join(map(str, beating))}" in lines
    assert tables.ALPHA == ALPHA


def test_json_is_json(report):
    folder, _ = report
    shown = json.loads(run("show", folder, "--json").stdout)
    assert shown["verdict"] == ph.HeadScores.load(folder).verdict
    assert len(shown["table"]) == 32
    assert shown["provenance"]["settings"]["null_repeats"] == 3


@pytest.mark.usefixtures("undrawn")
def test_compare_prints_and_writes_what_python_says(tmp_path):
    folders = [tmp_path / name for name in ("prose", "code", "more")]
    a, b = planted_nulls()
    for folder, scores in zip(folders, (a, b, replace(a, rho=a.rho + 0.01)), strict=True):
        scores.save(folder / "scores.safetensors")
    invoke = functools.partial(CliRunner().invoke, app)
    two, expected = list(map(str, folders[:2])), ph.compare(a, b, names=["prose", "code"])
    printed = invoke(["compare", *two, "--top", "2"])
    assert f"\nVerdict: {expected.verdict}\n" in printed.stdout
    assert [line.split()[0] for line in printed.stdout.splitlines() if line.strip().startswith("L0H")] == [
        "L0H1",
        "L0H3",
    ]
    written = invoke(["compare", *two, "--top", "2", "--out", str(tmp_path / "out")])
    assert written.stdout == printed.stdout == invoke(["show", str(tmp_path / "out"), "--top", "2"]).stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        *("agreement.csv", "changes.csv", "comparison.md", "comparison.png", "comparison.safetensors", "top.csv")
    ]
    assert expected.verdict in (tmp_path / "out" / "comparison.md").read_text()
    content = json.loads(invoke(["compare", *two, "--json"]).stdout)
    assert content["agreement"][0]["measure"] == "rho"
    assert "already holds results" in invoke(["compare", *two, "--out", str(tmp_path / "out")]).stderr
    several = invoke(["compare", *map(str, folders), "--names", "x,y,z", "--out", str(tmp_path / "all")])
    assert "in all 3 results" in several.stdout
    assert "rho on z" in several.stdout
    assert ph.Stability.load(tmp_path / "all").names == ("x", "y", "z")
    page = invoke(["report", str(tmp_path)])
    assert page.exit_code == 0, page.stderr
    html = (tmp_path / "report.html").read_text()
    assert "Comparison: prose, code" in html
    assert "Comparison: x, y, z" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "a alone cannot be compared: give two results"),
        (["a", "a/scores.safetensors"], "a and a/scores.safetensors are the same file"),
        (["a", "b"], "a and b are the same result, every number is equal"),
        (["a", "nowhere"], "nowhere/scores.safetensors: no such result file"),
        (["a", "c", "--names", "x"], "--names 'x': give 2 different ones"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    a, c = planted_nulls()
    for name, scores in (("a", a), ("b", a), ("c", c)):
        scores.save(tmp_path / name / "scores.safetensors")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", *arguments])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_shards_merge_to_the_same_report(report, tmp_path):
    folder, done = report
    for number in (1, 2):
        counted = run(*SCORE, "--text", "bundled", "--out", tmp_path, "--shard", f"{number}/2")
        assert counted.stderr.decode().splitlines()[-1] == f"written: {tmp_path}/shard-000{number}-of-0002.safetensors"
    merged = run("merge", tmp_path, "--out", tmp_path / "all")
    assert merged.stdout == done.stdout
    for name in ("scores.safetensors", "heads.csv", "rho.png", "curves.png", "report.md"):
        assert (folder / name).read_bytes() == (tmp_path / "all" / name).read_bytes(), name


def test_the_same_command_gives_the_same_bytes(report, tmp_path):
    folder, _ = report
    run(*SCORE, "--text", "bundled", "--out", tmp_path)
    for name in ("scores.safetensors", "heads.csv", "rho.png", "report.md"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_text_is_read_from_standard_input_and_from_several_files(tmp_path):
    text = ph.bundled_text()
    (tmp_path / "a.txt").write_text(text[:300])
    texts = ("--text", "-", "--text", tmp_path / "a.txt")
    options = ("--dtype", "bfloat16", "--in-order")
    done = run(*SCORE, *texts, *options, "--out", tmp_path / "r", stdin=text[:200].encode())
    assert done.returncode == 0, done.stderr.decode()
    provenance = ph.HeadScores.load(tmp_path / "r").provenance
    assert provenance["model"]["dtype"] == "bfloat16"
    assert provenance["data"]["texts"] == [None, "a.txt"]
    assert "2 texts cut into 9 sequences of at most 64 tokens; scoring the first 2, 128 tokens" in done.stderr.decode()


def test_a_command_draws_what_the_library_draws(tmp_path, bundled):
    """From a file and a bundled text; the model is one that is loaded already."""
    (tmp_path / "a.txt").write_text(text := ph.bundled_text()[:9000])
    drawn = ("--text", str(tmp_path / "a.txt"), "--text", "bundled:dialogue", "--sequences", "3", "--length", "40")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_score, "load_named", lambda *_, **__: bundled)
        out = ("--null-repeats", "0", "--seed", "7", "--out", str(tmp_path / "r"))
        done = CliRunner().invoke(app, ["score", "bundled", *drawn, *out])
    assert done.exit_code == 0, done.output
    pieces = ph.cut_text(bundled, [text, ph.bundled_text("dialogue")], 40, sequences=3, seed=7)
    rows = [(piece, None) for piece in pieces]
    data = ph.HeadScores.load(tmp_path / "r").provenance["data"]
    assert data["sha256"] == data_hash(rows)
    assert data["drawn"]["places"] == pieces.drawn["places"]
    assert data["texts"] == ["a.txt", "bundled:dialogue"]
    assert [text["bytes"] for text in data["drawn"]["texts"]] == [9000, 375753]


def bad_inputs(folder: Path) -> dict[str, tuple[list[str], str]]:
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n")
    (folder / "binary.bin").write_bytes(bytes(range(256)))
    (folder / "nulls.txt").write_bytes(b"In the\0beginning")
    (folder / "good.txt").write_text("In the beginning God created the heaven and the earth.")
    (folder / "damaged.safetensors").write_bytes(b"\x10\0\0\0")
    good = ["--text", str(folder / "good.txt")]
    out = ["--out", str(folder / "out")]
    return {
        "no text": (["score", "bundled", *out], "no text given: add --text FILE"),
        "missing text": (["score", "bundled", "--text", str(folder / "x"), *out], "no such text file"),
        "empty": (["score", "bundled", "--text", str(folder / "empty.txt"), *out], "the text is empty"),
        "blank": (["score", "bundled", "--text", str(folder / "blank.txt"), *out], "the text is empty"),
        "binary": (["score", "bundled", "--text", str(folder / "binary.bin"), *out], "is it a binary file"),
        "binary to draw from": (
            ["score", "bundled", "--text", str(folder / "binary.bin"), "--sequences", "2", *out],
            "is it a binary file",
        ),
        "no such kind": (
            ["score", "bundled", "--text", "bundled:cod", *out],
            "bundled:cod: no such bundled text; choose one of bundled:revelation, bundled:prose, bundled:code, "
            "bundled:dialogue, bundled:technical; did you mean bundled:code?",
        ),
        "null bytes": (["score", "bundled", "--text", str(folder / "nulls.txt"), *out], "holds null bytes"),
        "unwritable": (["score", "bundled", *good, "--out", str(folder / "good.txt" / "r")], "cannot write there"),
        "missing model": (["score", "./nowhere", *good, *out], "no such model folder"),
        "temperature": (["score", "bundled", *good, *out, "--temperature", "warm"], "must be a number, or 'attention'"),
        "sequences": (["score", "bundled", *good, *out, "--sequences", "0"], "--sequences 0 must be at least 1"),
        "length": (["score", "bundled", *good, *out, "--length", "9999"], "length 9999 must be between 2 and"),
        "pairs": (
            ["score", "bundled", *good, *out, "--pairs", "few"],
            "--pairs 'few' must be a whole number, or 'all'",
        ),
        "shard": (["score", "bundled", *good, *out, "--shard", "9/8"], "there is no shard 9 of 8: they are counted"),
        "executor": (["score", "bundled", *good, *out, "--executor", "dask"], "'ray' is the only one"),
        "address": (["score", "bundled", *good, *out, "--address", "auto"], "go with --executor ray"),
        "no shards": (["merge", str(folder)], "no shards in it; positional-heads score --shard 1/8"),
        "fractions": (
            ["ablate", "bundled", *out, "--fractions", "0.1,b"],
            "--fractions '0.1,b' must be numbers separated",
        ),
        "factors": (
            ["extrapolate", "bundled", *out, "--factors", "two"],
            "--factors 'two' must be numbers separated",
        ),
        "missing result": (["show", str(folder / "nowhere")], "no such result file"),
        "damaged result": (["show", str(folder / "damaged.safetensors")], "not a result file, or a truncated one"),
    }


@pytest.mark.parametrize("case", range(22))
def test_bad_input_ends_in_one_line_and_leaves_nothing(case, tmp_path):
    arguments, message = list(bad_inputs(tmp_path).values())[case]
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr.decode()
    assert not done.stdout
    assert [file for file in sorted(tmp_path.rglob("*")) if file.is_file()] == [
        file for file in before if file.is_file()
    ]


@pytest.mark.parametrize("arguments", [["score", "bundeld"], ["score", "bundled", "--text", "Bundle"]])
def test_a_misspelt_bundled_is_asked_about_before_anything_is_loaded(arguments, tmp_path):
    done = CliRunner().invoke(app, [*arguments, "--text", "bundled", "--out", str(tmp_path / "r")])
    assert done.exit_code == 1
    assert done.stderr.endswith("did you mean 'bundled'?\n")
    assert "loading" not in done.stderr


def test_the_version_is_that_of_the_package():
    done = CliRunner().invoke(app, ["--version"])
    assert done.stdout == f"positional-heads {ph.__version__}\n"


def test_help_names_every_task():
    for command, tasks in (("ablate", TASKS), ("extrapolate", RECALL)):
        words = re.findall(r"\w+", CliRunner().invoke(app, [command, "--help"]).stdout)
        assert not set(tasks) - set(words)


def test_every_setting_of_a_task_has_an_option():
    words = re.findall(r"--([\w-]+)", CliRunner().invoke(app, ["ablate", "--help"]).stdout)
    settings = {setting for task in TASKS for setting in task_setting_names(task)}
    assert settings - {name.replace("-", "_") for name in words} == {"beyond_context"}


def test_help_names_every_method_that_needs_no_settings_of_its_own():
    words = re.findall(r"\w+", CliRunner().invoke(app, ["extrapolate", "--help"]).stdout)
    assert set(METHODS) - set(words) == {"longrope", "dpe", "clex", "kept_pairs"}


BEFORE_THE_MODEL = {
    "score": {
        "--temperature 0": "temperature 0.0 must be positive",
        "--resolution 5": "resolution 5.0: give pair indices from 0",
        "--pairs 0": "0 query-key pairs are too few",
        "--null-repeats 1": "--null-repeats 1: give 0 for none, or at least 2",
        "--min-distance 100 --max-distance 50": "--max-distance 50 must be at least --min-distance 100",
        "--dtype fp32": "dtype 'fp32' is unknown: choose one of float32",
        "--sequences 0": "--sequences 0 must be at least 1",
    },
    "profile": {
        "--retrieval paskey": "--retrieval 'paskey' is unknown: choose one of passkey, ",
        "--retrieval perplexity": "--retrieval 'perplexity' has no needle: choose one of passkey, ",
        "--null-repeats 1": "--null-repeats 1: give 0 for none, or at least 2",
        "--window 99999999999": "window 99999999999 must be at most 2147483648",
        "--dtype fp32": "dtype 'fp32' is unknown",
        "--sequences 0": "--sequences 0 must be at least 1",
    },
    "ablate": {
        "--mode x": "mode 'x' is unknown",
        "--mode far": "mode 'far' needs --distance",
        "--singles x": "--singles 'x' is unknown: choose one of all, top, none",
        "--rank-by x": "--rank-by 'x' is unknown: choose one of rho, excess, rho_curve, retrieval",
        "--budget 0": "budget 0.0 must be a number of minutes above 0",
        "--scores nope": "leave one of them out",  # --text is given as well
        "--task exam --near 1": "near 1 must be at least 2",
        "--task paskey": "task 'paskey' is unknown",
        "--dtype fp32": "dtype 'fp32' is unknown",
    },
    "extrapolate": {
        "--methods none,yran": "method 'yran' is unknown: did you mean yarn",
        "--factors 0.5": "factor 0.5 must be above 1",
        "--budget nan": "budget must be a finite number",
        "--task paskey": "task 'paskey' has no answers at known distances",
        "--dtype fp32": "dtype 'fp32' is unknown",
    },
    "recommend": {
        "--target-length 900 --methods none,yran": "method 'yran' is unknown: did you mean yarn",
        "--target-length 900 --factors 0.5": "factor 0.5 must be above 1",
        "--target-length 900 --budget 0": "budget 0.0 must be a number of minutes above 0",
        "--target-length 900 --task paskey": "task 'paskey' has no answers at known distances",
        "--target-length 900 --dtype fp32": "dtype 'fp32' is unknown",
    },
    "emerge": {
        "--retrieval perplexity": "retrieval 'perplexity' has no needle: choose one of passkey, ",
        "--null-repeats 1": "--null-repeats 1: give 0 for none, or at least 2",
        "--task paskey": "task 'paskey' is unknown",
        "--task copy --haystack bundled:x": "no such bundled text",
        "--examples 3": "--examples: for a task, name one with --task",
        "--revisions main": "'bundled' has none; leave it out to follow all checkpoints",
        "--dtype fp32": "dtype 'fp32' is unknown",
        "--sequences 0": "--sequences 0 must be at least 1",
    },
}


@pytest.mark.parametrize("command", BEFORE_THE_MODEL)
def test_bad_settings_are_refused_before_the_model_is_loaded(command, tmp_path, monkeypatch):
    loaded = []
    for module in (cli_score, cli_profile, cli_ablate, cli_extrapolate, cli_recommend):
        monkeypatch.setattr(module, "load_named", lambda *_: loaded.append(1))
    monkeypatch.setattr(checkpoint_sources.Checkpoint, "load", lambda _: loaded.append(1))
    for options, message in BEFORE_THE_MODEL[command].items():
        arguments = [command, "bundled", "--text", "bundled", "--out", str(tmp_path / "r"), *options.split()]
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 1, options
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ") and message in line], options
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "r").exists()
    assert not loaded


def test_a_short_run_does_not_report_where_progress_is_saved(report, tmp_path):
    assert b"is saved in" not in report[1].stderr
    (tmp_path / "sums.safetensors").write_bytes(b"damaged")
    done = run(*SCORE, "--text", "bundled", "--out", tmp_path)
    assert done.returncode == 1
    assert b"is saved in" not in done.stderr


def test_a_reference_longer_than_the_context_is_averaged_over(report, tmp_path):
    (tmp_path / "long.txt").write_text(ph.bundled_text()[:1000])  # one token a byte, the context is 512
    task = ("--task", "copy", "--length", "64", "--examples", "1", "--fractions", "0.05", "--n-random", "1")
    averaged = ("--mode", "mean", "--reference", tmp_path / "long.txt", "--singles", "none")
    done = run("ablate", "bundled", "--scores", report[0], *task, *averaged, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr.decode()


def test_wrong_usage_is_status_2():
    done = run("score", "bundled", "--no-such-option")
    assert done.returncode == 2
    assert b"No such option" in done.stderr


def test_results_are_not_replaced_unless_asked(report):
    folder, _ = report
    before = (folder / "scores.safetensors").read_bytes()
    done = run(*SCORE, "--text", "bundled", "--out", folder)
    assert done.returncode == 1
    assert b"already holds results" in done.stderr
    assert (folder / "scores.safetensors").read_bytes() == before


def test_a_full_disk_leaves_no_half_written_file(tmp_path):
    """A limit on file size stands in for a full disk: the write fails half-way."""
    command = (*SCORE, "--text", "bundled", "--out", str(tmp_path / "r"))
    limited = Process(command_line_on_a_full_disk, *command).ended()
    assert limited.returncode == 1
    assert limited.stderr.decode().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("r/*"))


def test_ctrl_c_keeps_what_was_counted(report, tmp_path):
    """The sums hold whole batches: going on from them gives the same bytes as never having stopped."""
    score = ["score", "bundled", "--text", "bundled", "--length", "96", "--null-repeats", "3", "--batch-size", "1"]
    score += ["--sequences", "6", "--out"]
    done = Process(interrupted_command_line, 2, *score, str(tmp_path / "r")).ended()  # one is counted before
    assert done.returncode == 130, done.stderr
    assert b"scoring heads: " in done.stderr
    said = done.stderr.decode().splitlines()[-1]
    assert re.fullmatch(r"interrupted: 3 of 6 batches are .*saved in .*sums.safetensors.*", said)
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["sums.safetensors"]
    for reader in ("show", "report"):
        shown = run(reader, tmp_path / "r")
        assert shown.returncode == 1
        assert re.search(rb"error: .*sums.safetensors: unfinished, 3 of 6 batches are counted; to resume", shown.stderr)
    assert run(*score, tmp_path / "r").returncode == 0
    assert not (tmp_path / "r" / "sums.safetensors").exists()
    run(*score, tmp_path / "whole")
    for name in ("scores.safetensors", "heads.csv", "report.md"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_show_names_the_folders_below_that_have_a_result(report, tmp_path):
    show = functools.partial(CliRunner().invoke, app)
    assert f"error: {tmp_path} is empty: " in show(["show", str(tmp_path)]).stderr
    (tmp_path / "text.txt").write_text("In the beginning")
    done = show(["show", str(tmp_path)])
    assert done.exit_code == 1
    assert (
        f"error: no result file in {tmp_path}: neither it nor a folder in it has scores.safetensors, distances.safe"
        in done.stderr
    )
    shutil.copytree(report[0], tmp_path / "first")
    assert show(["show", str(tmp_path)]).stderr == (
        f"error: no result file in {tmp_path}; {tmp_path / 'first'} has one\n"
    )
    shutil.copytree(report[0], tmp_path / "second")
    assert f"; {tmp_path / 'first'}, {tmp_path / 'second'} have one\n" in show(["show", str(tmp_path)]).stderr


def test_show_reports_an_unfinished_study_next_to_scores(report, tmp_path):
    folder, done = report
    shutil.copytree(folder, tmp_path / "r")
    lines = [{"ablation": {}, "model": {}}, {"part": "L0H1", "result": {}}]
    (tmp_path / "r" / "finished.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = run("show", tmp_path / "r")
    assert shown.stdout == done.stdout
    said = b"finished.jsonl: unfinished study, 1 of its parts done; to resume, repeat the same positional-heads ablate"
    assert said in shown.stderr
    (tmp_path / "alone").mkdir()
    shutil.move(tmp_path / "r" / "finished.jsonl", tmp_path / "alone")
    for reader in ("show", "report"):
        shown = run(reader, tmp_path / "alone")
        assert shown.returncode == 1
        assert said in shown.stderr


def command_with_a_fault(*arguments):
    def broken(*_, **__):
        return {}["gone"]

    cli_score.load_named = broken
    command_line(*arguments)


def test_bugs_are_reported_in_one_line_and_with_a_traceback_on_request(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("In the beginning")
    score = ["score", "bundled", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "r")]
    for asked, lines in ((False, 1), (True, 0)):
        if asked:
            monkeypatch.setenv("POSITIONAL_HEADS_DEBUG", "1")
        done = Process(command_with_a_fault, *score).ended()
        assert done.returncode == 1
        assert (b"Traceback" in done.stderr) == asked
        assert done.stderr.count(b"error: KeyError: 'gone'; this is a fault of positional-heads") == lines


def test_a_study_that_cannot_begin_leaves_no_folder_and_keeps_what_was_there(tmp_path, monkeypatch, bundled):
    monkeypatch.setattr(cli_ablate, "load_named", lambda *_, **__: bundled)
    command = ["ablate", "bundled", "--task", "exam", "--length", "200", "--examples", "1", "--out"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "made" / "here")])
    assert "give a length of at least" in done.stderr
    assert not (tmp_path / "made").exists()
    (tmp_path / "kept").mkdir()
    CliRunner().invoke(app, [*command, str(tmp_path / "kept")])
    assert (tmp_path / "kept").is_dir()


def test_ablate_does_not_take_saved_scores_for_those_of_another_text(bundled, tmp_path):
    """A killed command left its scores; with another text or seed, another command would rank by them."""
    given = tmp_path / "a.txt"
    given.write_text(ph.bundled_text()[:40_000])
    pieces = ph.cut_text(bundled, given, sequences=cli_ablate.SCORED_SEQUENCES, seed=0)
    replace(synthetic_scores(), provenance={"data": {"drawn": pieces.drawn, "sequences": 12}}).save(tmp_path)
    found = functools.partial(cli_ablate._scores, bundled, out=tmp_path, bundled=True)
    for text in ([str(given)], None):  # without a text, those that lie there are meant
        assert found(text, seed=0).provenance["data"]["sequences"] == 12
    for text, seed in ((str(given), 1), ("bundled:code", 0)):
        with pytest.raises(ValueError, match="holds scores of other sequences than these 12 of --text"):
            found([text], seed=seed)
