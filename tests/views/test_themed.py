"""Pictures of the report follow the reader's scheme, hide nothing on a narrow screen, and are the same each time."""

import base64
import io
import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from matplotlib.text import Text

import positional_heads as ph
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.views import allocation_curves, rho_distribution, rho_heat_map
from positional_heads.views.figures import DIVERGING, SEQUENTIAL, Picture, token_count
from positional_heads.views.report.page import report_html
from positional_heads.views.themed import DARK_SCALES, NARROW, dark_partner, narrowed, themed_svg
from tests.support.synthetic import synthetic_scores


def brightness(colour):
    """Luminance of an sRGB colour, by the standard's own weights; 0 is black, 1 is white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_of_a_picture_has_a_partner_that_can_be_seen_on_dark_paper():
    svg = themed_svg(rho_distribution(synthetic_scores())).decode()
    light, dark = (dict(re.findall(r"--(c[0-9a-f]{6}):(#[0-9a-f]{6})", part)) for part in svg.split("@media", 1))
    assert light.keys() == dark.keys()
    assert {"#0072b2", "#000000", "#ffffff"} <= {*light.values()}
    used = set(re.findall(r"var\(--(c[0-9a-f]{6})\)", svg))
    assert used == {*light}
    assert not re.findall(r"(?:fill|stroke): ?#", svg)  # no colour is the same in both schemes unawares
    paper = brightness(dark["cffffff"])
    assert paper < 0.02
    for lines in ("c000000", "c0072b2", "cd55e00"):
        assert (brightness(dark[lines]) + 0.05) / (paper + 0.05) > 4.5, lines  # WCAG's contrast of text
    assert dark_partner("#123456") == "#123456"


@pytest.mark.parametrize("name", [DIVERGING, SEQUENTIAL])
def test_cells_are_kept_for_each_scheme(name):
    figure = Picture(figsize=(2, 2))
    values = np.linspace(-1, 1, 5)[None]
    figure.subplots().imshow(values, cmap=name, vmin=-1, vmax=1, interpolation="none")
    images = re.findall(r"base64,\s*([^\"]+)", themed_svg(figure).decode())
    day, night = (imread(io.BytesIO(base64.b64decode(one)))[..., :3] for one in images)
    np.testing.assert_allclose(day[0], mpl.colormaps[name](np.linspace(0, 1, 5))[:, :3], atol=0.01)
    stops = [mpl.colors.to_rgb(colour) for colour in DARK_SCALES[name]]
    np.testing.assert_allclose(night[0][[0, 2, 4]], [stops[0], stops[len(stops) // 2], stops[-1]], atol=0.03)
    least = 2 if name == DIVERGING else 0
    assert brightness(night[0][least]) < 0.03
    assert brightness(night[0][-1]) > 0.4


def test_equal_figures_have_equal_bytes_that_run_and_fetch_nothing():
    name = "</style><script>window.pwned=1</script>"
    first, second = (themed_svg(rho_heat_map(synthetic_scores(name=name))) for _ in range(2))
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"svg", "style", "defs", "g", "path", "use", "clipPath", "rect", "image"}
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on")
            assert "href" not in key or value.startswith(("#", "data:image/png;base64,"))
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len({*names})
    referred = {name.decode() for name in re.findall(rb'[("]#([^")]+)', first)}
    assert referred == {*names}


def three_curves(scores):
    return allocation_curves(scores, ["L0H0", "L0H3", "L1H1"])


@pytest.mark.parametrize("draw", [rho_heat_map, rho_distribution, three_curves])
def test_a_narrow_layout_shows_every_panel_and_cuts_nothing(draw):
    figure = draw(synthetic_scores())
    texts = {text.get_text().split("\n")[0] for text in figure.findobj(Text) if text.get_text()}
    panels = [axes for axes in figure.axes if axes.get_visible() and axes.get_subplotspec() is not None]
    figure.draw_without_rendering()
    figure = narrowed(figure)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == NARROW
    assert panels == [axes for axes in figure.axes if axes.get_subplotspec() is not None]
    boxes = [axes.get_window_extent() for axes in panels]
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.width > 50 for box in boxes)
    left = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
    assert all(text in left for text in texts if len(text) > 6)


def test_ticks_of_many_heads_do_not_touch_in_a_narrow_layout():
    many = torch.rand(4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_layer = {"pair_counts": torch.ones(4, 5, dtype=torch.long), "frequencies": torch.ones(4, 4)}
    per_head = {"rho": many, "rho_curve": many, "bound": many, "curve": torch.ones(4, 64, 5)}
    figure = rho_heat_map(replace(synthetic_scores(null=False, bootstrap=False), **per_layer, **per_head))
    figure.draw_without_rendering()
    figure = narrowed(figure)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) > 4
    assert all(one.x1 + 2 < other.x0 for one, other in pairwise(boxes))


def test_the_axis_of_wavelengths_is_that_of_the_rotation_in_use(bundled):
    """By hand: a wavelength of the bundled model is 2 pi 10000 ** (2 pair / 32), and twice that under linear by 2."""
    tokens = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    for factor in (1, 2):
        with extended_rope(bundled, "linear", factor=factor):
            scores = ph.score_heads(bundled, tokens, layers=[1], null_repeats=0)
        panel = allocation_curves(scores, ["L1H0"]).axes[0]
        (right,) = panel.child_axes
        labels = [right.yaxis.get_major_formatter()(pair) for pair in (0, 3, 15)]
        by_hand = [factor * 2 * np.pi * 10000 ** (2 * pair / 32) for pair in (0, 3, 15)]
        assert labels == [token_count(tokens) for tokens in by_hand]


@pytest.mark.slow
def test_no_picture_is_white_in_the_dark_and_none_is_dark_in_the_light(opened, tmp_path):
    synthetic_scores().save(tmp_path)
    html = report_html(tmp_path)
    for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 390)):
        page = opened(html, scheme=scheme, width=width)
        pictures = page.locator(".plot img").all()
        assert len(pictures) == 3
        for one in pictures:
            one.scroll_into_view_if_needed()
            shown = imread(io.BytesIO(one.screenshot()), format="png")[..., :3]
            assert shown.mean() < 0.35 if scheme == "dark" else shown.mean() > 0.75
            assert shown.std() > 0.05  # something is drawn
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("[...document.querySelectorAll('.plot')].every(one => one.scrollWidth <= one.clientWidth)")
        shown, wide = pictures[0].evaluate("img => [img.currentSrc, img.src]")
        assert shown.startswith("data:image/svg+xml;base64,")
        assert (shown == wide) == (width > 390)
