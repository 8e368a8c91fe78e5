"""A file is written whole or not at all; what killed writers leave is cleared, and what live ones write is not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from positional_heads.core import whole_files
from positional_heads.core.whole_files import _clear_left_behind, write_atomically

pytestmark = pytest.mark.skipif(os.name != "posix", reason="without locks nobody knows who is alive")
DIES = "os.kill(os.getpid(), signal.SIGKILL)"
WAITS = "print(flush=True), sys.stdin.read()"


def writing(file, instead_of_fsync):
    """A process in the middle of a write."""
    code = (
        "import os, signal, sys; from pathlib import Path; from positional_heads.core import whole_files;"
        f"os.fsync = lambda _: ({instead_of_fsync});"
        f"whole_files.write_atomically(Path({str(file)!r}), 'theirs' * 99999)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_what_a_killed_process_was_writing_is_cleared_by_the_next_write_of_that_file(tmp_path):
    file, other = tmp_path / "a[1].st", tmp_path / "a1.st"  # as a pattern, the first name is the second
    for name in (file, other):
        with writing(name, DIES) as process:
            assert process.wait() == -signal.SIGKILL
    left = {one.name[:-17]: one for one in tmp_path.iterdir()}  # but for the random part and .partial
    assert set(left) == {".a[1].st", ".a1.st"}
    mine = tmp_path / ".a[1].st.of_the_user.partial"
    mine.touch()
    write_atomically(file, "ours")
    assert set(tmp_path.iterdir()) == {file, left[".a1.st"], mine}
    assert file.read_text() == "ours"


def test_what_a_live_process_is_writing_survives_another_write_and_both_end_whole(tmp_path):
    file = tmp_path / "a.st"
    with writing(file, WAITS) as process:
        process.stdout.readline()
        (theirs,) = tmp_path.iterdir()
        for _ in range(2):
            write_atomically(file, "ours")
            _clear_left_behind(file)
            assert (file.read_text(), set(tmp_path.iterdir())) == ("ours", {file, theirs})
        process.communicate()
    assert process.returncode == 0
    assert (file.read_text(), list(tmp_path.iterdir())) == ("theirs" * 99999, [file])


@pytest.mark.parametrize("step", ["tempfile.mkstemp", "os.fdopen", "os.fsync", "pathlib.Path.chmod"])
def test_another_process_may_clear_at_any_moment(step, tmp_path, monkeypatch):
    """Also between the making of the file and its lock: then it is taken for a dead one's, and made again."""
    file, owner, name = tmp_path / "a.st", *step.rsplit(".", 1)
    survived, real = [], getattr(sys.modules.get(owner) or Path, name)

    def clear_then(*arguments, **named):
        result = real(*arguments, **named)
        if not survived:
            _clear_left_behind(file)
        survived.append(len(list(tmp_path.iterdir())))
        return result

    monkeypatch.setattr(step, clear_then)
    write_atomically(file, "ours")
    assert survived == ([0, 1] if name == "mkstemp" else [1])
    assert (file.read_text(), list(tmp_path.iterdir())) == ("ours", [file])


@pytest.mark.parametrize("without", ["fcntl", "locks"])
def test_without_locks_a_file_is_written_and_nothing_cleared(without, tmp_path, monkeypatch):
    left = tmp_path / ".a.st.abcdefgh.partial"
    left.touch()

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(whole_files, "fcntl", None) if without == "fcntl" else monkeypatch.setattr(
        "fcntl.flock", refuse
    )
    write_atomically(tmp_path / "a.st", "ours")
    assert ((tmp_path / "a.st").read_text(), set(tmp_path.iterdir())) == ("ours", {tmp_path / "a.st", left})


def test_a_file_in_place_of_a_folder_is_named_and_stays(tmp_path):
    (tmp_path / "taken").write_text("mine")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "new"):
        with pytest.raises(NotADirectoryError, match=r"taken: is a file, and a\.json goes into a folder of this name"):
            write_atomically(folder / "a.json", "{}")
    assert (tmp_path / "taken").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
