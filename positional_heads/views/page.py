"""Rendering of self-contained pages in which no token or name can become code.

Only circuitsvis' bundle and the few lines that start it can run: the page's content security policy allows each by its
hash. Numbers and tokens are JSON that is never executed; the template escapes everything else. No page fetches
anything: circuitsvis' Python side, which asks a public host whether it is online, is not used.
"""

import base64
import hashlib
import importlib.util
import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from positional_heads.results.text import printable

POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src {images}; frame-src 'none'; "
    "base-uri 'none'; form-action 'none'"
)


_SIGNS = re.compile(r"(minValue:\w+,negativeColor:\w+)(,positiveColor:\w+)(?=,tokens:\w+,values:\w+,tooltips:\w+\})")
"""Where circuitsvis' coloured tokens leave the colours of signs to a default that is red for negative numbers."""


@lru_cache(maxsize=1)
def bundle() -> str:
    """The JavaScript that circuitsvis ships, safe inside a script element, with red for positive numbers.

    Raises:
        RuntimeError: If circuitsvis is not installed, or its bundle is not where and what it is in its 1.43 line.
    """
    spec = importlib.util.find_spec("circuitsvis")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        file = Path(folder) / "dist" / "cdn" / "iife.js"
        if file.is_file():
            code = file.read_text(encoding="utf-8").split("//# sourceMappingURL")[0]
            code, found = _SIGNS.subn(r'\1="blue"\2="red"', code)
            if found != 1:
                continue
            # the same strings to JavaScript, but they cannot end the script element
            return code.replace("</script", "<\\/script").replace("<!--", "<\\!--").strip()
    msg = "views need circuitsvis with its JavaScript bundle (dist/cdn/iife.js): pip install 'circuitsvis>=1.43,<2'"
    raise RuntimeError(msg)


def render(
    template: str,
    *,
    interactive: bool = True,
    images: bool = False,
    own_scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    own_server: bool = False,
    **context: Any,
) -> str:
    """A whole page that needs no other file and runs only our scripts.

    Args:
        template: Name of a file in `templates`.
        interactive: Whether it has circuitsvis' components.
        images: Whether it has pictures, as data addresses.
        own_scripts: Further scripts, which cannot end a script element.
        styles: Further style sheets, as names of files in `templates`.
        own_server: Whether it may read files from the server that it came from.
        **context: The template's variables; every text is escaped and made printable.

    Returns:
        HTML that can be encoded in UTF-8.
    """
    scripts = [bundle(), resource("mount.js").strip()] if interactive else []
    scripts += own_scripts
    policy = POLICY.format(
        scripts=" ".join(f"'sha256-{digest(script)}'" for script in scripts) or "'none'",
        images="data:" if images else "'none'",
    )
    policy += "; connect-src 'self'" if own_server else ""
    counter = itertools.count()
    return (
        _environment()
        .get_template(template)
        .render(
            policy=Markup(policy),
            scripts=[Markup(script) for script in scripts],
            style=Markup("\n".join(resource(name) for name in ("page.css", *styles))),
            new_id=lambda: f"part-{next(counter)}",
            **context,
        )
    )


def picture(data: bytes, kind: Literal["png", "svg+xml"] = "png") -> Markup:
    """A picture as an address that holds the picture itself; as an image, no script in it can run."""
    return Markup(f"data:image/{kind};base64," + base64.b64encode(data).decode())


@lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = PackageLoader("positional_heads.views")
    environment = Environment(
        autoescape=True,
        loader=loader,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _shown(value: Any) -> Any:
    """A value as templates print it: our markup unchanged, everything else printable, then escaped."""
    return value if hasattr(value, "__html__") else printable(value)


def resource(name: str) -> str:
    """A file in `templates`."""
    return (files("positional_heads.views") / "templates" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=8)
def digest(script: str) -> str:
    """The SHA-256 of a script, as a content security policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
