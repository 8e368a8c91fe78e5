"""Keep models converted from other files in the user's cache: complete, checked at each use, and converted once.

A kept model is a folder in `transformers` format, named by the hash of the file that it was made from. It is written
beside its place and moved there, and lists the hash of each of its files.
"""

import atexit
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from positional_heads.core.user_cache import user_cache

logger = logging.getLogger(__name__)

RECORD = "kept.json"
"""Name of the list of a kept model's files."""
FORM = 1
"""Raised when conversion changes, so that earlier results are made again."""
CONVERTERS = ("positional-heads", "transformers", "gguf", "torch")
_UNKEPT: dict[str, Path] = {}
"""Folders of this process, by the hash of their source, where the cache could not be written."""

Write = Callable[[Path], None]


def file_hash(file: Path) -> str:
    """The sha256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def kept_folder(source_hash: str) -> Path:
    """Where the model made from a file of this hash is kept, whether it is there or not."""
    return user_cache("models") / f"{source_hash[:32]}-{FORM}"


def kept_model(source_hash: str) -> Path | None:
    """The kept model made from a file of this hash, if it is there and whole; a damaged one is reported."""
    folder = kept_folder(source_hash)
    if not folder.is_dir():
        return None
    damage = _damage(folder, source_hash)
    if damage is not None:
        logger.warning("%s: the kept model is damaged (%s)", folder, damage)
        return None
    return folder


def made_once(source_hash: str, name: str, size: int, write: Write) -> Path:
    """The kept model made from a file of this hash, made if it is not there.

    Without a place to keep it, it is made in a temporary folder, which is removed when the process ends.

    Args:
        source_hash: The file's sha256.
        name: What is converted, for messages.
        size: Bytes that the model will take.
        write: Writes the model to an empty folder.

    Raises:
        OSError: If there is no room for it anywhere.
    """
    from filelock import FileLock

    folder = kept_folder(source_hash)
    if found := kept_model(source_hash) or _UNKEPT.get(source_hash):
        return found
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        return _made_unkept(source_hash, name, size, write, str(error))
    try:
        if found := kept_model(source_hash):  # another process made it meanwhile
            return found
        if (free := shutil.disk_usage(folder.parent).free) < size:
            return _made_unkept(source_hash, name, size, write, f"{free / 1e9:.1f} GB are free there")
        logger.warning("%s: converted once, and kept in %s (%.1f GB)", name, folder, size / 1e9)
        return _made(folder, source_hash, write)
    finally:
        lock.release()


def _made(folder: Path, source_hash: str, write: Write) -> Path:
    """Make a model beside its place, and move it there; what a killed process left is removed."""
    partial = folder.with_name(f".{folder.name}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(mode=0o700)
    try:
        _write_recorded(partial, source_hash, write)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _made_unkept(source_hash: str, name: str, size: int, write: Write, reason: str) -> Path:
    """Make a model for this process alone."""
    parent = Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(parent).free) < size:
        msg = (
            f"{name}: takes {size / 1e9:.1f} GB as a plain model, and cannot be kept in {user_cache('models')} "
            f"({reason}) nor in {parent} ({free / 1e9:.1f} GB free): set POSITIONAL_HEADS_CACHE to a folder with room"
        )
        raise OSError(msg)
    logger.warning(
        "%s: converted for this process only, because it cannot be kept in %s (%s): POSITIONAL_HEADS_CACHE names "
        "another folder",
        name,
        user_cache("models"),
        reason,
    )
    folder = Path(tempfile.mkdtemp(prefix="positional_heads-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(folder)
    _UNKEPT[source_hash] = folder
    return folder


def _write_recorded(folder: Path, source_hash: str, write: Write) -> None:
    write(folder)
    files = {file.name: [file.stat().st_size, file_hash(file)] for file in sorted(folder.iterdir())}
    versions = {package: version(package) for package in CONVERTERS}
    record = {"source_sha256": source_hash, "files": files, "versions": versions}
    (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _damage(folder: Path, source_hash: str) -> str | None:
    """What is wrong with a kept model; None if nothing is."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["source_sha256"] != source_hash:
            return "it was made from another file"
        for name, (size, sha256) in record["files"].items():
            if (folder / name).stat().st_size != size:
                return f"{name} has another size"
            if file_hash(folder / name) != sha256:
                return f"{name} has another content"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
