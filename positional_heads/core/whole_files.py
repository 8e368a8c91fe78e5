"""Files that are whole or absent: each is written beside its place, and moved there.

A writer holds a lock on what it is writing, and a dead one holds none: so the next write of the same file knows what to
clear away.
"""

import glob
import os
import tempfile
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_RANDOM = "????????"
"""What `mkstemp` puts into a name."""


def write_atomically(file: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a complete file or none, even when interrupted or when the disk is full.

    Args:
        file: The file; its folder is made if missing.
        content: Everything in it.
        mode: Its permissions.

    Raises:
        OSError: If the folder cannot be written, or is a file; no partial file is left.
    """
    content = content.encode() if isinstance(content, str) else content
    for folder in file.parents:
        if folder.exists() and not folder.is_dir():
            msg = f"{folder}: is a file, and {file.name} goes into a folder of this name: name another folder"
            raise NotADirectoryError(msg)
    file.parent.mkdir(parents=True, exist_ok=True)
    _clear_left_behind(file)
    handle, temporary = _locked_beside(file)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            if fcntl is None:  # Windows, which moves no open file
                stream.close()
            temporary.chmod(mode)
            temporary.replace(file)  # still locked: no other process takes it for a dead one's
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _clear_left_behind(file: Path) -> None:
    """Delete what killed processes had written of a file, and nothing that another is writing now.

    Where there are no locks nobody can tell, and all of it stays.
    """
    if fcntl is None:
        return
    for left in file.parent.glob(f".{glob.escape(file.name)}.{_RANDOM}.partial"):
        with suppress(OSError), left.open("r+b") as stream:  # it is gone, locked, or another user's
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)


def _locked_beside(file: Path) -> tuple[int, Path]:
    """A new file in the same folder, open and locked: only within one file system can a file be moved atomically."""
    while True:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):
            return handle, Path(name)
        os.close(handle)  # another process found it before it was locked, and cleared it away
