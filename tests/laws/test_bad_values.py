"""Nobody meets raw errors of Python or PyTorch: values that make no sense are refused in a sentence, and early."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "bad_values.py"


@pytest.mark.parametrize("way", ["python", "shell"])
def test_values_that_make_no_sense_are_refused_in_a_sentence(way, tmp_path):
    """In a plain interpreter: the tests' own type checker would refuse them before the library does."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), way],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("tried "), done.stdout
    assert not done.stdout.splitlines()[:-1]
