"""Views and the report as a browser finds them, without a network: what shows, what is asked for, what runs.

Needs a Chromium on the path and playwright; without one the tests are skipped, and say so.
"""

import pytest
import torch

from positional_heads.core.heads import Head
from positional_heads.results.text import axis_labels, readable_tokens
from positional_heads.views import attention_view, contribution_view, token_view
from positional_heads.views import tokens as token_views
from positional_heads.views.report.page import report_html
from positional_heads.views.tokens import MEANINGS
from tests.support.browser import PAINTED
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_examples import HOSTILE, synthetic_examples
from tests.support.synthetic_profile import synthetic_profile

pytestmark = pytest.mark.slow
CELLS = """canvas => {
    let fiber = canvas[Object.keys(canvas).find(key => key.startsWith("__reactFiber"))];
    while (!fiber.memoizedProps?.data?.datasets) fiber = fiber.return;
    return fiber.memoizedProps.data.datasets[0].data.length;
}"""
COLOURS = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), found = {};
    for (let i = 0; i < data.length; i += 4) {
        const colour = [data[i], data[i + 1], data[i + 2], data[i + 3]].join();
        found[colour] = (found[colour] ?? 0) + 1;
    }
    return found;
}"""
DRAWN = "() => [...document.querySelectorAll('canvas')].every(canvas => canvas.width > 100)"


def unfold(page):
    """Open every fold, and bring every component into view, as readers do."""
    page.evaluate("() => document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    for component in page.locator("[data-component]").all():
        component.scroll_into_view_if_needed()
        component.locator("canvas, .colored-tokens").first.wait_for()
    page.wait_for_function(DRAWN)
    page.evaluate(PAINTED)


def tokens_of(page, place=0):
    texts = page.locator(".colored-tokens").nth(place).locator(":scope > span").all_inner_texts()
    return [text.replace("\xa0", " ") for text in texts]  # circuitsvis' own spaces


def test_attention_has_a_cell_for_every_query_and_key_in_the_colours_of_its_legend(opened):
    record = synthetic_examples(heads=2, pairs=4)
    record.pattern[:] = 1.0
    page = opened(attention_view(record).html)
    unfold(page)
    assert page.locator("canvas").count() == 4  # two heads, attention and dominant dimension of each
    for canvas in page.locator("canvas").all():
        assert canvas.evaluate(CELLS) == 36
    colours = page.locator("canvas").first.evaluate(COLOURS)
    full, masked = colours["8,48,107,255"], colours["200,200,200,255"]
    assert full / masked == pytest.approx(21 / 15, rel=0.1)  # cells on and below the diagonal to those above it


def test_heads_open_from_the_keyboard_and_are_drawn_when_opened(opened):
    page = opened(attention_view(synthetic_examples(heads=3)).html)
    page.wait_for_function("() => document.querySelectorAll('canvas').length === 2")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.textContent") == "L0H1":
            break
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('canvas').length > 2")
    assert page.locator("canvas").count() == 4


@pytest.mark.parametrize("measure", MEANINGS)
def test_every_token_is_there_with_every_choice(opened, measure):
    record = synthetic_examples(heads=3, pairs=4)
    page = opened(token_view(record, measure).html)
    unfold(page)
    assert tokens_of(page) == ["In", "·the", "·beginning", "↵", "God", "·created"]
    choices = page.locator(".ColoredTokensMulti [role=button]")
    assert choices.count() == (4 if measure == "contribution" else 3)
    assert page.locator("details.numbers tbody tr").count() == 6
    before = page.locator(".colored-tokens > span > span").last.get_attribute("style")
    assert choices.evaluate_all("all => all.every(choice => choice.tabIndex === 0)")
    choices.last.focus()
    page.keyboard.press("Enter")
    page.evaluate(PAINTED)
    assert page.locator(".colored-tokens > span > span").last.get_attribute("style") != before


def test_a_query_has_a_cell_for_every_pair_and_key(opened):
    page = opened(contribution_view(synthetic_examples(), Head(0, 1), 4).html)
    unfold(page)
    assert len(tokens_of(page)) == 5
    assert page.locator("table.heat td").count() == 5 * 4


def test_hostile_tokens_and_names_are_shown_as_text_and_nothing_runs(opened):
    record = synthetic_examples(HOSTILE, name=HOSTILE[0])
    shown = readable_tokens(HOSTILE)
    page = opened(token_view(record).html)
    unfold(page)
    assert tokens_of(page) == shown
    assert HOSTILE[0] in page.locator("h1").inner_text()
    assert page.title().endswith(HOSTILE[0])
    page.locator(".colored-tokens > span").first.hover()
    assert page.locator(".colored-tokens > div > div").first.inner_text() == shown[0]
    for view in (attention_view(record), contribution_view(record, Head(0, 0), len(HOSTILE) - 1)):
        page = opened(view.html)
        unfold(page)
    assert page.locator("table.heat thead th").all_inner_texts()[1:] == [
        f"{t} ({i})" for i, t in enumerate(axis_labels(HOSTILE))
    ]


def test_even_without_escaping_the_policy_lets_nothing_run_or_load(opened, monkeypatch):
    monkeypatch.setattr(token_views, "escape", lambda token: token)
    page = opened(token_view(synthetic_examples(HOSTILE)).html, quiet=False)
    unfold(page)
    assert page.locator(".colored-tokens img").count() == 1  # it did become an element


def test_circuitsvis_alone_would_have_run_it(browser):
    """The control: what the tests above look for does happen without our page."""
    from circuitsvis.utils.render import render_local

    page = browser.new_page()
    page.set_content(render_local("ColoredTokens", tokens=list(HOSTILE[:2]), values=[1.0, 2.0]))
    page.wait_for_function("() => window.pwned")
    assert page.evaluate("() => window.pwned") == 1
    page.close()


def test_two_views_in_one_notebook_keep_to_their_own_frames(opened):
    record = synthetic_examples(HOSTILE)
    frames = [view._repr_html_() for view in (attention_view(record), token_view(record))]
    page = opened("<!DOCTYPE html><meta charset='utf-8'>" + "".join(frames))
    attention, tokens = (page.frame_locator("iframe").nth(place) for place in range(2))
    attention.locator("canvas").first.wait_for()
    page.locator("iframe").nth(1).scroll_into_view_if_needed()
    tokens.locator(".colored-tokens > span").nth(len(HOSTILE) - 1).wait_for()
    assert page.evaluate("() => typeof CircuitsVis") == "undefined"


@pytest.mark.parametrize("shape", ["100,000 tokens", "1,000 heads"])
def test_huge_records_are_cropped_with_a_note(opened, shape):
    long = shape.endswith("tokens")
    record = synthetic_examples(["t"] * 100_000, detailed=128) if long else synthetic_examples(heads=1000)
    page = opened(token_view(record).html)
    unfold(page)
    assert len(tokens_of(page)) == (2000 if long else 6)
    assert shape in page.locator(".note").inner_text()
    page = opened(attention_view(record).html)
    page.locator("canvas").nth(1).wait_for()
    assert page.locator("canvas").first.evaluate(CELLS) == (128**2 if long else 36)
    assert page.locator("details.group").count() == (2 if long else 8)
    assert shape in page.locator(".note").inner_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A result folder of a hostile name, model and tokens."""
    folder = tmp_path_factory.mktemp("results") / "<img src=x onerror=window.pwned=1>"
    synthetic_scores(name=HOSTILE[0]).save(folder / "scores.safetensors")
    synthetic_examples(HOSTILE, name=HOSTILE[0]).save(folder / "examples.safetensors")
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return report_html(folder)


