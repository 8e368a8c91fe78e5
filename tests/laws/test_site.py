"""The documentation site: it builds without a warning, loads nothing from elsewhere, and names what exists.

The pages of the hooks (docs/hooks) are compared with what they come from: `--help`, the notebooks, the reference.
"""

import base64
import contextlib
import importlib
import importlib.util
import io
import json
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import positional_heads as ph
from positional_heads.cli import app

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
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "mkdocstrings", "latex2mathml")):
        pytest.skip("NO SITE: mkdocs-material, mkdocstrings or latex2mathml is missing (extra docs): nothing was built")
    return built(tmp_path_factory.mktemp("site"))


def built(folder, *options, address=""):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), *options]
    known = os.environ | {"REPOSITORY_URL": address, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def html_pages(site):
    return {str(file.relative_to(site)): file.read_text() for file in site.rglob("*.html")}


class Article(HTMLParser):
    """What a page says between its header and its footer, and where each piece of its inline code leads."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.codes, self.tags, self.places = [], "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "br", "hr", "input", "meta", "link", "source"}:
            self.open.append((tag, dict(attrs)))
        if tag == "code":
            self.codes.append(("", self.link(), [name for name, _ in self.open]))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        names = [name for name, _ in self.open]
        if "article" in names and "script" not in names:
            self.text += data
        if "code" in names and self.codes:
            text, *others = self.codes[-1]
            self.codes[-1] = (text + data, *others)

    def link(self):
        return next((given.get("href") for name, given in reversed(self.open) if name == "a"), None)

    def has(self, words):
        return " ".join(words.split()) in " ".join(self.text.split())


@pytest.mark.slow
def test_every_page_is_built_and_none_loads_anything_from_elsewhere(site):
    pages = html_pages(site)
    assert {name.replace(".md", ".html") for name in PAGES} <= set(pages)
    for name, html in pages.items():
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
def test_inline_code_that_names_something_public_leads_to_its_place_in_the_reference(site):
    pages = html_pages(site)
    found = set()
    for name, html in pages.items():
        if name.startswith("api/"):
            continue
        for text, link, around in Article(html).codes:
            named = re.match(r"ph\.(\w+)", text)
            if not named or named[1] not in set(ph.__all__) - {"views", "formats"} or {"pre", "h1", "h2"} & {*around}:
                continue
            assert link, (name, text)
            if "#positional_heads." not in link:  # one that the page gives itself
                continue
            target, _, place = posixpath.normpath(posixpath.join(posixpath.dirname(name), link)).partition("#")
            assert f'id="{place}"' in pages[target], (name, link)
            assert place.removeprefix("positional_heads.").split(".")[0] == named[1]
            found.add((name, place))
    assert len({name for name, _ in found}) > 8
    assert len({place for _, place in found}) > 15
    assert 'api/scoring.html#positional_heads.score_heads"><span class="n">ph</span>' in pages["index.html"]


@pytest.mark.slow
def test_the_page_of_a_command_says_what_its_help_says(site):
    commands = {str(command.callback.__name__): command for command in app.registered_commands}
    pages = html_pages(site)
    overview = Article(pages["commands/index.html"])
    assert len(commands) > 10
    for name in commands:
        assert overview.has(name)
        page = Article(pages[f"commands/{name}.html"])
        told = CliRunner().invoke(app, [name, "--help"], terminal_width=10_000, prog_name="positional-heads").stdout
        for piece in re.split(r"\n|(?<=\S)  +", told):
            said = piece.strip().removeprefix("Usage: ").removeprefix("Example: ").removesuffix(":")
            assert page.has(said), (name, said)
        options = re.findall(r"^  (--[\w-]+)", told, flags=re.MULTILINE)
        assert {*options} <= {given.get("id") for tag, given in page.tags if tag == "tr"}


@pytest.mark.slow
@pytest.mark.parametrize("file", [file.name for file in (ROOT / "notebooks").glob("*.ipynb")])
def test_a_notebook_is_there_with_its_code_its_outputs_and_its_pictures(site, file):
    notebook = json.loads((ROOT / "notebooks" / file).read_text())
    html = (site / "notebooks" / file.replace(".ipynb", ".html")).read_text()
    page = Article(html)
    pictures = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert page.has("".join(cell["source"]))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            pictures += [base64.b64decode(data["image/png"])] if "image/png" in data else []
            if not {"image/png", "text/html"} & {*data}:
                assert page.has("".join(output.get("text", "") or data["text/plain"]))
            if "<td>" in "".join(data.get("text/html", "")):
                cells = re.findall(r"<td>([\w.-]+)</td>", "".join(data["text/html"]))
                assert page.has(cells[0])
                assert html.count("<td>") >= len(cells)
    shown = [given for tag, given in page.tags if tag == "img" and str(given.get("src", "")).startswith(file[:-6])]
    assert [(site / "notebooks" / given["src"]).read_bytes() for given in shown] == pictures
    assert all(given["alt"] for given in shown)
    prose = re.sub(r"<code.*?</code>", "", html, flags=re.DOTALL)
    assert "$$" not in prose
    assert r"\rho" not in prose


def test_nothing_in_an_output_of_a_notebook_can_run():
    pytest.importorskip("latex2mathml", reason="NO SITE: latex2mathml is missing (extra docs)")
    notebooks = hook("notebooks")
    hostile = "<img src=x onerror=a()><script>a()</script></div></code></pre>\n```\n<b onclick=a()>\n\n<svg onload=a()>"
    table = f"<table onclick=a()><tr><td colspan=2 rowspan='x'>1 &lt;i&gt;</td></tr>{hostile}<a href='javascript:a()'>"
    outputs = [
        {"data": {"text/html": [table], "text/plain": "x"}},
        {"data": {"text/plain": [hostile]}},
        {"text": [hostile]},
        {"data": {"text/html": "<iframe srcdoc='<script>a</script>'></iframe>", "text/plain": [hostile]}},
    ]
    import markdown

    for output in outputs:
        text = notebooks.shown(output, "x", hostile, {})
        html = markdown.markdown(text, extensions=["pymdownx.superfences", "pymdownx.highlight"])
        allowed = {"p", "div", "pre", "code", "span", "table", "tr", "td", "b", "tbody"}
        for tag, given in Article(html).tags:
            assert tag in allowed
            assert given.keys() <= {"class", "colspan", "data-search-exclude"}
    kept = notebooks.shown(outputs[0], "x", "", {})
    assert '<td colspan="2">1 &lt;i&gt;</td>' in kept
    assert kept.count("<div") == kept.count("</div>") == 1
    picture = notebooks.shown({"data": {"image/png": "AAAA"}}, "x", '"><script>', {})
    assert [tag for tag, _ in Article(picture).tags] == ["p", "img"]


def test_links_to_the_repository_are_there_only_where_its_address_is_known(tmp_path):
    pytest.importorskip("latex2mathml", reason="NO SITE: latex2mathml is missing (extra docs)")
    pytest.importorskip("material", reason="NO SITE: mkdocs-material is missing (extra docs)")
    notebooks = hook("notebooks")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start")
    small = "plugins: []\nhooks: []\nextra: {polyfills: []}\nextra_css: []\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\n{small}")
    for address in ("", "https://code.example/heads"):
        page = built(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"), address=address) / "index.html"
        assert ("md-source" in page.read_text()) == bool(address)
        assert (f'href="{address}"' in page.read_text()) == bool(address)
        config = SimpleNamespace(repo_url=address)
        linked = notebooks.with_links("[kept](../experiments) [a](../docs/score.md#texts) [b](2_x.ipynb)", config)
        kept = f"[kept]({address}/blob/HEAD/experiments)" if address else "kept"
        assert linked == f"{kept} [a](../score.md#texts) [b](2_x.md)"


@pytest.mark.slow
def test_search_works_from_disk_without_a_network(site, opened):
    page = opened(site / "index.html")
    page.locator("input.md-search__input").press_sequentially("saturation")  # the theme listens to keys
    hits = page.locator("a.md-search-result__link")
    hits.first.wait_for()
    addresses = hits.evaluate_all("all => all.map(link => link.getAttribute('href'))")
    assert any("limits.html" in address for address in addresses)


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


def hook(name):
    """A module of docs/hooks, as mkdocs imports it."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
