"""The front door is small and light, and arrows between the floors point downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import positional_heads as ph

ROOT = Path(ph.__file__).parent
CORE = {
    *("allocation", "bands", "binning", "contributions", "correlation", "distinguishability", "dominance", "effects"),
    *(
        "arguments",
        "files",
        "heads",
        "kernels",
        "pilot",
        "plan",
        "result_files",
        "results",
        "rotary",
        "sampling",
        "statistics",
        "tables",
    ),
    *("score_sums", "shards"),
    *("profiles", "result_html", "token_text"),
}
CORE_MAY_IMPORT = {"torch", "einops", "jaxtyping", "scipy", "numpy", "safetensors"}
CORE_MAY_IMPORT_LATE = {"accelerate", "pandas"}
FRONT_DOOR = {
    *(
        "AblationStudy",
        "AnswerTask",
        "Example",
        "ExtrapolationStudy",
    ),
    *(
        "Head",
        "HeadScores",
        "NullScores",
        "RayExecutor",
        "ResultFileError",
    ),
    *(
        "RotaryLayer",
        "RotaryModel",
        "ScoringSettings",
        "SelfExtendAdvice",
    ),
    *(
        "Task",
        "TaskResult",
        "UnsupportedModelError",
        "ablated_heads",
    ),
    *(
        "ablation_hooks",
        "ablation_study",
        "base_sweep",
        "bundled_steps",
    ),
    *(
        "bundled_text",
        "contribution_hooks",
        "cut_text",
        "dominant_dimension",
    ),
    *(
        "dominant_dimension_cache",
        "evaluate",
        "extended_rope",
        "extrapolation_study",
    ),
    *(
        "injective_range",
        "live_rotary_hooks",
        "load_bundled_model",
        "load_clex",
    ),
    *(
        "pair_contributions",
        "plain_rope",
        "resolve_layers",
        "rope_method",
    ),
    *(
        "score_heads",
        "score_shard",
        "merge_shards",
        "HeadExamples",
        "examples_from_cache",
        "head_examples",
        "load_model",
        "self_extend_advice",
        "told_apart",
        "unrotated_remainder",
    ),
    *("wavelengths",),
    *("ContributionProfile", "contribution_profile"),
}

MODULES = {
    ".".join(("positional_heads", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in ROOT.rglob("*.py")
}


def imports(file: Path, *, late: bool = True) -> set[str]:
    """Every module imported in a file, inside functions only if `late`, but for what only type checkers read."""
    tree = ast.parse(file.read_text())
    unread = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (not late and isinstance(node, ast.FunctionDef))
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def floor(module: str) -> int:
    room = module.split(".")[1] if "." in module else "front door"
    if room in CORE:
        return 1
    return {"host": 2}.get(room, 3)


def test_all_names_are_pinned_and_resolve():
    assert set(ph.__all__) == FRONT_DOOR
    assert len(ph.__all__) == len(FRONT_DOOR)
    assert all(getattr(ph, name).__module__.startswith("positional_heads.") for name in ph.__all__)
    assert set(ph.__all__) <= set(dir(ph))
    with pytest.raises(AttributeError, match="has no attribute 'scores_head'"):
        ph.scores_head  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, positional_heads, positional_heads.cli; print({'torch', 'transformer_lens'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_point_downwards(module):
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] == "positional_heads"}
    assert all(floor(name) <= floor(module) for name in ours), ours


@pytest.mark.parametrize("module", sorted(name for name in MODULES if floor(name) == 1))
def test_the_core_needs_no_host(module):
    for late, allowed in ((False, CORE_MAY_IMPORT), (True, CORE_MAY_IMPORT | CORE_MAY_IMPORT_LATE)):
        outside = {name.split(".")[0] for name in imports(MODULES[module], late=late)}
        assert outside - set(sys.stdlib_module_names) - {"positional_heads"} <= allowed


def test_views_read_results_and_no_hooks():
    for module in (name for name in MODULES if ".views" in name):
        assert not any("host" in name or "transformer_lens" in name for name in imports(MODULES[module]))


def test_there_are_no_import_cycles():
    graph = {module: imports(file) & set(MODULES) for module, file in MODULES.items()}
    while leaves := [module for module, needs in graph.items() if not needs & set(graph)]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph
