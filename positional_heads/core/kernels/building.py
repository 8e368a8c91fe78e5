"""Compile a C++ file once per user, processor and compiler, and load it into this process.

Libraries are cached in a folder of the user, under a name that hashes everything they depend on. A library that another
user could have written is not loaded.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from positional_heads.core.user_cache import user_cache
from positional_heads.core.whole_files import write_atomically

logger = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120
"""Time limit of a compiler."""


class BuildError(RuntimeError):
    """No library could be built or loaded; the message has the reason and the remedy."""


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """The library of a C++ file, compiled if it has not been before.

    Raises:
        BuildError: If there is no compiler, it fails, or the library is not the user's own.
    """
    library, command = _library(source)
    try:
        if not library.exists():
            logger.info("building %s once, into %s", source.name, library.parent)
            _build(source, library, command)
        _refuse_writable_by_others(library.parent)
        _refuse_writable_by_others(library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        msg = (
            f"{library} cannot be built or loaded: {error}; remove it, or set POSITIONAL_HEADS_CACHE to another folder"
        )
        raise BuildError(msg) from error


def _library(source: Path) -> tuple[Path, list[str]]:
    """The path of a source's library, built or not, and the command that compiles it, without files.

    Raises:
        BuildError: If there is no compiler.
    """
    if not hasattr(os, "getuid"):
        msg = f"compiling {source.name} needs Linux or macOS"
        raise BuildError(msg)
    command = [*_compiler(os.environ.get("CXX", ""), os.environ.get("PATH", "")), *_flags()]
    parts = [source.read_text(), *command, _version(tuple(command)), _processor()]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return user_cache("kernels") / f"{source.stem}-{name}.so", command


@functools.cache
def _compiler(chosen: str, path: str) -> tuple[str, ...]:
    """The compiler in the environment variable CXX, which may have arguments, or the first one installed."""
    for command in [shlex.split(chosen)] if chosen.strip() else [[name] for name in COMPILERS]:
        program = shutil.which(command[0], path=path)
        if program:
            return (program, *command[1:])
    wanted = (
        f"CXX is {chosen}, which is not installed" if chosen.strip() else f"none of {', '.join(COMPILERS)} is installed"
    )
    msg = f"there is no C++ compiler: {wanted}; install one (apt install g++, or xcode-select --install)"
    raise BuildError(msg)


def _flags() -> list[str]:
    x86 = platform.machine().lower() in {"x86_64", "amd64", "i686"}
    own = ["-march=native", "-mprefer-vector-width=512"] if x86 else ["-mcpu=native"]
    return ["-std=c++17", "-O3", "-ffp-contract=fast", *own, "-shared", "-fPIC"]


@functools.cache
def _version(command: tuple[str, ...]) -> str:
    return _run([command[0], "--version"])


@functools.cache
def _processor() -> str:
    """A text that differs between processors that cannot run each other's code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []  # the first core's
    constant = [line for line in lines if line.startswith(("model name", "CPU ", "flags", "Features", "isa"))]
    return "\n".join([platform.machine(), platform.processor(), *constant])


def _build(source: Path, library: Path, command: list[str]) -> None:
    """Compile in a temporary folder, then move the library: two processes may do so at the same time."""
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_writable_by_others(library.parent)
    with tempfile.TemporaryDirectory(prefix="positional_heads-") as folder:
        compiled = Path(folder) / library.name
        _run([*command, str(source), "-o", str(compiled)])
        write_atomically(library, compiled.read_bytes(), 0o700)


def _refuse_writable_by_others(path: Path) -> None:
    status = path.lstat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_uid != os.getuid() or others or stat.S_ISLNK(status.st_mode):
        msg = (
            f"{path} could hold another user's code: it must be yours, writable by you alone and no link "
            f"(chmod go-w {path}), or set POSITIONAL_HEADS_CACHE to another folder"
        )
        raise BuildError(msg)


def _run(command: list[str]) -> str:
    """The output of a command.

    Raises:
        BuildError: If it fails.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        msg = f"the C++ compiler {command[0]} failed ({lines[0] if lines else error}); install a recent g++ or clang++"
        raise BuildError(msg) from error
