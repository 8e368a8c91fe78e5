"""The explorer's tokens and its "what if", in a browser: what is clicked changes what it should, on the page's data."""

import math

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope
from positional_heads.results.text import readable_tokens
from positional_heads.views.explorer.page import explorer_html
from positional_heads.views.explorer.texts import text_parts
from positional_heads.views.page import resource
from tests.support.synthetic_examples import HOSTILE, synthetic_examples
from tests.support.synthetic_explorer import synthetic_document

pytestmark = pytest.mark.slow
WORDS = ["In", " the", " beginning", "\n", "God", " created", *HOSTILE]


def document(*records):
    """A synthetic document with these texts; each has the first heads of layer 0."""
    made = synthetic_document(runs=len(records))
    for number, record in enumerate(records):
        texts, by_head = text_parts(record, f"run-{number + 1}")
        made["texts"] += texts
        for head, own in by_head.items():
            made["details"][head].setdefault("texts", {}).update(own)
    return made


@pytest.fixture(scope="module")
def records():
    long = [f" w{number}" for number in range(8192)]
    long[7000] = " needle"
    return synthetic_examples(WORDS, pairs=8), synthetic_examples(long, pairs=8, detailed=8, kept=16, seed=1)


@pytest.fixture(scope="module")
def html(records):
    return explorer_html(document(records[0]))


@pytest.fixture
def panel(opened, html):
    """The page at an address, with the tokens in sight."""

    def visit(address="", html=html, **options):
        page = opened(html, fragment=f"#L0H1{address}", **options)
        page.locator("#tokens-part").scroll_into_view_if_needed()
        page.locator("#tokens-keys tbody tr").first.wait_for()
        return page

    return visit


def listed(page):
    """Position, tokens back, attention in percent and dominant pair of the listed keys."""
    rows = page.locator("#tokens-keys tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.children].map(cell => cell.textContent))"
    )
    return [(int(key), token, int(back), float(share[:-2]), float(pair)) for key, token, back, share, pair, _ in rows]


def expected(record, head, query, most=10):
    """The same from the record."""
    pattern, dominant = record.pattern[head, query], record.dominant[head, query]
    order = sorted(range(query + 1), key=lambda key: -float(pattern[key]))[:most]
    return [
        (key, readable_tokens(record.tokens)[key], query - key, float(pattern[key]), float(dominant[key]))
        for key in order
    ]


def assert_listed(page, record, head, query):
    found, own = listed(page), expected(record, head, query)
    assert [row[:3] for row in found] == [row[:3] for row in own]
    np.testing.assert_allclose([row[3] for row in found], [100 * row[3] for row in own], rtol=6e-3)
    np.testing.assert_allclose([row[4] for row in found], [row[4] for row in own], rtol=6e-3)


def coloured(page):
    """Position of every token of the window that has a colour, and the colour."""
    return dict(
        page.locator(".token").evaluate_all(
            "all => all.map(one => [Number(one.dataset.at), one.style.backgroundColor]).filter(one => one[1])"
        )
    )


def lightness(colour):
    return sum(int(part) for part in colour[4:-1].split(","))


