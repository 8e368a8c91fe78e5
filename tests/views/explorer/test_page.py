"""The explorer as a reader uses it: every choice changes what it should, asserted on the page's own data.

Needs a Chromium on the path and playwright; without one the tests are skipped, and say so.
"""

import pytest

from positional_heads.views.explorer.page import explorer_files, explorer_html
from tests.support.browser import PAINTED
from tests.support.synthetic_explorer import HOSTILE, synthetic_document

pytestmark = pytest.mark.slow
DOCUMENT = synthetic_document()
PAGE = explorer_html(DOCUMENT)
LINKED = ("curves", "pairs", "mass", "effects", "extensions", "compared")
CELLS = "#atlas-chart .layer_0_marks path"


def settled(page):
    page.evaluate("() => explorer.settled()")
    page.evaluate(PAINTED)


def state(page):
    return page.evaluate("() => explorer.state()")


def bring(page, chart):
    """Bring a chart into view, so that it is drawn."""
    page.locator(f"#{chart}-part").scroll_into_view_if_needed()
    page.wait_for_function("name => document.querySelector(`#${name}:not([data-stale]) .marks`)", arg=chart)
    settled(page)


def rows(page, chart, data):
    """What a chart shows, as data."""
    bring(page, chart)
    return page.evaluate("([chart, data]) => explorer.rows(chart, data)", [chart, data])


def shown(page, head):
    """Wait until the sentence is that of a head."""
    page.wait_for_function("head => document.querySelector('#sentence').textContent.startsWith(head)", arg=head)
    settled(page)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_opens_quietly_fits_the_screen_and_follows_the_scheme(opened, width, scheme):
    page = opened(PAGE, width=width, scheme=scheme)
    settled(page)
    for part in LINKED:
        bring(page, part)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    grounds = page.locator("section.card, .chart, table, header.page").evaluate_all(
        "all => all.map(one => getComputedStyle(one).backgroundColor).filter(one => !one.endsWith(', 0)'))"
    )
    bright = [sum(map(int, one[4:-1].split(",")[:3])) > 3 * 128 for one in grounds]
    assert bright == [scheme == "light"] * len(bright)
    words = page.locator("#curves-chart text").first.evaluate("one => getComputedStyle(one).fill")
    assert (sum(map(int, words[4:-1].split(","))) > 3 * 128) == (scheme == "dark")


def test_it_opens_with_the_head_that_ranks_first(opened):
    page = opened(PAGE)
    settled(page)
    values = next(one for one in DOCUMENT["measures"] if one["id"] == DOCUMENT["rank_by"])["values"]
    best = max((value, -number) for number, value in enumerate(values) if value is not None)
    assert state(page)["heads"] == [DOCUMENT["heads"][-best[1]]]


def test_a_click_on_a_cell_shows_that_head_in_every_part(opened):
    page = opened(PAGE)
    settled(page)
    for number in (5, 11):
        check_all_parts(page, number)


