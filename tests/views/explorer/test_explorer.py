"""An explorer saves itself whole, shows itself in notebooks, and is served on the loopback address only."""

import http.client
import json
import re
import socket
import threading

import pytest

import positional_heads as ph
from positional_heads.views.explorer import explorer as explorers
from positional_heads.views.explorer.page import explorer_files
from positional_heads.views.explorer.serving import server
from tests.support.browser import PAINTED
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_examples import synthetic_examples
from tests.views.explorer.test_panels import document

LAYERS = {f"explorer_data/L{layer}.json" for layer in range(3)}


@pytest.fixture(scope="module")
def small():
    made = ph.explore(synthetic_scores())
    assert not made.several_files
    return made


@pytest.fixture
def large(small, monkeypatch):
    """The same, as if it were too large for one file."""
    monkeypatch.setattr(explorers, "LARGEST_PAGE", 1000)
    return ph.explore(synthetic_scores())


def test_a_folder_gets_explorer_html_and_a_file_its_own_name(small, tmp_path):
    assert small.save(tmp_path) == tmp_path / "explorer.html"
    assert small.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "explorer.html"
    assert small.save(str(tmp_path / "mine.html")) == tmp_path / "mine.html"
    assert (tmp_path / "mine.html").read_text() == (tmp_path / "explorer.html").read_text() == small.html
    assert not (tmp_path / "explorer_data").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        small.save(tmp_path / "file" / "explorer.html")


def test_a_large_page_has_a_file_for_each_layer(large, tmp_path):
    page = large.save(tmp_path)
    assert large.several_files
    data = {
        f"explorer_data/{file.name}": json.loads(file.read_text()) for file in (tmp_path / "explorer_data").iterdir()
    }
    assert set(data) == LAYERS
    assert {name: detail for layer in data.values() for name, detail in layer.items()} == large.document["details"]
    assert len(page.read_text()) < len(large.html)
    with pytest.raises(ValueError, match=r"too large for one file.*give a folder"):
        large.save(tmp_path / "mine.html")
    assert not (tmp_path / "mine.html").exists()


def test_files_of_an_earlier_large_page_go_and_others_stay(large, small, tmp_path):
    large.save(tmp_path)
    (tmp_path / "explorer_data" / "L99.json").write_text("{}")
    large.save(tmp_path)
    assert not (tmp_path / "explorer_data" / "L99.json").exists()
    assert {f"explorer_data/{file.name}" for file in (tmp_path / "explorer_data").iterdir()} == LAYERS
    (tmp_path / "explorer_data" / "Letter.json").write_text("{}")
    small.save(tmp_path)
    assert [file.name for file in (tmp_path / "explorer_data").iterdir()] == ["Letter.json"]


def test_notebooks_get_a_sandboxed_frame_and_text(small, large):
    shown = small._repr_mimebundle_(include=None, exclude=None)
    assert '<iframe title="made up" sandbox="allow-scripts" srcdoc="' in shown["text/html"]
    assert "<script" not in shown["text/html"]
    assert shown["text/plain"] == repr(small)
    assert repr(small).startswith("Explorer('made up': 3 layers of 4 heads, 1 result; display it in Jupyter")
    assert "save it" in large._repr_html_()
    assert "<iframe" not in large._repr_html_()


def test_a_title_can_be_given_and_is_escaped():
    made = ph.explore(synthetic_scores(), title="<b>&\u202e")
    assert made.document["title"] == "<b>&\\u202e"
    assert "<title>&lt;b&gt;&amp;\\u202e" in made.html
    assert '<iframe title="&lt;b&gt;&amp;\\u202e"' in made._repr_html_()


