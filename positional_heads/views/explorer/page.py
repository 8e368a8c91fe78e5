"""The explorer's page: the document and the scripts that show it, in one file or beside files of each layer's heads."""

import json
from functools import lru_cache
from typing import Any

from positional_heads.core.heads import Head
from positional_heads.views.explorer.charts import chart_specifications, vega_bundle
from positional_heads.views.page import render, resource

PARTS = ("app", "atlas", "table", "heads", "linked", "tokens", "whatif", "main")
"""Files of the script, in the order in which they run."""
BESIDE = "explorer_data"
"""Folder of the files of a page that is too large for one file."""


def explorer_html(document: dict[str, Any]) -> str:
    """The page of a document, which needs no other file.

    Args:
        document: What `explorer_document` returned.
    """
    return _page(document, _by_layer(document), beside=False)


def explorer_files(document: dict[str, Any]) -> dict[str, str]:
    """The page of a large document and the files that it reads from a server, by their names.

    Args:
        document: What `explorer_document` returned.
    """
    files = {
        f"{BESIDE}/L{layer}.json": json.dumps(heads, separators=(",", ":"), allow_nan=False)
        for layer, heads in _by_layer(document).items()
    }
    return {"explorer.html": _page(document, {}, beside=True), **files}


def _page(document: dict[str, Any], layers: dict[int, dict[str, Any]], *, beside: bool) -> str:
    index = {name: value for name, value in document.items() if name != "details"}
    return render(
        "explorer.html",
        interactive=False,
        own_scripts=[vega_bundle(), _script()],
        styles=["explorer/explorer.css"],
        own_server=beside,
        index=index,
        charts=chart_specifications(),
        layers=layers.items(),
        beside=beside,
    )


def _by_layer(document: dict[str, Any]) -> dict[int, dict[str, Any]]:
    layers: dict[int, dict[str, Any]] = {}
    for name, detail in document["details"].items():
        layers.setdefault(Head.parse(name).layer, {})[name] = detail
    return layers


@lru_cache(maxsize=1)
def _script() -> str:
    parts = "\n".join(resource(f"explorer/{name}.js") for name in PARTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'
