"""The stored notebooks were run from top to bottom, and their outputs hold nothing of one machine.

That they run, with every assertion in them, is tested by nbmake: `python -m pytest --nbmake notebooks`.
"""

import ast
import copy
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = (
    "1_quickstart.ipynb",
    "2_the_method_by_hand.ipynb",
    "3_ablation_study.ipynb",
    "4_length_extrapolation.ipynb",
    "5_with_other_analyses.ipynb",
    "6_research_session.ipynb",
    "7_what_is_this_head.ipynb",
    "8_move_the_dimensions.ipynb",
    "9_heads_in_training.ipynb",
    "10_what_training_changes.ipynb",
    "11_other_encodings.ipynb",
    "12_base_and_jump.ipynb",
)
MOST_BYTES = 500_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.<])/(?:home|root|tmp|usr|opt|var|mnt|work|Users|private)/|[A-Z]:\\|site-packages")
FROM_OUTSIDE = re.compile(r"<script|<link|<iframe|\bsrc\s*=\s*[\"']?(?:https?:)?//", re.IGNORECASE)
SECONDS = re.compile(r"\d\s?it/s|\d+:\d\d<|Wall time|CPU times", re.IGNORECASE)


def load(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def markdown(notebook):
    return "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def must_show(cell):
    """Whether running the cell leaves something to see: it prints, draws, or ends in an expression with a value."""
    tree = ast.parse(source(cell))
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    on_error = {id(inner) for handler in handlers for inner in ast.walk(handler)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in on_error]
    shows = any(ast.unparse(node.func) in {"print", "plt.subplots"} for node in calls)
    return shows or (isinstance(tree.body[-1], ast.Expr) and not source(cell).rstrip().endswith(";"))


def output_texts(notebook):
    """Every stored text, pictures left out."""
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            yield "".join(output.get("text", ""))
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield "".join(data)


def faults(notebook):
    """What is wrong with a notebook, in words."""
    cells = code_cells(notebook)
    found = []
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not run once from top to bottom")
    if any(must_show(cell) != bool(cell["outputs"]) for cell in cells):
        found.append("an output is missing, or one is too many")
    outputs = [output for cell in cells for output in cell["outputs"]]
    if any(output["output_type"] == "error" for output in outputs):
        found.append("an error is kept")
    if any(output.get("name") == "stderr" for output in outputs):
        found.append("a warning or progress bar is kept")
    for name, pattern in (("a path", ABSOLUTE_PATH), ("something from outside", FROM_OUTSIDE), ("a time", SECONDS)):
        if any(pattern.search(text) for text in output_texts(notebook)):
            found.append(f"{name} is kept")
    if any(cell["metadata"] for cell in cells):
        found.append("a cell has metadata")
    if notebook["metadata"]["kernelspec"]["name"] != "python3" or notebook["metadata"].keys() - {
        "kernelspec",
        "language_info",
    }:
        found.append("another kernel, or metadata of one machine")
    chosen = [source(cell) for cell in cells if source(cell).startswith("MODEL =")]
    if chosen not in (['MODEL = "bundled"'], ['MODEL = "smollm2"']):
        found.append("no single cell MODEL")
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_of_every_notebook_are_clean(name):
    assert faults(load(name)) == []
    assert (FOLDER / name).stat().st_size < MOST_BYTES


def planted(**changes):
    """The first notebook with something changed in its first cell that shows something."""
    notebook = copy.deepcopy(load("1_quickstart.ipynb"))
    cell = next(cell for cell in code_cells(notebook) if cell["outputs"])
    cell.update(changes)
    return notebook


def text_output(text):
    return {"output_type": "stream", "name": "stdout", "text": [text]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"execution_count": 9}, "not run once from top to bottom"),
        ({"outputs": []}, "an output is missing, or one is too many"),
        ({"source": ["x = 1"]}, "an output is missing, or one is too many"),
        ({"outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]}, "an error is kept"),
        (
            {"outputs": [{"output_type": "stream", "name": "stderr", "text": "x"}]},
            "a warning or progress bar is kept",
        ),
        ({"outputs": [text_output("see /home/me/x.py")]}, "a path is kept"),
        ({"outputs": [text_output("C:\\Users\\me")]}, "a path is kept"),
        ({"outputs": [text_output("12 %| 3/9 [00:01<00:02, 3.1it/s]")]}, "a time is kept"),
        (
            {"outputs": [{"output_type": "display_data", "data": {"text/html": "<script src='x.js'>"}}]},
            "something from outside is kept",
        ),
        (
            {"outputs": [{"output_type": "display_data", "data": {"text/html": "<img src='//x.org/y.png'>"}}]},
            "something from outside is kept",
        ),
        ({"metadata": {"execution": {"iopub.status.busy": "2026-01-01"}}}, "a cell has metadata"),
        ({"source": ['MODEL = "gpt2"\nMODEL']}, "no single cell MODEL"),
    ],
)
def test_every_fault_is_found(changes, fault):
    assert faults(planted(**changes)) == [fault]


def test_another_kernel_is_found():
    notebook = load("1_quickstart.ipynb")
    notebook["metadata"]["kernelspec"]["name"] = "my-environment"
    assert faults(notebook) == ["another kernel, or metadata of one machine"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_takes_any_model(name):
    code = "\n".join(source(cell) for cell in code_cells(load(name)))
    assert "ph.load_model(MODEL)" in code
    assert "load_bundled_model()" not in code
    assert "if MODEL == " in code


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_notebook_works_around_progress_bars_or_warnings(name):
    code = "\n".join(source(cell) for cell in code_cells(load(name)))
    assert not re.search(r"TQDM|PROGRESS_BAR|filterwarnings|simplefilter", code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_real_model_that_is_missing_is_replaced_by_the_bundled_one(name):
    code = "\n".join(source(cell) for cell in code_cells(load(name)))
    assert ('MODEL = "smollm2"' in code) == ("except (FileNotFoundError, ImportError) as missing:" in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_view_is_a_picture_that_a_code_host_shows(name):
    shown = [output["data"] for cell in code_cells(load(name)) for output in cell["outputs"] if "data" in output]
    figures = [data for data in shown if re.search("Figure|Picture|View|Explorer", "".join(data["text/plain"]))]
    assert figures or "ph.views" not in json.dumps(load(name))
    assert all("image/png" in data for data in figures)
    assert not any("<iframe" in "".join(data.get("text/html", "")) for data in shown)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_in_every_notebook_exist(name):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", markdown(load(name)))
    assert targets
    for target in targets:
        assert target.startswith("https://arxiv.org/abs/") or (FOLDER / target).exists(), target


def test_the_index_lists_every_notebook():
    listed = re.findall(r"\]\((\w+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    kept = sorted((path.name for path in FOLDER.glob("*.ipynb")), key=lambda name: int(name.split("_")[0]))
    assert listed == kept == list(NOTEBOOKS)
