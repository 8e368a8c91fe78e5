"""How is a file written so that it is either whole or not there? Beside its place first, then moved."""

import os
import tempfile
from pathlib import Path


def write_atomically(file: Path, content: bytes | str) -> None:
    """Write a file whole or not at all, also when interrupted or when the disk is full.

    Raises:
        OSError: If the folder cannot be written; nothing is left behind.
    """
    content = content.encode() if isinstance(content, str) else content
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
