"""The documentation site: it builds without a warning, loads nothing from elsewhere, and names what exists."""

import contextlib
import importlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import positional_heads as ph

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = {page.name: page.read_text() for page in (DOCS / "api").glob("*.md")}
PAGES = {page.name: page.read_text() for page in DOCS.glob("*.md")}
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
NOT_LOADED = {"canonical", "prev", "next", "alternate"}


class Loaded(HTMLParser):
    """What a browser would fetch for a page, and which ids the page has."""

    def __init__(self):
        super().__init__()
        self.addresses = []
        self.ids = set()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids.add(given.get("id"))
        if tag in LOADING and given.get("rel") not in NOT_LOADED and given.get(LOADING[tag]):
            self.addresses.append(given[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("NO SITE: mkdocs-material or mkdocstrings is not installed (extra docs), so nothing was built")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert built.returncode == 0, built.stderr
    return folder


def html_pages(site):
    return {str(file.relative_to(site)): file.read_text() for file in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_is_built_and_none_loads_anything_from_elsewhere(site):
    built = html_pages(site)
    assert {name.replace(".md", ".html") for name in PAGES} <= set(built)
    for name, html in built.items():
        page = Loaded()
        page.feed(html)
        assert page.addresses, name
        for address in page.addresses:
            assert not re.match(r"(?:[a-z]+:)?//", address), (name, address)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_every_public_name_has_its_place_in_the_reference(site):
    reference = Loaded()
    for name, html in html_pages(site).items():
        if name.startswith("api/"):
            reference.feed(html)
    assert {f"positional_heads.{name}" for name in ph.__all__ if name not in {"views", "formats"}} <= reference.ids
    assert {f"positional_heads.views.{name}" for name in ph.views.__all__} <= reference.ids
    assert {f"positional_heads.formats.{name}" for name in ph.formats.__all__ if name != "PUBLISHED"} <= reference.ids


@pytest.mark.slow
def test_the_search_knows_the_pages_and_the_reference(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    places = {entry["location"] for entry in index["docs"]}
    assert "limits.html" in places
    assert "api/scoring.html#positional_heads.score_heads" in places


def test_the_reference_names_everything_public_once():
    named = re.findall(r"^::: (\S+)$", "\n".join(API.values()), flags=re.MULTILINE)
    assert len(named) == len(set(named))
    assert {f"positional_heads.{name}" for name in ph.__all__ if name not in {"views", "formats"}} <= set(named)
    for name in named:
        assert resolved(name) is not None, name


@pytest.mark.parametrize("page", PAGES)
def test_names_of_code_exist(page):
    for name in re.findall(r"`(positional_heads(?:\.\w+)+)", PAGES[page]):
        assert resolved(name) is not None, name
    for name in re.findall(r"`ph\.([\w.]+)", PAGES[page]):
        assert resolved(f"positional_heads.{name}") is not None, name


def test_every_equation_names_a_function_and_a_test_that_exist():
    items = re.split(r"^- ", PAGES["equations.md"], flags=re.MULTILINE)[1:]
    assert len(items) > 30
    for item in items:
        assert re.search(r"^    - `positional_heads\.", item, flags=re.MULTILINE), item
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", item)
        assert tests, item
        for file, name in tests:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), flags=re.MULTILINE), f"{file}::{name}"


def test_what_the_page_on_scaling_prints_is_what_it_shows():
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGES["scaling.md"], flags=re.DOTALL)
    assert len(blocks) == 1
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "scaling.md", "exec"), {})
        assert printed.getvalue() == shown


def test_settings_that_the_page_on_scoring_lists_can_be_given():
    import inspect

    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| .* \|$", PAGES["score.md"], flags=re.MULTILINE)
    names = [name for cell in listed for name in re.findall(r"`(\w+)`", cell)]
    can_be = {*inspect.signature(ph.score_heads).parameters, *ph.ScoringSettings.__dataclass_fields__}
    chosen = PAGES["score.md"].split("## Settings")[1].split("## ")[0]
    asked = [name for name in names if f"| `{name}`" in chosen or f", `{name}` |" in chosen]
    assert {"null_repeats", "skip_keys", "pairs", "max_distance"} <= set(asked)
    assert set(asked) <= can_be


def resolved(name):
    """What a dotted name stands for, wherever modules end and attributes begin; None where there is no such thing."""
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], start=2):
        fields = getattr(value, "__dataclass_fields__", {})
        value = fields[part] if part in fields else getattr(value, part, None)
        if value is None:
            with contextlib.suppress(ModuleNotFoundError):
                value = importlib.import_module(".".join(parts[:place]))
        if value is None:
            return None
    return value