def test_a_query_shows_the_keys_that_it_attends_to(panel, records):
    record = records[0]
    page = panel()
    last = len(WORDS) - 1
    assert page.locator(".token").all_text_contents() == readable_tokens(WORDS)
    assert page.locator('.token[aria-selected="true"]').get_attribute("data-at") == str(last)
    assert_listed(page, record, 1, last)
    page.locator("#token-5").click()
    assert page.evaluate("() => window.location.hash") == "#L0H1&query=5"
    assert_listed(page, record, 1, 5)
    shades = coloured(page)
    assert sorted(shades) == list(range(6))
    by_attention = sorted(shades, key=lambda key: -float(record.pattern[1, 5, key]))
    lights = [lightness(shades[key]) for key in by_attention]
    assert lights == sorted(lights)  # in light mode more attention is darker
    assert page.locator("#tokens .legend .unit").inner_text() == "share of the query's attention"
    most = float(record.pattern[1, 5].max())
    assert float(page.locator("#tokens .legend span").nth(2).inner_text()) == pytest.approx(most, rel=6e-3)
    page.locator("#tokens-colour").select_option("dominant")
    by_pair = sorted(range(6), key=lambda key: float(record.dominant[1, 5, key]))
    lights = [lightness(coloured(page)[key]) for key in by_pair]
    assert lights == sorted(lights, reverse=True)
    assert "100 % of its attention." in page.locator("#tokens-kept").inner_text()
    page.locator("#token-2").hover()
    one = expected(record, 1, 5)[[row[0] for row in expected(record, 1, 5)].index(2)]
    said = page.locator("#tokens-readout").inner_text()
    assert said.startswith("token 2, “·beginning”: 3 tokens back, ")
    assert f"dominant pair {one[4]:.2f}"[:-1] in said
    assert "tokens a turn" in said


def test_keys_and_heads_are_chosen_without_a_mouse(panel, records):
    page = panel("&query=5")
    page.locator("#tokens-run").focus()
    for key, query in (
        ("ArrowLeft", 4),
        ("ArrowRight", 5),
        ("ArrowDown", 14),
        ("ArrowUp", 4),
        ("Home", 0),
        ("End", 14),
    ):
        page.keyboard.press(key)
        page.wait_for_function("query => window.location.hash === `#L0H1&query=${query}`", arg=query)
        assert page.locator("#tokens-run").get_attribute("aria-activedescendant") == f"token-{query}"
        assert_listed(page, records[0], 1, query)
    assert page.locator("#said").inner_text().startswith("Query token 14, “")
    page.locator('#tokens [data-head="L0H0"]').click()
    assert page.evaluate("() => window.location.hash") == "#L0H0&query=14"
    assert_listed(page, records[0], 0, 14)
    page.locator("#tokens-keys button").nth(1).click()
    key = expected(records[0], 0, 14)[1][0]
    assert page.locator(".token.cursor").get_attribute("data-at") == str(key)
    assert page.evaluate("() => window.location.hash") == "#L0H0&query=14"


def test_a_head_without_a_text_says_which_have_one(panel):
    page = panel(width=390)
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    page.evaluate("() => { window.location.hash = '#L2H3'; }")
    page.locator("#tokens-away").wait_for()
    said = page.locator("#tokens-away").inner_text()
    assert said.startswith("L2H3 was not recorded on this text: choose one that was. ")
    assert 'ph.head_examples(model, text, "L2H3")' in said
    assert page.locator("#tokens-run").is_hidden()
    page.locator('#tokens [data-head="L0H1"]').click()
    page.locator("#tokens-run").wait_for()


def test_an_address_says_which_text_and_which_token(panel, records):
    page = panel("&query=3&text=text-2", html=explorer_html(document(*records)))
    assert page.locator("#tokens-text").input_value() == "text-2"
    assert page.evaluate("() => explorer.state().query") == 3
    page.locator("#tokens-text").select_option("text-1")
    page.wait_for_function("() => location.hash === '#L0H1&query=3'")
    page.locator("#tokens-text").select_option("text-2")
    page.wait_for_function("() => location.hash === '#L0H1&query=3&text=text-2'")


