"""The code of the documentation runs, its links lead somewhere, and its terms are defined once."""

import json
import re
from pathlib import Path

import pytest

import positional_heads as ph
from tests.support.screenshots import MOST_BYTES

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in DOCS.glob("*.md")}


def write_few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """RULER writes 500 documents, whatever the limit, and for their words pairs each adjective with each noun."""
    import wonderwords

    class FewWords(wonderwords.RandomWord):
        def __init__(self) -> None:
            super().__init__()
            self._categories = {kind: list(words)[:99] for kind, words in self._categories.items()}

    with monkeypatch.context() as patch:
        patch.setattr(wonderwords, "RandomWord", FewWords)
        from lm_eval.tasks.ruler import prepare_niah

    write = prepare_niah.generate_samples
    monkeypatch.setattr(
        prepare_niah, "generate_samples", lambda *given, **named: write(*given, **named | {"num_samples": 2})
    )


# the harness and the libraries under it, on which we have no influence
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks])
@pytest.mark.usefixtures("no_retrieval")
def test_code_on_every_page_runs(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if any("positional_heads.studies.tasks.harness" in block for block in PAGES[page]):
        pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
        write_few_documents(monkeypatch)
    namespace: dict[str, object] = {}
    for number, block in enumerate(PAGES[page]):
        exec(compile(block, f"{page} block {number}", "exec"), namespace)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_on_every_page_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text()):
        made = target.startswith(("notebooks/", "commands/"))  # with the site, whose strict build checks them
        assert made or target.startswith("https://") or (DOCS / target).exists(), target


def test_the_gallery_shows_each_thing_that_can_be_drawn_and_no_picture_is_large_or_unused() -> None:
    rows = re.findall(r"^\| !\[[^\]]+\]\(([^)]+)\) \| (.+) \|$", (DOCS / "gallery.md").read_text(), flags=re.MULTILINE)
    drawn = {name for _, text in rows for name in re.findall(r"`ph\.views\.(\w+)\(", text)}
    assert drawn == {name for name in ph.views.__all__ if name not in {"View", "Explorer"}}
    text = "\n".join((DOCS / name).read_text() for name in PAGES)
    for file in (DOCS / "pictures").iterdir():
        assert f"(pictures/{file.name})" in text
        assert file.stat().st_size < MOST_BYTES, file
    for picture, _ in rows:
        if picture.startswith("notebooks/"):  # the picture of the cell that makes it, not of another one
            stem, number = picture.removeprefix("notebooks/").removesuffix(".png").rsplit("_", 1)
            (named,) = [_ for shown, _ in rows if shown == picture]
            (view,) = re.findall(r"`ph\.views\.(\w+)\(", named)[:1]
            assert f"ph.views.{view}(" in pictured(stem)[int(number) - 1]


def pictured(stem: str) -> list[str]:
    """The code of each cell of a notebook that left a picture, once for each picture."""
    notebook = json.loads((DOCS.parent / "notebooks" / f"{stem}.ipynb").read_text())
    return [
        "".join(cell["source"])
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def test_a_term_is_defined_once_and_used_on_another_page() -> None:
    concepts = (DOCS / "concepts.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", concepts.split("## Terms")[1], flags=re.MULTILINE)
    terms = [term.strip() for row in rows[2:] for term in row.split(",")]
    assert len(terms) == len(set(terms))
    assert set(terms) >= {"allocation", "reach", "unit", "geometry", "null", "excess", "saturation", "set of heads"}
    others = "\n".join((DOCS / name).read_text() for name in PAGES if name != "concepts.md")
    unused = [term for term in terms if not re.search(rf"\b{term}s?\b", others.replace("\n", " "), re.IGNORECASE)]
    assert unused == []
