"""A browser without a network: after each test, no page may have said, asked for or run anything of its own."""

import shutil

import pytest
from matplotlib.text import Text

from positional_heads.views.report import sections

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: no chromium on the path, so that no view was opened; apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER: playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open pages without a network; afterwards nothing may have been said, asked for, or run."""
    contexts, heard, asked, visited = [], [], [], []

    def visit(html, *, width=1200, quiet=True, scheme="light", fragment=""):
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append((context, quiet))
        visited.append(file.as_uri())
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"{message.type}: {message.text}") if quiet else None)
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri() + fragment)
        page.evaluate(PAINTED)
        return page

    yield visit
    pwned = [page.evaluate("() => window.pwned") for context, _ in contexts for page in context.pages]
    for context, _ in contexts:
        context.close()
    assert not heard
    if all(quiet for _, quiet in contexts):
        assert asked == visited
    assert pwned == [None] * len(contexts)


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
