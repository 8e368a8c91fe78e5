"""What the documentation shows runs, in the order in which a reader meets it."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in DOCS.glob("*.md")}


# the harness and the libraries under it, on which we have no influence
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks])
def test_its_code_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    if any("positional_heads.studies.tasks.harness" in block for block in PAGES[page]):
        pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
    namespace: dict[str, object] = {}
    for number, block in enumerate(PAGES[page]):
        exec(compile(block, f"{page} block {number}", "exec"), namespace)
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_its_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text()):
        assert target.startswith("https://") or (DOCS / target).exists(), target
