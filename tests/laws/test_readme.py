"""The README is short and its links lead somewhere; that its code runs is tested with the real model."""

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_is_short_and_its_links_exist() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 155
    assert text.splitlines().index("```python") < 25
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, heading = target.partition("#")
        assert target.startswith("https://arxiv.org/") or (README.parent / path).exists(), target
        assert not heading or f"\n## {heading}\n" in (README.parent / path).read_text().lower(), target