def check_all_parts(page, number):
    page.locator(CELLS).nth(number).click()
    head = DOCUMENT["heads"][number]
    shown(page, head)
    detail = DOCUMENT["details"][head]
    assert state(page)["heads"] == [head]
    assert page.evaluate("() => location.hash") == f"#{head}"
    assert [row["name"] for row in rows(page, "atlas", "chosen")] == [head]
    assert page.locator("#sentence").inner_text() == DOCUMENT["sentences"][number]
    lines = rows(page, "curves", "lines")
    for run, curve in detail["curves"].items():
        drawn = [(row["distance"], row["value"]) for row in lines if row["series"] == f"{head} {run}"]
        assert drawn == list(zip(DOCUMENT["curves"][0]["distance"], curve["mean"], strict=True))
    bands = [(row["low"], row["high"]) for row in rows(page, "curves", "bands") if row["series"].endswith("run-1")]
    assert bands == list(
        zip(detail["curves"]["run-1"]["null_low"], detail["curves"]["run-1"]["null_high"], strict=True)
    )
    assert {row["distance"] for row in rows(page, "curves", "marks")} == {64}
    cells = {(row["pair"], row["order"]): row["value"] for row in rows(page, "pairs", "cells")}
    edges = DOCUMENT["pairs"][0]["edges"]
    expected = detail["contribution"]["run-1"]
    assert cells == {(p, edges[r]): value for p, line in enumerate(expected) for r, value in enumerate(line)}
    assert [row["value"] for row in rows(page, "mass", "lines")] == detail["mass"]["run-1"]
    (effect,) = rows(page, "effects", "chosen")
    assert effect["value"] == DOCUMENT["effects"][0]["values"][number]
    assert effect["low"] == DOCUMENT["effects"][0]["intervals"]["low"][number]
    within = page.locator("#mass .soft").last.inner_text()
    masses = detail["mass"]["run-1"]
    half = next(at for at in range(len(masses)) if sum(masses[: at + 1]) >= 0.5)
    assert f"half of its attention lies within {DOCUMENT['masses'][0]['edges'][half + 1] - 1} tokens" in within
    extended = rows(page, "extensions", "lines")
    assert {row["series"] for row in extended} == {*DOCUMENT["extensions"][0]["methods"]}
    assert [row["value"] for row in extended if row["series"] == "yarn x2"] == detail["extension"]["run-1"]["yarn x2"]
    (point,) = rows(page, "compared", "chosen")
    compared = DOCUMENT["comparisons"][0]["rows"][0]
    titles = page.locator("#compared-chart .role-axis-title text").all_text_contents()
    assert {*titles} == {"rho: a text", "another text"}
    assert (point["a"], point["b"]) == (compared["a"][number], compared["b"][number])
    assert page.locator("#heads-table tr.chosen th").inner_text() == head


def test_the_atlas_takes_the_colours_of_any_measure_red_for_positive(opened):
    page = opened(PAGE)
    for measure in DOCUMENT["measures"]:
        check_colours(page, measure)


def check_colours(page, measure):
    page.locator("#measure").select_option(measure["id"])
    settled(page)
    cells = rows(page, "atlas", "heads")
    assert [cell["name"] for cell in cells] == DOCUMENT["heads"]
    for cell, value in zip(cells, measure["values"], strict=True):
        red, green, blue = (int(cell["colour"][at : at + 2], 16) for at in (1, 3, 5))
        if value is None:
            assert red == green == blue
        elif measure["scale"] == "diverging" and abs(value) > 0.1 * measure["high"]:
            assert (red > blue) == (value > 0)
    drawn = page.locator("#atlas .legend").inner_text()
    assert measure["title"] in drawn
    by_value = sorted(
        (value, cell["colour"]) for cell, value in zip(cells, measure["values"], strict=True) if value is not None
    )
    assert len({colour for _, colour in by_value}) >= (2 if measure["scale"] == "flag" else 6)


