"""The front door is small and light; every import between rooms points to a lower floor, and there is no circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import positional_heads as ph

ROOT = Path(ph.__file__).parent
FLOOR = {
    "core": 1,
    "results": 2,
    "bridge": 2,
    "zoo": 3,
    "views": 4,
    "scoring": 4,
    "studies": 5,
    "cli": 6,
    "front door": 7,
    "__main__": 8,
}
"""A room may import itself and lower floors only: `results` and `bridge` never meet, nor do `views` and `scoring`."""
MAY_IMPORT = {
    "core": {"torch", "einops", "jaxtyping", "scipy", "numpy"},
    "results": {"torch", "jaxtyping", "scipy", "numpy", "safetensors"},
}
MAY_IMPORT_LATE = {"core": {"accelerate"}, "results": {"pandas"}}
"""What a room that knows no model may import at the top of a file, and what inside functions only."""
ONLY_IF_INSTALLED = {"fused_block": "triton", "fused": "positional_heads.core.kernels.fused_block"}
"""Modules of the core that need more, and are imported inside functions only, or by each other."""
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
            found |= {
                full if (full := f"{node.module}.{alias.name}") in MODULES else str(node.module) for alias in node.names
            }
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "front door"


def test_every_public_name_loads_and_they_are_few():
    assert len(ph.__all__) <= 77
    assert all(
        getattr(ph, name).__module__.startswith("positional_heads.")
        for name in ph.__all__
        if name not in {"views", "formats"}
    )
    assert set(ph.__all__) <= set(dir(ph))
    with pytest.raises(AttributeError, match="scores_head"):
        ph.scores_head  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, positional_heads, positional_heads.cli; print({'torch', 'transformer_lens'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_house_has_eight_rooms():
    entries = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name != "__pycache__"}
    assert entries == {*FLOOR} - {"front door"} | {"__init__", "__init__.pyi", "py.typed"}


def test_arrows_point_down():
    arrows = {
        (module, other)
        for module, file in MODULES.items()
        for other in imports(file)
        if other.split(".")[0] == "positional_heads" and room(other) != room(module)
    }
    assert len(arrows) > 200
    assert [(a, b) for a, b in sorted(arrows) if FLOOR[room(b)] >= FLOOR[room(a)]] == []


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_rooms_without_a_model_need_no_host(name):
    for module in (module for module in MODULES if room(module) == name):
        for late, allowed in ((False, MAY_IMPORT[name]), (True, MAY_IMPORT[name] | MAY_IMPORT_LATE[name])):
            needs = imports(MODULES[module], late=late)
            own = ONLY_IF_INSTALLED.get(module.split(".")[-1], module)
            needs = {needed for needed in needs if needed != own and needed.split(".")[0] != own}
            assert late or not any(needed.split(".")[-1] in ONLY_IF_INSTALLED for needed in needs), module
            outside = {needed.split(".")[0] for needed in needs}
            assert outside - set(sys.stdlib_module_names) - {"positional_heads"} <= allowed, module


def test_there_are_no_import_cycles():
    graph = {module: imports(file) & set(MODULES) for module, file in MODULES.items()}
    while leaves := [module for module, needs in graph.items() if not needs & set(graph)]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph


def test_a_module_states_what_it_does():
    for module, file in MODULES.items():
        first, *_ = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines() or [""]
        assert first, module
        assert "?" not in first, f"{module}: {first}"
