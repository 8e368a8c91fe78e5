"""A page inside a notebook: a sandboxed frame that holds it compressed, and a picture for hosts that run nothing."""

import base64
import gzip
import re
from html import escape, unescape

from markupsafe import Markup

from positional_heads.views.page import digest, picture, resource

_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')
_FRAME = (
    '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
    '<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{title}</title>'
    '<script type="application/octet-stream" id="page">{packed}</script><script>{script}</script></html>'
)
_NOTICE = "This is interactive where the notebook is trusted and runs; here it is not."


def frame(html: str, title: str, height: int, png: bytes = b"") -> str:
    """A page as the output of a cell, so that pages interfere neither with each other nor with the notebook.

    Hosts that run nothing drop the frame and the style sheet alike. What the style sheet hides is then shown: a picture
    and a notice.

    Args:
        html: A page that `render` made.
        title: Its title.
        height: In pixels.
        png: A picture of it, as a PNG file.
    """
    script = resource("unpack.js").strip()
    found = _POLICY.search(html)
    assert found is not None  # the page that the script writes keeps the policy of the script's own page
    policy = re.sub("script-src(?: 'none')?", f"script-src 'sha256-{digest(script)}'", unescape(found[1]))
    packed = base64.b64encode(gzip.compress(html.encode(), mtime=0)).decode()
    inner = _FRAME.format(policy=escape(policy), title=escape(title), packed=packed, script=Markup(script))
    shown = f'<img src="{picture(png)}" alt="{escape(title)}">' if png else ""
    return (
        "<style>.positional-heads-still { display: none }</style>"
        f'<div class="positional-heads-still">{shown}<p>{escape(title)}. {_NOTICE}</p></div>'
        f'<iframe title="{escape(title)}" sandbox="allow-scripts" srcdoc="{escape(inner)}" '
        f'style="width: 100%; height: {height}px; border: 1px solid #d9dde3; border-radius: 8px"></iframe>'
    )
