"""Take the pictures of the explorer that docs/gallery.md shows: `python -m tests.support.screenshots RESULTS`.

RESULTS is a result folder, for those in the repository of SmolLM2, as docs/start.md makes one. A test takes the same
states of made-up results, so that a state which is not to be had is noticed.
"""

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
MOST_BYTES = 60_000
COLOURS = (128, 64, 32, 16)


def nothing(_page: Any) -> None:
    """Change nothing."""


def by_rho(page: Any) -> None:
    """Colour the atlas by rho."""
    page.locator("#measure").select_option("run-1/rho")


def last_text(page: Any) -> None:
    """Show the text that was recorded last, and a query in it."""
    page.locator("#tokens-text").select_option(index=page.locator("#tokens-text option").count() - 1)
    page.evaluate("() => explorer.settled()")
    last = int(page.locator("#tokens-jump").get_attribute("max") or 1)
    page.locator("#tokens-jump").fill(str(last // 3))
    page.locator("#tokens-jump").press("Enter")


def linear(page: Any) -> None:
    """Extend the context by linear interpolation."""
    page.locator("#whatif-method").select_option("linear")


@dataclass(frozen=True)
class State:
    """A picture: what the address asks for, what is clicked, and which part is in the picture; the window if none."""

    name: str
    heads: str = ""
    part: str = ""
    width: int = 1280
    scheme: str = "light"
    act: Callable[[Any], None] = nothing


STATES = (
    State("explorer"),
    State("explorer-dark", scheme="dark"),
    State("explorer-phone", width=390),
    State("explorer-rho", part="atlas", act=by_rho),
    State("explorer-curves", heads="2", part="curves"),
    State("explorer-pairs", part="pairs"),
    State("explorer-effects", part="effects"),
    State("explorer-compared", heads="2", part="compared"),
    State("explorer-tokens", part="tokens", act=last_text),
    State("explorer-whatif", part="whatif", act=linear),
)


def screenshots(browser: Any, file: Path, heads: tuple[str, str]) -> Iterator[tuple[State, bytes]]:
    """Every state of an explorer, as a small PNG.

    Args:
        browser: Playwright's.
        file: The explorer's page.
        heads: Which head to choose, and which beside it.
    """
    page = browser.new_context(offline=True).new_page()
    page.goto(file.as_uri())
    for state in STATES:
        page.set_viewport_size({"width": state.width, "height": 900 if state.width > 390 else 780})
        page.emulate_media(color_scheme=state.scheme)
        page.evaluate("hash => { location.hash = hash; }", ",".join(heads if state.heads else heads[:1]))
        page.evaluate("() => explorer.settled()")
        if state.part:
            page.locator(f"#{state.part}-part").scroll_into_view_if_needed()
            page.locator(f"#{state.part}:not([data-stale])").wait_for()  # drawn when it comes into view
        state.act(page)
        page.evaluate("() => explorer.settled()")
        page.wait_for_timeout(100)
        yield state, small(page.locator(f"#{state.part}-part").screenshot() if state.part else page.screenshot())
    page.context.close()


def small(png: bytes) -> bytes:
    """A picture in as many colours as fit in its size."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        packed = io.BytesIO()
        image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
        if packed.tell() < MOST_BYTES:
            break
    return packed.getvalue()


def plots(folder: Path) -> Iterator[tuple[str, Any]]:
    """Figures that no notebook keeps, each by its name: of the results in a folder, and of those in the repository."""
    import positional_heads as ph
    from tests.support.synthetic_recommendation import planted_recommendation

    profile = ph.HeadProfile.load(folder / "profile")
    yield "profile_maps", ph.views.profile_maps(profile)
    yield "pair_curves", ph.views.pair_curves(profile)
    yield "comparison", ph.views.comparison(ph.Comparison.load(folder / "compare"))
    model = ph.load_bundled_model()
    texts = ph.cut_text(model, ph.bundled_text(), 256)[:4]
    yield "distance_curves", ph.views.distance_curves(ph.distance_profile(model, texts))
    kept = PICTURES.parents[1] / "experiments" / "small" / "emergence-rotary-1e4-0"
    yield "emergence_tracks", ph.views.emergence_tracks(ph.EmergenceStudy.load(kept))
    losses = {"none": 2.0, "yarn 2": 1.5, "yarn 4": 1.2, "ntk 2": 1.7, "ntk 4": 1.4, "linear 2": 1.8, "linear 4": 1.6}
    yield "loss_by_factor", ph.views.loss_by_factor(planted_recommendation(losses, name="made-up numbers"))


def pages(folder: Path, head: str) -> Iterator[tuple[str, str]]:
    """Pages beside the explorer, each by its name: token views of one head, and the report of a folder."""
    import positional_heads as ph
    from positional_heads.views.report.page import report_html

    examples = ph.HeadExamples.load(folder / "scores")
    yield "attention_view", ph.views.attention_view(examples, heads=[head]).html
    yield "token_view", ph.views.token_view(examples, "distance", heads=[head]).html
    yield "contribution_view", ph.views.contribution_view(examples, head, 40).html
    yield "report", report_html(folder / "scores")


def main(folder: Path, heads: tuple[str, str] = ("L4H1", "L16H6")) -> None:
    """Write the pictures of a result folder into docs/pictures."""
    from playwright.sync_api import sync_playwright

    import positional_heads as ph

    PICTURES.mkdir(exist_ok=True)
    file = Path("page-of-screenshots.html").resolve()
    try:
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            ph.explore(folder).save(file)
            for state, png in screenshots(chromium, file, heads):
                (PICTURES / f"{state.name}.png").write_bytes(png)
            for name, html in pages(folder, heads[0]):
                file.write_text(html, encoding="utf-8")
                page = chromium.new_context(offline=True, viewport={"width": 900, "height": 640}).new_page()
                page.goto(file.as_uri())
                page.wait_for_timeout(1500)
                (PICTURES / f"{name}.png").write_bytes(small(page.screenshot()))
    finally:
        file.unlink(missing_ok=True)
    for name, figure in plots(folder):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=80)
        (PICTURES / f"{name}.png").write_bytes(small(drawn.getvalue()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
