"""Processes of their own, for tests that kill or interrupt one, or that must be free of the tests' type checker.

All are forked from one that has imported the libraries and this one, because importing TransformerLens takes seconds.
"""

import gc
import itertools
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
ROOT = Path(__file__).parents[2]
FILES = sorted(file for file in ROOT.glob("positional_heads/*/**/*.py") if not file.stem.startswith(("fused", "__")))
IMPORTED_ONCE += [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(IMPORTED_ONCE)


class Ended(NamedTuple):
    """What a process leaves behind, as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Process:
    """A call of a function in a process of its own, whose input and output are files."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, stdin: bytes = b"") -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.stdin, self.stdout, self.stderr = (self.folder / name for name in ("stdin", "stdout", "stderr"))
        for file, content in ((self.stdin, stdin), (self.stdout, b""), (self.stderr, b"")):
            file.write_bytes(content)
        as_here = {**os.environ}, Path.cwd(), (self.stdin, self.stdout, self.stderr)
        self.process = FORKED.Process(target=_call, args=(*as_here, function, *arguments))
        self.process.start()

    def ended(self) -> Ended:
        """Wait for the end of the process."""
        self.process.join()
        left = Ended(self.process.exitcode, self.stdout.read_bytes(), self.stderr.read_bytes())
        self.process.close()
        shutil.rmtree(self.folder)
        return left


def _call(environment, folder, files, function, *arguments):
    gc.freeze()  # what was imported is no garbage
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, file in enumerate(files):
        os.dup2(os.open(file, os.O_WRONLY if stream else os.O_RDONLY), stream)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing put nothing in its place
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    function(*arguments)


def signal_in(owner, name, number, sent=signal.SIGKILL):
    """Let this process send itself a signal, by default its death, at the so-many-th call of a function."""
    function, calls = getattr(owner, name), itertools.count(1)

    def signalled(*arguments, **named):
        if next(calls) == number:
            os.kill(os.getpid(), sent)
        return function(*arguments, **named)

    setattr(owner, name, signalled)


def dying_command_line(number, *arguments):
    """The command line, killed in its so-many-th `fsync`, which is while it saves something."""
    signal_in(os, "fsync", number)
    command_line(*arguments)


def interrupted_command_line(number, *arguments):
    """The command line, stopped by Ctrl-C in its so-many-th batch of a scoring run."""
    from positional_heads.scoring.counter import EntryCounter

    signal_in(EntryCounter, "count", number, signal.SIGINT)
    command_line(*arguments)


def command_line_on_a_full_disk(*arguments):
    """The command line, which can write no large file."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    command_line(*arguments)


def command_line(*arguments):
    """The command line, as `positional-heads` with these arguments."""
    from positional_heads.cli import main

    os.environ["COLUMNS"] = "100"
    sys.argv = ["positional-heads", *arguments]
    main()