@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_shows_everything_and_fits_the_screen(opened, folder, report, width):
    page = opened(report, width=width)
    unfold(page)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert HOSTILE[0] in page.locator("h1").inner_text()
    assert folder.name in page.locator("header p").inner_text()
    assert page.locator("main table").first.locator("tbody tr").count() == 8  # heads with a score
    assert page.locator("canvas").count() == 4
    assert tokens_of(page) == readable_tokens(HOSTILE)
    assert page.evaluate("() => [...document.images].every(image => image.naturalWidth > 100)")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"


@pytest.mark.usefixtures("undrawn")
def test_a_row_keeps_its_name_in_view_on_a_phone_and_paper_shows_every_column_and_colour(opened, tmp_path):
    synthetic_profile().save(tmp_path)
    synthetic_examples().save(tmp_path)
    page = opened(report_html(tmp_path), width=390)
    table = page.locator("#profile-1 .scroll").first
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") > 200
    placed = """box => {
        box.scrollLeft = 200;
        const left = box.getBoundingClientRect().left;
        return [...box.querySelectorAll("tr > :first-child")].map(cell => {
            const place = cell.getBoundingClientRect();
            return [place.left - left, document.elementFromPoint(left + 20, place.top + 10) === cell];
        });
    }"""
    table.scroll_into_view_if_needed()
    found = table.evaluate(placed)
    assert len(found) > 5
    assert all(abs(left) < 2 for left, _ in found)
    assert found[0][1]  # no other heading stands on that of the names
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # of A4
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 1
    kept = "selector => getComputedStyle(document.querySelector(selector)).printColorAdjust"
    assert {page.evaluate(kept, one) for one in (".ramp", ".heat td", ".widget")} == {"exact"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_the_report_can_be_read_in_either_scheme(opened, report, scheme):
    page = opened(report)
    page.emulate_media(color_scheme=scheme)
    contrast = """selector => {
        const light = colour => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
            const linear = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        };
        const element = document.querySelector(selector);
        let ground = element;
        while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
        const lights = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light);
        return (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    }"""
    for selector in (
        "main p",
        ".verdict",
        "header p",
        "nav a",
        "td",
        "caption",
        ".plotted figcaption",
        "dt",
        "pre",
    ):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert dark == (scheme == "dark")


def test_unknown_numbers_are_drawn_without_an_error(opened):
    record = synthetic_examples()
    record.weighted_dominant[:] = torch.nan
    page = opened(token_view(record).html)
    unfold(page)
    assert page.locator("details.numbers td", has_text="unknown").count() == 12


def test_red_is_positive_and_blue_negative_in_tokens_and_in_cells(opened):
    record = synthetic_examples(pairs=4)
    record.mean_contributions[:] = torch.tensor([-1.0, 1.0, 0.0, 0.0])
    record.contributions[:] = torch.tensor([-1.0, 1.0, 0.0, 0.0])
    channels = "all => all.map(one => getComputedStyle(one).backgroundColor.match(/\\d+/g).map(Number))"
    page = opened(token_view(record, "contribution", heads=[Head(0, 0)], pairs=[0, 1]).html)
    unfold(page)
    for choice, positive in ((0, False), (1, True)):
        page.locator(".ColoredTokensMulti [role=button]").nth(choice).click()
        page.evaluate(PAINTED)
        for red, _, blue in page.locator(".colored-tokens > span > span").evaluate_all(channels):
            assert (red > blue) == positive
    page = opened(contribution_view(record, Head(0, 0), 4).html)
    unfold(page)
    cells = page.locator("table.heat tbody tr")
    for row, positive in ((0, False), (1, True)):
        for red, _, blue in cells.nth(row).locator("td").evaluate_all(channels):
            assert (red > blue) == positive
