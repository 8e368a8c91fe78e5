"""What the README shows runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.real_model
@pytest.mark.usefixtures("smollm2_folder")  # skipped where the model is not installed
def test_code_blocks_run_and_print_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert len(blocks) == 3
    assert "of 270 heads beat their null" in capsys.readouterr().out
    assert namespace["run"]["blocks.2.attn.hook_contributions"].shape == (1, 8, 512, 512, 16)


def test_the_readme_is_short_and_its_links_exist() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert text.splitlines().index("```python") < 25
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://arxiv.org/") or (README.parent / target).exists(), target
