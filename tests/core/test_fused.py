"""The Triton kernel, without a GPU: in Triton's interpreter, and compiled for a device that is not there.

Both in processes of their own, because Triton decides when it is imported whether it interprets.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")


def run(*command, **environment):
    changed = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=changed, check=False)


def test_in_tritons_interpreter_it_counts_as_defined():
    tests = Path(__file__).with_name("interpreted_fused.py")
    # without what other tests need, whose import takes seconds
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(tests), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from positional_heads.core.kernels.fused_block import add_entries

KINDS = dict.fromkeys(("query", "key", "low", "scale", "edges"), "*fp32") | {"starts": "*i16"}
KINDS |= dict.fromkeys(("places", "bounded"), "*i32")
KINDS |= dict.fromkeys(("ranks", "rows", "dimension_sums", "found"), "*i64")
for listed in (False, True):
    fixed = {"channel": 1} if listed else {"query_list": None, "key_list": None, "pos_stride": 1}
    kinds = KINDS | dict.fromkeys(fixed, "constexpr") | ({"query_list": "*i64", "key_list": "*i64"} if listed else {})
    names = add_entries.arg_names
    strides = ("head_stride", "pair_stride", "channel")
    whole = [name for name in names if kinds.get(name, "")[:1] == "*" or name in strides]
    source = ASTSource(
        add_entries,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in fixed.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in whole if name not in fixed},
    )
    options = {"num_warps": 1, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    print(len(made["cubin"]), made["ptx"].count("ld.global.v4"))
"""


@pytest.mark.slow
def test_it_compiles_for_a_gpu_and_loads_four_keys_at_a_time(tmp_path):
    done = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (size, vectors), (size_of_listed, _) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert min(size, size_of_listed) > 1000
    assert vectors >= 6  # two channels in each of three loops over rotary pairs
