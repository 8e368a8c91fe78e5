"""Pages inside a notebook: compressed, under the page's own policy, and a picture where nothing may run."""

import re
from html import escape

import numpy as np
import pytest

from positional_heads.views.explorer.explorer import Explorer
from positional_heads.views.explorer.picture import atlas_picture
from positional_heads.views.frame import frame
from positional_heads.views.page import render
from tests.support.synthetic_explorer import synthetic_document

DOCUMENT = synthetic_document()


def measure_shown_first():
    return next(one for one in DOCUMENT["measures"] if one["id"] == DOCUMENT["rank_by"])


@pytest.mark.slow
def test_an_explorer_in_a_notebook_works_in_its_frame_and_is_small(opened):
    shown = Explorer(DOCUMENT)._repr_mimebundle_()
    assert len(shown["text/html"]) < len(escape(Explorer(DOCUMENT).html)) / 1.8
    page = opened("<!DOCTYPE html><meta charset='utf-8'>" + shown["text/html"])
    inside = page.frame_locator("iframe")
    inside.locator("#atlas-chart .layer_0_marks path").nth(5).click()
    inside.locator("#sentence", has_text=DOCUMENT["heads"][5]).wait_for()
    assert inside.locator("#sentence").inner_text() == DOCUMENT["sentences"][5]
    assert not page.locator(".positional-heads-still").is_visible()


@pytest.mark.slow
def test_a_host_that_runs_nothing_shows_the_picture(opened):
    html = Explorer(DOCUMENT)._repr_html_()
    still = re.sub(r"<style>.*?</style>|<iframe.*?</iframe>", "", html, flags=re.DOTALL)
    page = opened("<!DOCTYPE html><meta charset='utf-8'>" + still)
    assert page.locator("img").evaluate("image => image.naturalWidth") > 200
    assert page.locator("img").get_attribute("alt") == DOCUMENT["title"]
    assert "not" in page.locator("p").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [["window.ours = 1"], []])
def test_what_is_unpacked_keeps_its_policy(opened, scripts):
    html = render("page.html", interactive=False, own_scripts=scripts)
    foreign = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><p id='end'></p>"
    page = opened(frame(html.replace("</body>", f"{foreign}</body>"), "a title", 300), quiet=False)
    page.frame_locator("iframe").locator("#end").wait_for(state="attached")
    (inside,) = page.main_frame.child_frames
    assert inside.evaluate("() => window.pwned ?? null") is None
    assert inside.evaluate("() => window.ours ?? null") == (1 if scripts else None)


def test_the_picture_has_the_numbers_and_the_colours_of_the_atlas():
    picture = atlas_picture(DOCUMENT)
    panel = picture.axes[0]
    (image,) = panel.images
    drawn = np.ma.filled(image.get_array().astype(float), np.nan)
    expected = [np.nan if value is None else value for value in measure_shown_first()["values"]]
    np.testing.assert_array_equal(drawn.ravel(), expected)
    assert drawn.shape == (DOCUMENT["model"]["layers"], DOCUMENT["model"]["heads"])
    assert image.get_clim() == (measure_shown_first()["low"], measure_shown_first()["high"])
    red, blue = image.cmap(0.9), image.cmap(0.1)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    best = DOCUMENT["heads"][int(np.nanargmax(expected))]
    assert f"highest: {best}" in panel.get_title()
    assert Explorer(DOCUMENT)._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_an_explorer_without_a_measure_has_no_picture():
    shown = Explorer(DOCUMENT | {"rank_by": None, "measures": []})._repr_mimebundle_()
    assert "image/png" not in shown
    assert "<img" not in shown["text/html"]
