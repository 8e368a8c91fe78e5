"""What tests of views share: pictures that are read and not drawn."""

import pytest
from matplotlib.text import Text

from positional_heads.views.report import sections


@pytest.fixture
def undrawn(monkeypatch):
    """What pictures say, which are not drawn, because that takes most of the time of a page."""
    said = []

    def read(figure, **_):
        said.append(" ".join(text.get_text() for text in figure.findobj(Text)))
        return b"<svg/>"

    monkeypatch.setattr(sections, "themed_svg", read)
    monkeypatch.setattr(sections, "narrowed", lambda figure: figure)
    return said
