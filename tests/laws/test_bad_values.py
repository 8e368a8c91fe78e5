"""Nobody meets raw errors of Python or PyTorch: values that make no sense are refused in a sentence, and early."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.support.processes import Process

SCRIPT = str(Path(__file__).parents[1] / "support" / "bad_values.py")


def run_script(way):
    sys.argv = [SCRIPT, way]
    runpy.run_path(SCRIPT, run_name="__main__")


@pytest.mark.parametrize("way", ["python", "shell"])
def test_values_that_make_no_sense_are_refused_in_a_sentence(way, tmp_path, monkeypatch):
    """In a plain interpreter: the tests' own type checker would refuse them before the library does."""
    monkeypatch.chdir(tmp_path)
    done = Process(run_script, way).ended()
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.splitlines()[-1].startswith(b"tried "), done.stdout.decode()
    assert not done.stdout.splitlines()[:-1]