@pytest.fixture
def served(large):
    """Ask a server of a large explorer; afterwards it ends."""
    serving = server(large.files)
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def ask(path, method="GET", host=None):
        connection = http.client.HTTPConnection(*serving.server_address, timeout=10)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{serving.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer, content

    yield serving, ask
    serving.shutdown()
    serving.server_close()
    thread.join()


def test_a_server_gives_its_own_files_under_a_strict_policy(served, large):
    _, ask = served
    for path, name in {"/": "explorer.html", **{f"/{name}": name for name in large.files}}.items():
        answer, content = ask(path)
        assert (answer.status, content) == (200, large.files[name])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"].startswith("application/json" if "json" in name else "text/html")
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
    stated = re.search(r'Content-Security-Policy" content="([^"]+)"', large.files["explorer.html"])
    assert ask("/")[0].headers["Content-Security-Policy"].startswith(stated[1])
    assert ask("/?x#L0H1", method="HEAD")[1] == ""


NOT_THERE = (
    *("/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/explorer_data/", "/explorer_data", "/explorer_data/../x"),
    *("/%2e%2e/%2e%2e/etc/passwd", "/explorer_data/L9.json", "/explorer_data/%4c0.json", "/.", "*", "http://x/"),
)


def test_a_server_has_no_other_file_and_no_listing(served):
    _, ask = served
    for path in NOT_THERE:
        answer, content = ask(path)
        assert (answer.status, content) == (404, "no such file\n"), path


def test_a_server_answers_to_its_own_address_only(served):
    serving, ask = served
    port = serving.server_port
    for host in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"127.0.0.1.evil.example:{port}", ""):
        assert ask("/", host=host or " ")[0].status == 403, host
    assert ask("/", host=f"localhost:{port}")[0].status == 200
    assert ask("/", method="POST")[0].status == 501
    assert serving.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        other.settimeout(2)
        assert other.connect_ex(("127.0.0.2", port)) != 0  # another address of this machine


@pytest.mark.slow
def test_a_browser_reads_the_layers_from_the_server(served, browser, large):
    serving, _ = served
    address = f"http://127.0.0.1:{serving.server_port}/"
    page = browser.new_context().new_page()
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("response", lambda answer: asked.append((answer.url.removeprefix(address), answer.status)))
    page.goto(f"{address}#L1H2")
    page.evaluate("() => explorer.settled()")
    page.locator("#curves-part").scroll_into_view_if_needed()
    page.wait_for_function("() => explorer.rows('curves', 'lines').length > 0")
    drawn = [row["value"] for row in page.evaluate("() => explorer.rows('curves', 'lines')")]
    page.context.close()
    assert set(large.document["details"]["L1H2"]["curves"]["run-1"]["mean"]) <= set(drawn)
    assert not heard
    assert sorted(set(asked)) == [("", 200), ("explorer_data/L1.json", 200)]


@pytest.fixture
def visit(browser):
    """Open an address of a served page that has every part and two texts, one of layer 0 and one of layer 1."""
    made = document(*(synthetic_examples(pairs=8, seed=seed) for seed in range(2)))
    text = made["texts"][1]
    text["heads"], text["tokens"] = ["L1H0", "L1H1"], [f"b{number}" for number in range(len(text["tokens"]))]
    for number in range(2):
        of_texts = made["details"][f"L0H{number}"]["texts"]
        made["details"][f"L1H{number}"]["texts"] = {text["id"]: of_texts.pop(text["id"])}
    serving = server(explorer_files(made))
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    context = browser.new_context()

    def opened_page(fragment, part, late=None):
        page = context.new_page()
        if late:
            page.route(f"**/{late[0]}.json", late[1])
        page.goto(f"http://127.0.0.1:{serving.server_port}/{fragment}")
        page.locator(f"#{part}-part").scroll_into_view_if_needed()
        return page

    yield opened_page
    context.close()
    serving.shutdown()
    serving.server_close()
    thread.join()


def choose(page, heads):
    """Ask for heads by the address, without waiting for their numbers."""
    page.evaluate("heads => { location.hash = heads }", heads)
    page.wait_for_function("heads => explorer.state().heads.join() === heads", arg=heads)


