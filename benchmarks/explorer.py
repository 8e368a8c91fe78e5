"""What a click in the explorer takes, in a model of 80 layers by 64 heads against one of 3 by 4.

`python -m benchmarks.explorer`, a minute; needs Chromium and playwright. A click counts until every chart in view has
its new rows and the browser has painted twice. Every chart was drawn once before.
"""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.timing import markdown_table, setting, write_results
from positional_heads.views.explorer.page import explorer_html
from tests.support.synthetic_explorer import synthetic_document

SHAPES = {"3 x 4": (3, 4, 32), "30 x 9": (30, 9, 32), "80 x 64": (80, 64, 16)}
CLICKS = 20
CLICK = """async place => {
    const cell = document.querySelector("#heads-table tbody").rows[place].querySelector("button");
    const start = performance.now();
    cell.click();
    await explorer.settled();
    const drawn = performance.now() - start;
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return [drawn, performance.now() - start];
}"""


def clicks(browser: Any, shape: tuple[int, int, int], folder: Path) -> tuple[list[float], list[float], float]:
    """Milliseconds of each click, drawn and painted, and the size of the page in MB."""
    file = folder / "page.html"
    file.write_text(explorer_html(synthetic_document(*shape, 60)), encoding="utf-8")
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
    page.goto(file.as_uri())
    page.evaluate("() => explorer.settled()")
    for top in range(0, page.evaluate("() => document.documentElement.scrollHeight"), 300):
        page.evaluate("top => scrollTo(0, top)", top)
        page.wait_for_timeout(100)
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(500)
    rows = page.locator("#heads-table tbody tr").count()
    timed = [page.evaluate(CLICK, place % rows) for place in range(CLICKS)]
    page.context.close()
    return [one for one, _ in timed], [one for _, one in timed], file.stat().st_size / 1e6


def main() -> None:
    """Measure each shape and write the table."""
    from playwright.sync_api import sync_playwright

    results = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, shape in SHAPES.items():
            drawn, painted, size = clicks(browser, shape, Path(folder))
            results[name] = {
                "drawn_ms": statistics.median(drawn),
                "painted_ms": statistics.median(painted),
                "slowest_painted_ms": max(painted),
                "page_mb": size,
            }
        browser.close()
    smallest = results["3 x 4"]["painted_ms"]
    rows = [
        [name, *(f"{one[key]:.0f}" for key in ("drawn_ms", "painted_ms", "slowest_painted_ms")),
         f"{one['painted_ms'] / smallest:.1f}", f"{one['page_mb']:.1f}"]
        for name, one in results.items()
    ]  # fmt: skip
    header = ["layers x heads", "drawn, ms", "painted, ms", "slowest of 20, ms", "x 3 by 4", "page, MB"]
    where = ", ".join(f"{key} {value}" for key, value in setting().items())
    text = f"# A click in the explorer\n\n{where}. Medians of {CLICKS} clicks on heads, every chart drawn before.\n"
    write_results("explorer", f"{text}\n{markdown_table(header, rows)}", {"setting": setting(), "results": results})


if __name__ == "__main__":
    main()
