"""Links from names of code, in text and in examples, to their place in the reference; no page spells them out.

`ph.score_heads(...)` and `HeadScores.load` become links wherever they are not part of one; a name that the reference
does not know stays as it is.
"""

import re
from typing import Any

from mkdocs.structure.files import Files
from mkdocs.utils import get_relative_url

PACKAGE = "positional_heads"
PLACE = re.compile(rf'\bid="({PACKAGE}\.[\w.]+)"')
WHOLE = re.compile(r"<(a|pre|h[1-6]|summary|script|style)\b.*?</\1>", re.DOTALL)
"""What is left alone: links cannot hold links; headings and code blocks have their own."""
INLINE = re.compile(r"<code>((?:ph|positional_heads)\.)?([A-Za-z]\w*(?:\.\w+)*)([^<]*)</code>")
BLOCK = re.compile(r'<span class="n">ph</span>(?:<span class="o">\.</span><span class="n">\w+</span>)+')
REFERENCE = "api/"


def on_env(env: Any, files: Files, **_: Any) -> Any:
    """Write the links, once every page has its content."""
    pages = [file.page for file in files.documentation_pages() if file.page and file.page.content]
    places = {
        name: f"{page.url}#{name}"
        for page in pages
        if page.url.startswith(REFERENCE)
        for name in PLACE.findall(page.content)
    }
    for page in pages:
        if not page.url.startswith(REFERENCE):
            page.content = linked(page.content, places, page.url)
    return env


def linked(html: str, places: dict[str, str], url: str) -> str:
    """A page with its links.

    Args:
        html: Its content.
        places: Where the reference has each name.
        url: Its own address.
    """
    parts, end = [], 0
    for whole in WHOLE.finditer(html):
        parts += [_inline(html[end : whole.start()], places, url), _block(whole, places, url)]
        end = whole.end()
    return "".join([*parts, _inline(html[end:], places, url)])


def _inline(html: str, places: dict[str, str], url: str) -> str:
    def link(found: re.Match[str]) -> str:
        prefix, name, rest = found.groups()
        is_name = prefix or name[0].isupper() or "_" in name or rest.startswith("(")
        place = _place(name.split("."), places) if is_name else None
        return f'<a href="{get_relative_url(place, url)}">{found[0]}</a>' if place else found[0]

    return INLINE.sub(link, html)


def _block(whole: re.Match[str], places: dict[str, str], url: str) -> str:
    def link(found: re.Match[str]) -> str:
        place = _place(re.findall(r"\w+(?=</span>)", found[0])[1:], places)
        return f'<a href="{get_relative_url(place, url)}">{found[0]}</a>' if place else found[0]

    return BLOCK.sub(link, whole[0]) if whole[1] == "pre" else whole[0]


def _place(parts: list[str], places: dict[str, str]) -> str | None:
    """Where the reference has a name, or what the name is part of; the names of the package itself have no place."""
    for length in range(len(parts), 0, -1):
        if place := places.get(".".join((PACKAGE, *parts[:length]))):
            return place
    return None
