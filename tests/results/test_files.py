"""A result file is complete, ours and undamaged, or refused."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import positional_heads as ph
from positional_heads.cli.common import prepared_folder
from positional_heads.results.files import (
    COMPARISON,
    DISTANCE_RESPONSE,
    EMERGENCE,
    EXTRAPOLATION,
    FINISHED_FILE_NAME,
    SCORES,
    STABILITY,
    kind_of,
    write_result,
)
from positional_heads.results.unfinished import finished_line, finished_lines, unfinished
from positional_heads.views.report.folder import write_report
from positional_heads.views.report.page import read_results
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_profile import synthetic_profile


def test_a_path_without_a_suffix_is_a_folder(tmp_path):
    assert synthetic_scores().save(tmp_path / "runs" / "first") == tmp_path / "runs" / "first" / "scores.safetensors"
    assert ph.HeadScores.load(tmp_path / "runs" / "first").verdict == synthetic_scores().verdict


def test_the_file_is_a_plain_safetensors_file(tmp_path):
    scores = synthetic_scores()
    assert torch.equal(load_file(scores.save(tmp_path / "my.safetensors"))["rho"].nan_to_num(), scores.rho.nan_to_num())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    first, second = (synthetic_scores().save(tmp_path / name).read_bytes() for name in ("a.st", "b.st"))
    assert first == second


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    old = synthetic_scores().save(tmp_path)
    before = old.read_bytes()

    def disk_full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(step, disk_full)
        with pytest.raises(OSError, match="No space left"):
            synthetic_scores(seed=1).save(tmp_path)
    assert old.read_bytes() == before
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 3000, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    file = synthetic_scores().save(tmp_path)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ph.ResultFileError, match="truncated"):
        ph.HeadScores.load(file)


def test_a_flipped_bit_in_the_numbers_is_refused(tmp_path):
    file = synthetic_scores().save(tmp_path)
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ph.ResultFileError, match="checksum"):
        ph.HeadScores.load(file)


@pytest.mark.parametrize("bit", [0, 4])
def test_a_flipped_bit_anywhere_in_the_header_is_refused(tmp_path, bit):
    """Names, shapes, the table, the verdict and where things came from: none may change unnoticed."""
    file = synthetic_scores().save(tmp_path)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for place in range(0, 8 + length, 7):
        raw = bytearray(whole)
        raw[place] ^= 1 << bit
        file.write_bytes(raw)
        with pytest.raises(ph.ResultFileError):
            ph.HeadScores.load(file)


def _header(**metadata):
    raw = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(raw)) + raw


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 17) + b'{"__metadata__":1}',
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        _header(positional_heads=3),
        _header(positional_heads="[1]"),
        _header(positional_heads='{"format": "positional_heads.HeadScores", "version": "a"}'),
    ],
    ids=["list", "number", "deep", "content is a number", "content is a list", "version in words"],
)
def test_a_header_of_another_structure_is_no_result(tmp_path, raw):
    file = tmp_path / "scores.safetensors"
    file.write_bytes(raw)
    with pytest.raises(ph.ResultFileError, match="not a result file"):
        ph.HeadScores.load(file)
    assert kind_of(file) in {None, SCORES.label}  # it may be replaced only if it is ours


@pytest.mark.parametrize("lacks", ["tensors", "reasons"])
def test_a_whole_file_that_lacks_something_is_refused(tmp_path, lacks):
    scores = synthetic_scores()
    content = scores._content()
    content.pop("reasons" if lacks == "reasons" else "verdict")
    tensors = {} if lacks == "tensors" else {"rho": scores.rho.contiguous()}
    write_result(tmp_path / "scores.safetensors", save(tensors), content, SCORES)
    with pytest.raises(ph.ResultFileError, match=r"not damaged, but not a positional_heads\.HeadScores as this"):
        ph.HeadScores.load(tmp_path)


def test_what_has_the_name_of_a_result_and_is_none_is_named(tmp_path):
    file = tmp_path / "scores.safetensors"
    file.symlink_to(tmp_path / "gone")
    for read in (ph.HeadScores.load, read_results):
        with pytest.raises(FileNotFoundError, match="a link to a file that is not there"):
            read(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(FileNotFoundError, match="a folder, not a result file; positional-heads score writes one"):
        ph.HeadScores.load(tmp_path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError(13, "Permission denied")

    file = synthetic_scores().save(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(OSError, match=rf"{file}: cannot be read \(Permission denied\); make it readable"):
        ph.HeadScores.load(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda file: file.write_text("notes")])
def test_what_a_result_could_not_replace_is_refused_before_a_run(tmp_path, make):
    make(tmp_path / "scores.safetensors")
    for overwrite in (False, True):
        with (
            pytest.raises(ph.ResultFileError, match=r"is a folder|not a result file"),
            prepared_folder(tmp_path, "scores.safetensors", overwrite),
        ):
            pytest.fail("the run has begun")


def test_a_flipped_bit_in_a_finished_part_is_refused(tmp_path):
    file = tmp_path / FINISHED_FILE_NAME
    lines = [{"ablation": {}}, {"part": "L0H1", "result": {"log_prob": [-1.25, 0.5]}, "seconds": 1.5}]
    file.write_text("".join(map(finished_line, lines)))
    assert finished_lines(file) == lines
    whole = file.read_bytes()
    begin, refused = whole.index(b"\n") + 1, 0
    for place in range(begin, len(whole) - 1):
        raw = bytearray(whole)
        raw[place] ^= 1
        file.write_bytes(raw)
        try:
            (_, part) = finished_lines(file)
        except ph.ResultFileError as error:
            refused += "is damaged; delete" in str(error)
        else:  # it was in the name of the checksum
            assert {name: part[name] for name in lines[1]} == lines[1]
    assert refused == len(whole) - 1 - begin - len("sha256")
    assert "line 2 is damaged; delete that line, so that only its part" in unfinished(tmp_path)


def test_finished_parts_of_an_earlier_version_have_no_checksum(tmp_path):
    file = tmp_path / FINISHED_FILE_NAME
    file.write_text('{"ablation": {}}\n{"part": "none", "result": 1}\n{"part": "L0')
    assert finished_lines(file) == [{"ablation": {}}, {"part": "none", "result": 1}]


@pytest.mark.parametrize(
    ("header", "kind", "resumed"),
    [
        ({"emergence": {}, "task": {}}, EMERGENCE, "positional-heads emerge command, or emergence_study call"),
        ({"data": {}, "settings": {}}, DISTANCE_RESPONSE, "same distance_response call"),
        ({"settings": {}, "trained": 64}, EXTRAPOLATION, "extrapolate command, or extrapolation_study call"),
    ],
)
def test_parts_are_unfinished_until_a_result_lies_beside_them(header, kind, resumed, tmp_path):
    lines, parts = [header, {"decision": {}}, {"part": "one", "result": {}}], tmp_path / "finished.jsonl"
    parts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "unfinished study, 1 of its parts done" in unfinished(tmp_path)
    assert resumed in unfinished(tmp_path)
    result = tmp_path / kind.file_name
    result.touch()
    os.utime(result, ns=(0, parts.stat().st_mtime_ns - 1))  # that of an earlier run
    assert resumed in unfinished(tmp_path)
    os.utime(result, ns=(0, parts.stat().st_mtime_ns + 1))  # calls in Python keep their parts
    assert unfinished(tmp_path) is None


def test_what_belongs_to_a_replaced_result_is_removed(tmp_path, capsys):
    written = {
        "report.html": "<title>Positional Heads: bundled on prose</title>",
        "curves.png": "of the old scores",
        "examples.safetensors": "of the old scores",
        "mine.csv": "mine",
    }

    def write(what):
        synthetic_scores().save(tmp_path)
        for name, content in what.items():
            (tmp_path / name).write_text(content)

    def left(overwrite=True, rewritten="curves.png"):
        with prepared_folder(tmp_path, SCORES.file_name, overwrite):
            write({rewritten: "of the new scores"} if rewritten else {})
        return {file.name for file in tmp_path.iterdir()} - {SCORES.file_name}

    write(written)
    with pytest.raises(KeyboardInterrupt), prepared_folder(tmp_path, SCORES.file_name, True):
        raise KeyboardInterrupt
    with prepared_folder(tmp_path, SCORES.file_name, True):
        pass  # of a run that writes no result, as of a shard
    assert {*written} < {file.name for file in tmp_path.iterdir()}
    assert left() == {"curves.png", "mine.csv"}
    named = ", ".join(str(tmp_path / name) for name in ("report.html", "examples.safetensors"))
    assert f"removed, of the result that was replaced: {named}; positional-heads report" in capsys.readouterr().err
    write({"report.html": "a page of mine"})
    assert left(rewritten=None) == {"report.html", "mine.csv"}
    (tmp_path / SCORES.file_name).unlink()
    (tmp_path / "curves.png").touch()
    assert left(overwrite=False, rewritten=None) == {"report.html", "curves.png", "mine.csv"}  # none was replaced


def test_tables_of_another_kind_of_result_are_not_replaced(tmp_path):
    synthetic_scores().save(tmp_path)
    (tmp_path / "heads.csv").write_text("of the scores")
    with prepared_folder(tmp_path, COMPARISON.file_name, False):
        pass  # shares no table with scores
    refused = pytest.raises(ValueError, match=r"holds scores\.safetensors, whose heads\.csv would be replaced; choose")
    for overwrite in (False, True):
        with refused, prepared_folder(tmp_path, STABILITY.file_name, overwrite):
            pass
    (tmp_path / "heads.csv").unlink()
    with prepared_folder(tmp_path, STABILITY.file_name, False):
        pass


def test_the_tables_of_a_replaced_comparison_do_not_stay(tmp_path):
    profiles, scores = ([make(), make(seed=1)] for make in (synthetic_profile, synthetic_scores))
    for some, overwrite, has in ((profiles, False, True), (scores, True, False)):
        with prepared_folder(tmp_path, COMPARISON.file_name, overwrite):
            write_report(ph.compare(*some), tmp_path)
        assert (tmp_path / "pairs.csv").exists() == has
        assert (tmp_path / "changes.csv").exists()


def test_foreign_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ph.ResultFileError, match=r"not a positional_heads\.HeadScores; positional-heads score writes"):
        ph.HeadScores.load(tmp_path / "other.safetensors")
    (tmp_path / "notes.txt").write_text("In the beginning God created the heaven and the earth.")
    with pytest.raises(ph.ResultFileError, match="not a result file"):
        ph.HeadScores.load(tmp_path / "notes.txt")


def test_a_newer_format_is_refused(tmp_path):
    file = synthetic_scores().save(tmp_path)
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].replace(b'\\"version\\": 1', b'\\"version\\": 9')
    assert json.loads(header)
    file.write_bytes(raw[:8] + header + raw[8 + length :])
    with pytest.raises(ph.ResultFileError, match="format 9, this version reads up to 1: upgrade"):
        ph.HeadScores.load(file)


def test_a_missing_file_is_refused_with_the_command_that_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="positional-heads score writes one"):
        ph.HeadScores.load(tmp_path)


def test_results_are_read_without_torch(tmp_path):
    file = synthetic_scores().save(tmp_path)
    code = (
        "import sys; from positional_heads.results.files import SCORES, read_result; "
        "content, _ = read_result(sys.argv[1], SCORES); "
        "print(len(content['table']), 'torch' in sys.modules, 'transformer_lens' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["12", "False", "False"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        synthetic_scores().save(Path(tmp_path) / "file" / "scores.safetensors")