@pytest.mark.slow
def test_numbers_that_come_late_are_not_drawn_over_those_of_a_later_choice(visit):
    held = []

    def hold(route):
        held.append(route)

    page = visit("#L1H2", "curves", late=("L0", hold))
    page.locator("#curves:not([data-stale])").wait_for()
    choose(page, "L0H1")
    choose(page, "L1H3")
    page.locator("#curves:not([data-stale])").wait_for()
    with page.expect_response("**/L0.json"):
        held[0].continue_()
    page.evaluate("() => explorer.settled()")
    page.evaluate(PAINTED)
    drawn = page.evaluate("() => explorer.rows('curves', 'lines').map(row => row.series.split(' ')[0])")
    assert {*drawn} == {"L1H3"}
    assert "L0H1" not in page.locator("#curves").inner_text()


@pytest.mark.slow
def test_what_was_asked_for_out_of_sight_is_not_drawn_from_earlier_numbers(visit):
    held = {}

    def hold(route):
        held[route.request.url.split("/")[-1]] = route
        if route.request.url.endswith("L2.json"):
            route.continue_()

    page = visit("#L2H0", "extensions", late=("L*", hold))
    page.locator("#extensions:not([data-stale])").wait_for()
    choose(page, "L0H1")
    page.evaluate("() => scrollTo(0, 0)")
    page.evaluate(PAINTED)
    choose(page, "L1H0")
    with page.expect_response("**/L0.json"):
        held["L0.json"].continue_()
    page.evaluate(PAINTED)
    page.locator("#extensions-part").scroll_into_view_if_needed()
    page.evaluate(PAINTED)
    assert page.locator("#extensions[data-stale]").count() == 1
    assert "L1H0" not in page.locator("#extensions").inner_text()
    held["L1.json"].continue_()
    page.locator("#extensions:not([data-stale])").wait_for()
    assert "L1H0;" in page.locator("#extensions").inner_text()


@pytest.mark.slow
def test_numbers_that_could_not_be_read_are_not_said_to_be_missing(visit):
    page = visit("#L0H1", "curves", late=("L0", lambda route: route.abort()))
    said, trouble = page.locator("#curves > p.soft"), page.locator("#trouble")
    for heads, words in (
        ("L0H1", "The numbers of L0H1 could not be read."),
        ("L1H2", "L1H2 ("),
        ("L1H2,L0H1", "The numbers of L0H1 could not be read."),
    ):
        choose(page, heads)
        said.filter(has_text=words).wait_for()
        assert "layer 0 could not be read" in trouble.inner_text()
    page.unroute_all()
    page.locator("#whatif-part").scroll_into_view_if_needed()  # which reads the layer for itself
    trouble.wait_for(state="hidden")
    page.locator("#curves-part").scroll_into_view_if_needed()
    said.filter(has_text="L0H1 (").wait_for()


@pytest.mark.slow
def test_tokens_are_those_of_one_text_while_another_is_late(visit):
    held = []

    def hold(route):
        held.append(route)

    page = visit("#L0H1&query=4", "tokens", late=("L1", hold))
    page.locator("#tokens-keys tbody tr").first.wait_for()
    page.evaluate("() => { location.hash = '#L1H0&query=4' }")
    page.wait_for_function("() => explorer.state().focus === 'L1H0'")
    before = page.locator(".token").all_text_contents()
    page.locator("#token-4").hover()
    assert f"“{before[4]}”" in page.locator("#tokens-readout").inner_text()
    page.locator("#tokens-find").fill(before[2])
    assert page.locator(".token").all_text_contents() == before
    page.locator("#token-2").click()
    assert "b2" not in page.locator("#said").inner_text()
    held[0].continue_()
    page.locator("#tokens:not([data-stale])").wait_for()
    assert page.locator(".token").first.inner_text() == "b0"
    assert page.locator("#tokens-text").input_value() == "text-2"
    assert page.locator("#tokens-found").inner_text() == "0 found"
    choose(page, "L2H0")  # of no text: the select says which is shown
    page.locator("#tokens-away").wait_for()
    assert page.locator("#tokens-text").input_value() == "text-1"
