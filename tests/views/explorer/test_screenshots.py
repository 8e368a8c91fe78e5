"""The states of the explorer that the gallery shows are to be had, differ, and are small."""

import io

import pytest
from PIL import Image

from positional_heads.views.explorer.page import explorer_html
from tests.support.screenshots import MOST_BYTES, STATES, screenshots
from tests.support.synthetic_examples import synthetic_examples
from tests.views.explorer.test_panels import document


@pytest.mark.slow
def test_ten_states_can_be_taken_and_are_small(browser, tmp_path):
    made = document(*(synthetic_examples(pairs=8, seed=seed) for seed in range(2)))
    file = tmp_path / "explorer.html"
    file.write_text(explorer_html(made), encoding="utf-8")
    taken = dict(screenshots(browser, file, ("L0H0", "L0H1")))
    assert len(taken) == len(set(taken.values())) == len(STATES) == 10
    for state, png in taken.items():
        image = Image.open(io.BytesIO(png))
        assert len(png) < MOST_BYTES
        assert image.width <= state.width
        assert image.width == state.width or state.part
        assert (image.convert("L").resize((1, 1)).getpixel((0, 0)) < 128) == (state.scheme == "dark")
