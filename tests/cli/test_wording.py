"""The command line names options where the library names arguments of Python."""

import logging

import pytest
import typer

from positional_heads.cli import app
from positional_heads.cli.common import one_line_errors
from positional_heads.cli.show import print_result
from positional_heads.cli.wording import RENAMED, in_options
from positional_heads.core.plan import EntryPlan
from positional_heads.results.files import SCORES
from tests.support.synthetic import synthetic_scores


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Score again with null_repeats=20.", "Score again with --null-repeats 20."),
        ("every result needs a null (null_repeats=20). And", "every result needs a null (--null-repeats 20). And"),
        ("sampled of each (pairs='all' counts all)", "sampled of each (--pairs all counts all)"),
        ("20 can (n_permuted=20)", "20 can (--permutations 20)"),
        ("run it with n_anywhere=20", "run it with --anywhere 20"),
        ('alone, add singles="all"', "alone, add --singles all"),
        ("; plain_text=True reads plain characters", "; --plain-text reads plain characters"),
        ("give a longer text as haystack=", "give a longer text as --haystack"),
        ("max_distance 3 must be at least min_distance 5", "--max-distance 3 must be at least --min-distance 5"),
        ("run ablation_study to test whether", "run positional-heads ablate to test whether"),
        ("tokens; beyond_context=True runs past it", "tokens; beyond_context=True (in Python) runs past it"),
        ("load_model(BASE, adapter=/x), or --adapter /x", "load_model(BASE, adapter=/x), or --adapter /x"),
        ("written: seed=1/a.st, seed=12: no, x/seed=1", "written: seed=1/a.st, seed=12: no, x/seed=1"),
        (
            "mode mean needs reference=: the task; file=, a table",
            "mode mean needs --reference: the task; --file, a table",
        ),
        ("load it in float32 (dtype=) or device_map={'a': 0}", "load it in float32 (--dtype) or --device-map {'a': 0}"),
        ("/runs/skip_keys/a.st, skip_keys.txt, rho_curve", "/runs/skip_keys/a.st, skip_keys.txt, rho_curve"),
    ],
)
def test_arguments_become_options(said, shown):
    assert in_options(said) == shown


def test_the_options_exist():
    commands = typer.main.get_command(app).commands.values()
    assert set(RENAMED.values()) <= {option for command in commands for one in command.params for option in one.opts}


def test_errors_warnings_and_verdicts_name_options(capsys, tmp_path):
    def warned_and_refused():
        with one_line_errors():
            logging.getLogger("positional_heads.scoring").warning("8 are sampled (pairs='all' counts %s)", "all")
            EntryPlan((16,), min_distance=5, max_distance=3)

    with pytest.raises(typer.Exit):
        warned_and_refused()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "8 are sampled (--pairs all counts all)"
    assert said[1].startswith("error: --max-distance 3 must be at least --min-distance 5")
    logging.getLogger("positional_heads").warning("outside")
    assert "outside" not in capsys.readouterr().out
    scores = synthetic_scores()
    assert "null_repeats=" in scores.verdict or "control_keys=" in scores.verdict
    print_result(scores.save(tmp_path), SCORES, as_json=False, top=1)
    verdict = capsys.readouterr().out.split("Verdict: ")[1]
    assert "=" not in verdict.replace("<=", "")
    assert "--" in verdict