def test_the_table_sorts_filters_and_dims_the_atlas(opened):
    page = opened(PAGE)
    settled(page)
    excess = next(one for one in DOCUMENT["measures"] if one["id"] == "run-1/excess")["values"]
    known = sorted((n for n, value in enumerate(excess) if value is not None), key=lambda n: -excess[n])
    unknown = [n for n, value in enumerate(excess) if value is None]

    def names():
        return page.locator("#heads-table tbody th").all_inner_texts()

    assert names() == [DOCUMENT["heads"][n] for n in known + unknown]
    page.locator("#heads-table [data-column='run-1/excess']").click()
    assert names() == [DOCUMENT["heads"][n] for n in known[::-1] + unknown]
    assert page.locator("#heads-table th[aria-sort=ascending]").count() == 1
    page.locator("#measure").select_option("run-2/reach")
    settled(page)
    headings = "#heads-table thead [data-column='run-2/reach']"
    assert page.locator("#heads-table thead [data-column]").nth(2).get_attribute("data-column") == "run-2/reach"
    page.locator(".columns summary").click()
    page.locator("[data-measure='run-2/reach']").check()
    assert page.locator(headings).count() == 1
    page.locator("[data-measure='run-2/reach']").uncheck()
    page.locator("#measure").select_option("run-1/excess")
    settled(page)
    assert page.locator(headings).count() == 0
    page.locator("#filter").fill("induction")
    settled(page)
    assert {*names()} == {DOCUMENT["heads"][n] for n in range(0, 12, 2)}
    assert {cell["name"] for cell in rows(page, "atlas", "heads") if cell["shown"] == 1} == {*names()}
    page.locator("#filter").fill("sink layer 1")
    assert {*names()} == {"L1H1", "L1H3"}
    page.locator("#filter").fill("layer 2")
    assert {*names()} == {"L2H0", "L2H1", "L2H2", "L2H3"}
    page.locator("#filter").fill("")
    page.locator("#least").fill("0.1")
    assert {*names()} == {DOCUMENT["heads"][n] for n in known if excess[n] >= 0.1}
    page.locator("#least").fill("")
    page.locator("#beating").check()
    flags = next(one for one in DOCUMENT["measures"] if one["id"] == "run-1/beats_null")["values"]
    assert {*names()} == {head for head, flag in zip(DOCUMENT["heads"], flags, strict=True) if flag}
    stay = next(one for one in DOCUMENT["measures"] if one["id"] == "run-1/stays")["values"]
    page.locator("#staying").check()
    assert {*names()} == {head for head, *both in zip(DOCUMENT["heads"], flags, stay, strict=True) if all(both)}
    page.locator("#beating").uncheck()
    page.locator("#measure").select_option("run-2/excess")
    settled(page)
    other = next(one for one in DOCUMENT["measures"] if one["id"] == "run-2/stays")["values"]
    assert {*names()} == {head for head, flag in zip(DOCUMENT["heads"], other, strict=True) if flag}


def test_a_measure_whose_small_values_count_has_its_dark_end_there(opened):
    page = opened(PAGE, fragment="#L0H0&measure=run-1/q_value")
    settled(page)
    values = next(one for one in DOCUMENT["measures"] if one["id"] == "run-1/q_value")["values"]
    lightness = [sum(bytes.fromhex(cell["colour"][1:])) for cell in rows(page, "atlas", "heads")]
    known = sorted((value, light) for value, light in zip(values, lightness, strict=True) if value is not None)
    assert [light for _, light in known] == sorted(light for _, light in known)
    assert page.locator("#heads-table tbody th").first.inner_text() == DOCUMENT["heads"][values.index(known[0][0])]
    page.locator("#heads details.facts summary").click()
    rank = page.locator("#heads details.facts tr", has_text="q_value").first.locator("td").nth(2)
    assert rank.inner_text() == f"{1 + sum(value < values[0] for value, _ in known)} of {len(known)}"


def test_a_large_table_is_turned_page_by_page(opened):
    page = opened(explorer_html(synthetic_document(16, 8, 4, 6, runs=1)))
    settled(page)
    assert page.locator("#heads-table tbody tr").count() == 50
    page.locator("#table button", has_text="Next").click()
    page.locator("#table button", has_text="Next").click()
    assert page.locator("#heads-table tbody tr").count() == 128 - 100
    assert page.locator("#table button", has_text="Next").is_disabled()


def test_heads_are_found_by_name_and_several_are_chosen_and_left_again(opened):
    page = opened(PAGE)
    settled(page)
    page.locator("#find").fill("l1h2")
    page.keyboard.press("Enter")
    shown(page, "L1H2")
    page.locator("#find").fill("L9H9")
    page.keyboard.press("Enter")
    assert "No head L9H9" in page.locator("#heads output").inner_text()
    page.locator("#adding").check()
    page.locator(CELLS).nth(0).click()
    shown(page, "L0H0")
    assert state(page)["heads"] == ["L1H2", "L0H0"]
    assert {row["series"].split()[0] for row in rows(page, "curves", "lines")} == {"L1H2", "L0H0"}
    assert len({row["colour"] for row in rows(page, "curves", "lines")}) == 2
    pressed = "all => all.map(one => one.getAttribute('aria-pressed'))"
    assert page.locator("[data-chip]").evaluate_all(pressed) == ["false", "true"]
    page.locator("[data-chip=L1H2]").click()
    shown(page, "L1H2")
    assert page.locator("[data-chip]").evaluate_all(pressed) == ["true", "false"]
    assert {row["text"].split(",")[0] for row in rows(page, "pairs", "cells")} == {"L1H2"}
    page.locator(CELLS).nth(0).click()
    page.wait_for_function("() => explorer.state().heads.length === 1")
    page.locator("#adding").uncheck()
    page.locator(CELLS).nth(3).click(modifiers=["Shift"])
    shown(page, "L0H3")
    assert state(page)["heads"] == ["L1H2", "L0H3"]


