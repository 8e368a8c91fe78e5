"""Pictures that are read and not drawn, which takes most of the time of a page or command; tests of views draw."""

from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text


def leave_undrawn(patch: pytest.MonkeyPatch) -> list[str]:
    """Write pictures without drawing them; returns what each says, as they are written."""
    from positional_heads.views.report import sections

    said: list[str] = []

    def write(figure: Figure, file: Any, **options: Any) -> None:
        said.append(" ".join(text.get_text() for text in figure.findobj(Text)))
        file.write(b"" if options["format"] == "png" else "<svg><defs></defs></svg>")

    patch.setattr(Figure, "savefig", write)
    patch.setattr(sections, "narrowed", lambda figure: figure)
    return said
