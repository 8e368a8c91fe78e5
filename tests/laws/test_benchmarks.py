"""The benchmarks run, at toy size, and say what their numbers mean."""

import json
import time

import pytest

from benchmarks import gpu, real
from benchmarks.device import Device, TimeLimit
from benchmarks.profiling import KERNEL, MODEL, PACKAGE, seconds_by_part, told
from benchmarks.real_table import EXACT, FORWARD, merged, over
from benchmarks.timing import Seconds
from positional_heads.zoo.bundled import MODEL_FOLDER


@pytest.fixture
def command(monkeypatch, tmp_path):
    def run(benchmark, *arguments):
        monkeypatch.setattr("sys.argv", ["benchmark", *arguments, "--toy", "--results", str(tmp_path)])
        benchmark.main()
        name = benchmark.__name__.split(".")[1]
        return (tmp_path / f"{name}.md").read_text(), json.loads((tmp_path / f"{name}.json").read_text())

    return run


def test_a_real_model_is_timed_beside_the_forward_pass(command):
    said, numbers = command(real, "--model", str(MODEL_FOLDER), "--rows", "four,study")
    rows = {row["name"]: row for row in numbers["groups"]["four"]}
    assert rows[FORWARD]["measured"] == "1.00"
    assert rows[EXACT]["sequences"] == 4
    assert "| 3.5 | 2.2 |" not in said  # these marks are of one sequence a call
    assert "| 0.9 | 0.5 |" in said  # and these of the study
    assert "6 answers" in said


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_without_one(command):
    said, numbers = command(gpu, "--device", "cpu")
    assert {row["kernel"].split(",")[0] for row in numbers["kernels"]} == {"eager", "compiled"}
    assert len(numbers["scoring"]) == 24
    assert all(case.startswith("triton, 16 pairs: the triton kernel") for case in numbers["left out"])
    assert "differ by 0 in rho" in said


def test_ratios_are_taken_within_rounds_and_shared_by_parts():
    row = over(
        Seconds(cpu=[4.0, 9.0, 4.0], wall=[8.0, 90.0, 8.0]), Seconds(cpu=[1.0, 3.0, 2.0], wall=[2.0, 30.0, 1.0]), 2
    )
    assert row == {"seconds": 4.0, "measured": "2.00", "cpu": "1.50"}


def test_earlier_groups_are_kept_only_for_the_same_model_and_setting(tmp_path):
    (tmp_path / "real.json").write_text(json.dumps({"setting": {"model": "a"}, "groups": {"long": [1], "one": [2]}}))
    assert merged({"one": [3]}, {"model": "a"}, tmp_path) == {"long": [1], "one": [3]}
    assert merged({"one": [3]}, {"model": "b"}, tmp_path) == {"one": [3]}


def test_time_counts_for_the_innermost_of_model_kernel_and_file():
    def nap(file, inner=None):
        source = "def nap():\n    time.sleep(0.05)\n    inner and inner()\n    time.sleep(0.05)"
        found = {"time": time, "inner": inner}
        exec(compile(source, str(PACKAGE.parent / file), "exec"), found)
        return found["nap"]

    kernel = nap("positional_heads/core/kernels/eager.py", nap("torch/functional.py"))
    model = nap("transformers/models/llama/modeling_llama.py", nap("positional_heads/bridge/capture.py", kernel))
    spent = seconds_by_part(model)
    assert spent[MODEL] == pytest.approx(0.1, abs=0.04)
    assert spent[KERNEL] == pytest.approx(0.2, abs=0.04)
    assert spent["bridge/capture.py"] == pytest.approx(0.1, abs=0.04)
    assert told({MODEL: 1.0, KERNEL: 2.0, "core/plan.py": 1.0}) == (
        "4.00 s: model 25%, kernel 50%, rest 25% (core/plan.py 1.00 s)"
    )


def test_the_verdict_says_which_kernels_reach_half_of_the_limit():
    names = ("compiled, 32 pairs, all entries", "triton, 32 pairs, all entries", "triton, 32 pairs, listed entries")
    rows = [{"kernel": name, "terms": terms} for name, terms in zip(names, (3.0, 4.0, 9.0), strict=True)]
    assert gpu.verdict(rows, 8.0) == (
        "compiled reaches 38% of the limit of 8 exponentials per second, less than half of it; "
        "triton reaches 50% of the limit of 8 exponentials per second, half of it or more."
    )
    assert "less than half" in gpu.verdict(rows[1:], 8.1)
    assert "no verdict" in gpu.verdict(rows, None)


def test_work_that_would_end_too_late_is_left_out_and_said():
    limit = TimeLimit(1)
    assert limit.allows("short", 59)
    assert not limit.allows("long", 61)
    assert limit.dropped == ["long: about 61 s, 60 s were left"]
    assert "- long: about 61 s" in gpu.text(Device("cpu"), "", [], [], limit)
