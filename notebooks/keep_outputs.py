"""Run the notebooks and save their outputs, without times, progress bars or data of this machine's kernel.

`python notebooks/keep_outputs.py` runs all of them, or those named after it; one with a failing cell is not written.
What a cell writes to stderr, bars and warnings, is shown here and not saved: a notebook needs no cell that silences it.
"""

import os
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS_PER_CELL = 600
WITHOUT_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment of the kernel: with ipywidgets, bars would not go to stderr."""


def keep_outputs(file: Path) -> None:
    """Run a notebook from top to bottom in its own folder, and write it back.

    Raises:
        CellExecutionError: If a cell fails.
        RuntimeError: If the run was interrupted: the client then returns as if all were well.
    """
    notebook = nbformat.read(file, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(file.parent), env=os.environ | WITHOUT_BARS)
    ended = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    if "error" in ended:
        msg = f"{file.name}: the run was interrupted, nothing is written; run it again"
        raise RuntimeError(msg)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _to_stderr(output)]
            for output in cell.outputs:
                _make_small(output)
    nbformat.write(notebook, file)


def _to_stderr(output: nbformat.NotebookNode) -> bool:
    """Whether an output went to stderr; it is then shown."""
    if output.get("name") != "stderr":
        return False
    sys.stderr.write(output.text)
    return True


def _make_small(output: nbformat.NotebookNode) -> None:
    """Keep 256 colours of a picture, on white: a third of the size, and readable on a dark page.

    Of a page that runs in the notebook only its picture is kept.
    """
    picture = output.get("data", {}).get("image/png")
    if picture is None:
        return
    if "<iframe" in output.data.get("text/html", ""):
        del output.data["text/html"]
    image = Image.open(BytesIO(b64decode(picture))).convert("RGBA")
    paper = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    small = BytesIO()
    paper.quantize(256).save(small, "png", optimize=True)
    output.data["image/png"] = b64encode(small.getvalue()).decode() + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(FOLDER.glob("*.ipynb")):
        keep_outputs(Path(name).resolve())