def test_long_texts_are_shown_in_windows_and_searched(panel, records):
    record = records[1]
    page = panel(html=explorer_html(document(*records)))
    page.locator("#tokens-text").select_option("text-2")
    page.wait_for_function("() => document.querySelectorAll('.token').length === 512")
    assert page.locator("#tokens-window").inner_text() == "tokens 0 to 511 of 8192"
    page.get_by_role("button", name="Next tokens").click()
    assert page.locator(".token").first.inner_text() == "·w512"
    page.locator("#tokens-find").fill("NEEDLE")
    assert page.locator("#tokens-found").inner_text() == "1 found"
    page.keyboard.press("Enter")
    assert page.locator("#tokens-found").inner_text() == "1 of 1 found"
    assert page.locator(".token.cursor").get_attribute("data-at") == "7000"
    assert page.locator(".token.hit").all_inner_texts() == ["·needle"]
    page.locator("#token-7000").click()
    rows = listed(page)
    assert [row[0] for row in rows] == record.kept_keys[1, 7000, :10].tolist()
    np.testing.assert_allclose([row[3] for row in rows], 100 * record.kept_pattern[1, 7000, :10].float(), rtol=6e-3)
    total = float(record.kept_pattern[1, 7000].float().sum())
    assert f"the 16 keys kept get {100 * total:.3g} % of its attention; " in page.locator("#tokens-kept").inner_text()
    page.locator("#tokens-find").fill("w81 w82")  # over two tokens, with a space
    assert page.locator("#tokens-found").inner_text() == "1 found"
    page.locator("#tokens-jump").fill("8191")
    page.locator("#tokens-jump").press("Enter")
    assert page.locator("#tokens-window").inner_text() == "tokens 7680 to 8191 of 8192"


RUNS = """cases => {
    SOURCE
    return cases.map(ropeFrequencies).map(found => [found.frequency, found.attentionFactor]);
}"""
CASES = [
    ("none", 1.0, None),
    ("linear", 3.0, None),
    ("ntk", 4.0, None),
    ("ntk", 1.7, None),
    ("dynamic", 2.0, 3000),
    ("dynamic", 2.0, 100),
    ("yarn", 1.0, None),
    ("yarn", 4.0, None),
    ("yarn", 16.0, None),
    ("llama3", 8.0, None),
]