def test_it_can_be_walked_with_the_keyboard_and_says_where_it_is(opened):
    page = opened(PAGE, fragment="#L1H1")
    settled(page)
    page.locator("#atlas-chart").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert page.locator("#said").inner_text().startswith("L2H2, excess ")
    chart = page.locator("#atlas-chart")
    assert chart.get_attribute("role") == "application"
    assert chart.get_attribute("aria-label").startswith("Atlas of 3 layers by 4 heads")
    assert state(page)["heads"] == ["L1H1"]
    page.keyboard.press("Enter")
    shown(page, "L2H2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Enter")
    page.wait_for_function("() => explorer.state().heads.join() === 'L2H2,L2H1'")


def test_an_address_opens_what_it_names_and_back_goes_back(opened):
    page = opened(PAGE, fragment="#L1H2,L0H1&measure=run-2/rho&query=3")
    settled(page)
    found = state(page)
    assert (found["heads"], found["measure"], found["query"]) == (["L1H2", "L0H1"], "run-2/rho", 3)
    page.locator(CELLS).nth(11).click()
    shown(page, "L2H3")
    assert page.evaluate("() => location.hash") == "#L2H3&measure=run-2/rho&query=3"
    page.locator("#measure").select_option("run-1/reach")
    for there_and_back in range(2):
        page.go_back()
        shown(page, "L0H1")
        if not there_and_back:
            page.go_forward()
            shown(page, "L2H3")
    found = state(page)
    assert (found["heads"], found["measure"], found["query"]) == (["L1H2", "L0H1"], "run-2/rho", 3)
    page.evaluate("() => { location.hash = '#L2H0' }")
    shown(page, "L2H0")
    found = state(page)  # what an address leaves out is as it is at first
    assert (found["heads"], found["measure"], found["query"]) == (["L2H0"], DOCUMENT["rank_by"], None)


def test_an_address_that_comes_again_and_one_without_a_head_are_followed(opened):
    page = opened(PAGE)
    settled(page)
    (first,) = state(page)["heads"]
    for number in (5, 11):
        page.locator(CELLS).nth(number).click()
        shown(page, DOCUMENT["heads"][number])
    for head in ("L0H3", DOCUMENT["heads"][11]):
        page.evaluate("head => { location.hash = head }", head)
        shown(page, head)
    for head in ("L0H3", DOCUMENT["heads"][11], DOCUMENT["heads"][5], first):
        page.go_back()
        shown(page, head)
    assert page.evaluate("() => location.hash") == ""


def test_an_address_says_which_of_several_heads_is_in_focus(opened):
    page = opened(PAGE, fragment="#L1H2,L0H1")
    settled(page)
    page.locator("[data-chip=L1H2]").click()
    shown(page, "L1H2")
    address = page.evaluate("() => location.hash")
    assert address == "#L1H2,L0H1&focus=L1H2"
    again = opened(PAGE, fragment=address)
    shown(again, "L1H2")
    assert {row["text"].split(",")[0] for row in rows(again, "pairs", "cells")} == {"L1H2"}


def test_an_address_brings_a_part_into_view(opened):
    page = opened(PAGE, fragment="#L1H2&part=compared")
    page.locator("#compared-chart .marks").wait_for()
    page.wait_for_timeout(1800)
    page.wait_for_function(
        """() => Math.abs(document.getElementById("compared-part").getBoundingClientRect().top) < 20
            || innerHeight + scrollY >= document.documentElement.scrollHeight - 2"""
    )


