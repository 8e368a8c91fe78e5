"""The notebooks as pages, with the outputs that they were kept with; nothing is run, and nothing of an output can run.

Text is escaped, of HTML only tables and emphasis are kept, pictures become files, and formulas MathML, which browsers
draw.
"""

import base64
import json
import posixpath
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SECTION = "Notebooks"
KEPT_TAGS = {"b", "br", "caption", "code", "div", "em", "p", "strong", "table", "tbody", "td", "th", "thead", "tr"}
SPANS = {"colspan", "rowspan"}
WITHOUT_TEXT = ("script", "style", "template", "title")
FORMULA = re.compile(r"(```.*?```|`[^`\n]*`)|(\$\$?)(?=\S)(.+?)(?<=\S)\2", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages where the navigation has a section for them."""
    for entry in config.nav:
        if SECTION in entry:
            names = [page_name(file) for file in stored(config)]
            entry[SECTION] = ["notebooks/index.md", *(f"notebooks/{name}" for name in names)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and their pictures."""
    folder = _folder(config)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "notebooks/index.md", content=with_links(readme, config)))
    for file in stored(config):
        pictures: dict[str, bytes] = {}
        page = page_of(json.loads(file.read_text(encoding="utf-8")), file.stem, pictures, config)
        files.append(File.generated(config, f"notebooks/{page_name(file)}", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def stored(config: MkDocsConfig) -> list[Path]:
    """The notebooks, in their order."""
    return sorted(_folder(config).glob("*.ipynb"), key=lambda file: int(file.name.split("_")[0]))


def page_name(file: Path) -> str:
    """Name of a notebook's page."""
    return f"{file.stem}.md"


def page_of(notebook: dict[str, Any], stem: str, pictures: dict[str, bytes], config: MkDocsConfig) -> str:
    """The page of a notebook, in Markdown.

    Args:
        notebook: Its JSON.
        stem: Its name, from which its pictures get theirs.
        pictures: Its pictures are added here, by file name.
        config: The site's.
    """
    parts, heading = [], stem
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(with_formulas(with_links(text, config)))
            heading = (re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE) or [heading])[-1]
        elif cell["cell_type"] == "code":
            parts.append(fenced(text, "python"))
            parts += [shown(output, stem, heading, pictures) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any], stem: str, heading: str, pictures: dict[str, bytes]) -> str:
    """One output of a cell, in Markdown: its picture, its table, or its text.

    Args:
        output: The output.
        stem: Name of the notebook.
        heading: Where it is, to describe a picture.
        pictures: Its picture is added here.
    """
    data = {kind: value if kind.endswith("json") else "".join(value) for kind, value in output.get("data", {}).items()}
    if "image/png" in data:
        name = f"{stem}_{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode(data["image/png"])
        return f'<p class="output"><img src="{name}" alt="{escape(f"Picture of: {heading}")}" loading="lazy"></p>'
    if "text/html" in data and "<iframe" not in data["text/html"]:
        return f'<div class="output" data-search-exclude>{kept_html(data["text/html"])}</div>'
    return fenced(data.get("text/plain") or "".join(output.get("text", "")), "text")


def fenced(text: str, language: str) -> str:
    """A code block that no text can leave."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def kept_html(html: str) -> str:
    """Tables and emphasis of an output, on one line; every other tag, all attributes but spans, and scripts go."""
    parser = _Kept()
    parser.feed(html)
    parser.close()
    return " ".join("".join(parser.parts).split())


class _Kept(HTMLParser):
    """Writes again what may stay, and closes what was left open."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.open: list[str] = []
        self.ignored = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ignored += tag in WITHOUT_TEXT
        if tag in KEPT_TAGS and not self.ignored:
            spans = "".join(
                f' {name}="{int(value)}"' for name, value in attrs if name in SPANS and (value or "").isdecimal()
            )
            self.parts.append(f"<{tag}{spans}>")
            self.open += [tag] if tag != "br" else []

    def handle_endtag(self, tag: str) -> None:
        if tag in WITHOUT_TEXT:
            self.ignored = max(0, self.ignored - 1)
        elif tag in self.open and not self.ignored:
            while (last := self.open.pop()) != tag:
                self.parts.append(f"</{last}>")
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.ignored:
            self.parts.append(escape(data))

    def close(self) -> None:
        super().close()
        self.parts += [f"</{tag}>" for tag in reversed(self.open)]


def with_formulas(markdown: str) -> str:
    """Text with its formulas as MathML; code keeps its dollars."""

    def formula(found: re.Match[str]) -> str:
        code, dollars, latex = found.groups()
        if code:
            return code
        if dollars == "$":
            return convert(latex.strip())
        return f'<span class="formula">{convert(latex.strip(), display="block")}</span>'

    return FORMULA.sub(formula, markdown)


def with_links(markdown: str, config: MkDocsConfig) -> str:
    """Text whose links lead to the site's own pages; files of the repository are linked if its address is known."""

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, _, heading = target.partition("#")
        inside = posixpath.normpath(posixpath.join("notebooks", path))
        if mark or re.match(r"[a-z]+:", target):
            return found[0]
        if path.endswith(".ipynb"):
            path = f"{path.removesuffix('.ipynb')}.md"
        elif inside.startswith("docs/"):
            path = posixpath.relpath(inside.removeprefix("docs/"), "notebooks")
        else:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{inside})" if config.repo_url else text
        return f"[{text}]({path}{'#' if heading else ''}{heading})"

    return LINK.sub(link, markdown)


def _folder(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent / "notebooks"
