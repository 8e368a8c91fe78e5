"""A browser without a network: after each test, no page may have said, asked for or run anything of its own.

With `LATE=200`, what our pages do on their own comes 200 ms late, so that tests which do not wait for it fail.
"""

import contextlib
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


@pytest.fixture(scope="session")
def blank_pages(browser: Any) -> Iterator[list[Any]]:
    """Pages without a network that are free again: a new one takes as long as what most tests do with it."""
    context = browser.new_context(offline=True)
    if "LATE" in os.environ:
        context.add_init_script(LATE)
    free: list[Any] = [context.new_page()]
    yield free
    context.close()


@pytest.fixture
def opened(blank_pages: list[Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open pages without a network; afterwards nothing may have been said, asked for, or run."""
    pages, heard, asked, visited, folders = [], [], [], [], []
    quietly = True

    def note(message: Any) -> None:
        heard.append(f"{message.type}: {message.text}")

    def fault(error: Any) -> None:
        heard.append(str(error))

    def request(one: Any) -> None:
        asked.append(one.url)

    heard_of = {"console": note, "pageerror": fault, "request": request}

    def visit(
        html: str | Path, *, width: int = 1200, quiet: bool = True, scheme: str = "light", fragment: str = ""
    ) -> Any:
        """Open a page, or a file, which may ask for those of its folder; one that is not `quiet` may ask for more."""
        nonlocal quietly
        quietly &= quiet
        if isinstance(html, Path):
            file = html
            folders.append(html.parent.as_uri())
        else:
            file = tmp_path / f"{len(pages)}.html"
            file.write_text(html, encoding="utf-8")
            visited.append(file.as_uri())
        page = blank_pages.pop() if blank_pages else pages[0].context.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme, media="null")
        for kind, hear in heard_of.items():
            if quiet or kind != "console":
                page.on(kind, hear)
        page.goto(file.as_uri() + fragment)
        page.evaluate(PAINTED)
        return page

    yield visit
    pwned = [page.evaluate("() => window.pwned") for page in pages]
    for page in pages:
        for kind, hear in heard_of.items():
            with contextlib.suppress(KeyError):
                page.remove_listener(kind, hear)
        page.goto("about:blank")
        blank_pages.append(page)
    assert not heard
    if quietly:
        assert [one for one in asked if not one.startswith((*folders, "about:"))] == visited
    assert pwned == [None] * len(pages)