def test_an_address_that_names_nothing_changes_nothing(opened):
    page = opened(PAGE, fragment="#L1H1")
    settled(page)
    for fragment in ("#__proto__", "#L9H9", "#measure=constructor", f"#{HOSTILE[1]}", "#%", "#part=../x&query=-1"):
        page.evaluate("fragment => { location.hash = fragment }", fragment)
        settled(page)
        found = state(page)
        assert (found["heads"], found["measure"], found["query"]) == (["L1H1"], DOCUMENT["rank_by"], None)


def test_hostile_names_are_shown_as_text_and_nothing_runs(opened):
    document = synthetic_document(hostile=True)
    page = opened(explorer_html(document), width=390)
    settled(page)
    assert HOSTILE[0] in page.locator("h1").inner_text()
    assert HOSTILE[5] in page.locator(".note").last.inner_text()
    for part in LINKED:
        bring(page, part)
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
    settled(page)
    assert "__proto__" in page.locator("#extensions .legend").inner_text()
    assert {row["series"] for row in rows(page, "extensions", "lines")} == {"__proto__", "none"}
    page.locator("#effects-chart").hover()
    assert page.locator("form:not(.vega-bindings), img, iframe, [href^=javascript], [onerror]").count() == 0
    assert page.evaluate("() => Object.keys(Object.prototype).length + Object.keys(Array.prototype).length") == 0


def test_methods_are_hidden_and_shown_again(opened):
    page = opened(PAGE, fragment="#L0H1")
    settled(page)
    assert len({row["series"] for row in rows(page, "extensions", "lines")}) == 2
    for expected in ({"none"}, {"none", "yarn x2"}):
        page.locator("#extensions [data-method='yarn x2']").click()
        page.wait_for_function(
            "n => new Set(explorer.rows('extensions', 'lines').map(row => row.series)).size === n", arg=len(expected)
        )
        assert {row["series"] for row in rows(page, "extensions", "lines")} == expected


def test_numbers_behind_every_chart_can_be_read_as_a_table(opened):
    page = opened(PAGE, fragment="#L0H1")
    settled(page)
    for part in LINKED:
        bring(page, part)
        page.locator(f"#{part} details.numbers summary").click()
        page.locator(f"#{part} details.numbers tbody tr").first.wait_for()
        assert page.locator(f"#{part}-chart").get_attribute("aria-label")
    drawn = page.locator("#mass details.numbers tbody td").all_inner_texts()
    expected = DOCUMENT["details"]["L0H1"]["mass"]["run-1"]
    assert [float(cell) for cell in drawn[1::2]] == pytest.approx(expected, rel=1e-3)


def test_it_prints_in_light_colours_with_every_chart(opened):
    page = opened(PAGE, scheme="dark", fragment="#L1H1")
    settled(page)
    dark = {cell["colour"] for cell in rows(page, "atlas", "heads")}
    bring(page, "pairs")
    page.evaluate("() => scrollTo(0, 0)")
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function(
        "colour => explorer.rows('atlas', 'heads').every(cell => cell.colour !== colour)", arg=max(dark)
    )
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, ground[4:-1].split(",")[:3])) > 3 * 200


def test_only_what_the_results_hold_is_on_the_page(opened):
    document = synthetic_document(runs=1)
    for name in ("curves", "masses", "pairs", "series", "effects", "extensions", "comparisons"):
        document[name] = []
    document["is"] = document["names"] = None
    document["details"] = {}
    page = opened(explorer_html(document))
    settled(page)
    assert page.locator("section.card").count() == 4  # atlas, table, heads, what was run
    page.locator(CELLS).nth(1).click()
    shown(page, "L0H1")


def test_a_large_study_says_what_to_do_when_its_files_cannot_be_read(opened):
    files = explorer_files(DOCUMENT)
    assert {*files} == {"explorer.html", *(f"explorer_data/L{layer}.json" for layer in range(3))}
    page = opened(files["explorer.html"], quiet=False)
    page.locator("#trouble").wait_for()
    assert "--serve" in page.locator("#trouble").inner_text()
    assert page.locator("#sentence").inner_text() in DOCUMENT["sentences"]