@pytest.mark.parametrize(("base", "pairs", "trained"), [(10000.0, 16, 512), (500000.0, 32, 8192)])
def test_frequencies_are_those_of_transformers(opened, base, pairs, trained):
    from transformers import PretrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def config(kind, factor):
        made = PretrainedConfig()
        made.hidden_size, made.num_attention_heads, made.head_dim = 2 * pairs, 1, 2 * pairs
        made.max_position_embeddings = trained
        made.rope_parameters = {
            "rope_type": kind,
            "rope_theta": base,
            "factor": factor,
            "original_max_position_embeddings": trained,
            **({"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}),
        }
        return made

    own = [base ** (-i / pairs) for i in range(pairs)]
    cases = [
        {"frequency": own, "base": base, "method": m, "factor": f, "trainingLength": trained, "length": n or trained}
        for m, f, n in CASES
    ]
    cases += [{**one, "base": 777.0, "newBase": base} for one in cases]  # another base before, or none known
    cases += [{**one, "base": None} for one in cases[: len(CASES)] if one["method"] != "yarn"]
    found = opened("<p>").evaluate(RUNS.replace("SOURCE", resource("explorer/whatif.js")), cases)
    for case, (frequency, attention_factor) in zip(cases, found, strict=True):
        kind, factor, length = case["method"], case["factor"], case["length"]
        if kind == "ntk":  # transformers' dynamic NTK at a factor of 1 in a run of `factor` times the training length
            kind, length, factor = "dynamic", round(factor * trained), 1.0
        kind, factor = ("linear", 1.0) if kind == "none" else (kind, factor)
        own_frequency, own_factor = ROPE_INIT_FUNCTIONS[kind](config(kind, factor), torch.device("cpu"), length)
        np.testing.assert_allclose(frequency, own_frequency, rtol=2e-6, err_msg=str(case))
        assert attention_factor == pytest.approx(own_factor)


def test_frequencies_are_those_that_our_extensions_use(opened, bundled):
    rope = plain_rope(bundled)
    own = [rope.base ** (-2 * i / rope.rotary_dim) for i in range(rope.rotary_dim // 2)]
    given = {"frequency": own, "base": rope.base, "trainingLength": rope.training_length, "length": 2048, "factor": 4}
    cases = [{**given, "method": m} for m in ("none", "linear", "ntk", "dynamic", "yarn", "llama3")]
    found = opened("<p>").evaluate(RUNS.replace("SOURCE", resource("explorer/whatif.js")), cases)
    for case, (frequency, attention_factor) in zip(cases, found, strict=True):
        table = ph.rope_method(case["method"], 4).table(rope, 2048)
        np.testing.assert_allclose(frequency, table.inv_freq, rtol=2e-6, err_msg=case["method"])
        assert attention_factor == pytest.approx(table.attention_factor)


def test_the_mean_score_follows_the_controls(opened):
    made = synthetic_document(runs=1)
    page = opened(explorer_html(made), fragment="#L1H2")
    page.locator("#whatif-part").scroll_into_view_if_needed()
    page.locator("#whatif-chart svg").wait_for()
    own = made["details"]["L1H2"]["series"]["run-1"]

    def scores(frequency, size=1.0):
        distances = np.arange(65)
        waves = np.cos(np.outer(distances, frequency) + own["phase"])
        return size * waves @ np.array(own["amplitude"])

    def shown():
        page.locator("#whatif details.numbers").evaluate("one => { one.open = true; }")
        page.locator("#whatif details.numbers tbody tr").first.wait_for()
        rows = page.locator("#whatif details.numbers tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => Number(cell.textContent.replace('\\u2212', '-'))))"
        )
        return np.array(rows)

    pairs = len(own["phase"])
    plain = [10000 ** (-i / pairs) for i in range(pairs)]
    page.locator("#whatif-reach").fill("64")
    page.locator("#whatif-reach").press("Enter")
    page.wait_for_function("() => document.querySelector('#whatif-readout').textContent.includes('as it is')")
    rows = shown()
    assert rows[-1, 0] == 64
    np.testing.assert_allclose(rows[:, 1], scores(plain)[rows[:, 0].astype(int)], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(rows[:, 2], rows[:, 1])
    page.locator("#whatif-method").select_option("yarn")
    page.wait_for_function("() => !document.querySelector('#whatif-factor').disabled")
    page.evaluate("() => new Promise(done => setTimeout(done, 100))")
    changed = shown()
    low = max(math.floor(pairs * math.log(64 / (32 * 2 * math.pi)) / math.log(10000)), 0)
    high = min(math.ceil(pairs * math.log(64 / (2 * math.pi)) / math.log(10000)), 2 * pairs - 1)
    slow = np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
    frequency = np.array(plain) * (slow / 4 + 1 - slow)
    expected_scores = scores(frequency, (0.1 * math.log(4) + 1) ** 2)[changed[:, 0].astype(int)]
    np.testing.assert_allclose(changed[:, 2], expected_scores, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(changed[:, 1], rows[:, 1])
    high_score = changed[:, 2].argmax()
    readout = page.locator("#whatif-readout").inner_text()
    assert f"at distance {int(changed[high_score, 0])}, smallest" in readout.split("Changed: ")[1]
    page.locator("#whatif-reset").click()
    page.wait_for_function("() => document.querySelector('#whatif-factor').disabled")
    assert page.locator("#whatif-method").input_value() == "none"


def test_without_a_base_there_is_a_reason(opened):
    made = synthetic_document(runs=1)
    made["series"][0] |= {"base": None, "training_length": None, "capped": True}
    page = opened(explorer_html(made))
    page.locator("#whatif-part").scroll_into_view_if_needed()
    page.locator("#whatif-chart svg").wait_for()
    assert page.locator("#whatif-base").is_disabled()
    assert page.locator("#whatif-base-slider").is_disabled()
    why = page.locator("#whatif-why").inner_text()
    assert "no powers of one base" in why
    assert "need the training length" in why
    assert "tanh" in why
    enabled = "all => all.filter(one => !one.disabled).map(one => one.value)"
    assert page.locator("#whatif-method option").evaluate_all(enabled) == ["none", "linear"]
