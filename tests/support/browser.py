"""A browser without a network: after each test, no page may have said, asked for or run anything of its own.

With `LATE=200`, what our pages do on their own comes 200 ms late, so that tests which do not wait for it fail.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
PAINTED = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
LATE = """(() => {
    const late = call => function (...given) { setTimeout(() => call.apply(this, given), MILLISECONDS); };
    for (const name of ["IntersectionObserver", "ResizeObserver"]) {
        const Own = window[name];
        window[name] = class extends Own { constructor(call, options) { super(late(call), options); } };
    }
    const listen = EventTarget.prototype.addEventListener;
    EventTarget.prototype.addEventListener = function (kind, call, options) {
        const kinds = ["toggle", "hashchange", "popstate", "resize", "scroll"];
        const own = kinds.includes(kind) || this instanceof MediaQueryList;
        return listen.call(this, kind, own && typeof call === "function" ? late(call) : call, options);
    };
})()""".replace("MILLISECONDS", os.environ.get("LATE", "0"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: no chromium on the path, so that no view was opened; apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER: playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open pages without a network; afterwards nothing may have been said, asked for, or run."""
    contexts, heard, asked, visited, folders = [], [], [], [], []

    def visit(
        html: str | Path, *, width: int = 1200, quiet: bool = True, scheme: str = "light", fragment: str = ""
    ) -> Any:
        """Open a page, or a file, which may ask for those of its folder; one that is not `quiet` may ask for more."""
        if isinstance(html, Path):
            file = html
            folders.append(html.parent.as_uri())
        else:
            file = tmp_path / f"{len(contexts)}.html"
            file.write_text(html, encoding="utf-8")
            visited.append(file.as_uri())
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append((context, quiet))
        page = context.new_page()
        if "LATE" in os.environ and isinstance(html, str):
            page.add_init_script(LATE)
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
        assert [one for one in asked if not one.startswith((*folders, "about:"))] == visited
    assert pwned == [None] * len(contexts)
