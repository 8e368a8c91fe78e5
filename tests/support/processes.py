"""Processes of their own, for tests that kill or interrupt one, or that must be free of the tests' type checker.

All are forked from one that has imported the libraries, because importing TransformerLens takes seconds.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

IMPORTED_ONCE = ["transformer_lens.model_bridge", "transformers.models.llama.modeling_llama", "matplotlib.figure"]
IMPORTED_ONCE += ["pandas", "scipy.stats"]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(IMPORTED_ONCE)


class Ended(NamedTuple):
    """What a process leaves behind, as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Process:
    """A call of a function in a process of its own, whose output goes to two files."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stdout, self.stderr = self.folder / "stdout", self.folder / "stderr"
        for file in (self.stdout, self.stderr):
            file.touch()
        as_here = {**os.environ}, str(Path.cwd()), str(self.stdout), str(self.stderr)
        self.process = FORKED.Process(target=_call, args=(*as_here, function, *arguments))
        self.process.start()

    def send(self, signal_number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, signal_number)

    def runs(self) -> bool:
        """Whether the process has not ended."""
        return self.process.is_alive()

    def ended(self) -> Ended:
        """Wait for the end of the process."""
        self.process.join()
        left = Ended(self.process.exitcode, self.stdout.read_bytes(), self.stderr.read_bytes())
        self.process.close()
        shutil.rmtree(self.folder)
        return left


def _call(environment, folder, stdout, stderr, function, *arguments):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, file in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(file, os.O_WRONLY), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    function(*arguments)


def command_line(*arguments):
    """The command line, as `positional-heads` with these arguments."""
    from positional_heads.cli import main

    os.environ["COLUMNS"] = "100"
    sys.argv = ["positional-heads", *arguments]
    main()
