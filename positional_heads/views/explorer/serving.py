"""A server of one explorer on the loopback address, for pages that are too large for one file.

It knows its own files only, from memory: there is no folder that a path could climb out of. It answers to its own
address, because a page elsewhere can make a browser ask for 127.0.0.1 under a name of its own (DNS rebinding).
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from positional_heads.results.files import EXPLORER_NAME

LOOPBACK = "127.0.0.1"
HTTP = 80
"""The port that browsers leave out of an address."""
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">')
STRICTEST = "default-src 'none'; frame-ancestors 'none'"


def server(files: Mapping[str, str], port: int = 0) -> ThreadingHTTPServer:
    """A server of these files; call its `serve_forever`.

    Args:
        files: What `Explorer.files` holds.
        port: Where to listen; a free one if 0.

    Raises:
        OSError: If it cannot listen there.
    """
    pages = {f"/{name}": content.encode() for name, content in files.items()}
    pages["/"] = pages[f"/{EXPLORER_NAME}"]
    found = _POLICY.search(files[EXPLORER_NAME])
    policy = STRICTEST if found is None else f"{found[1].replace('&#39;', chr(39))}; frame-ancestors 'none'"

    class Handler(BaseHTTPRequestHandler):
        """Answers with these files, and with nothing else."""

        server_version, sys_version = "positional-heads", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            host = self.headers.get("Host", "")
            port = self.server.server_port  # type: ignore[attr-defined]
            names = (LOOPBACK, "localhost")
            here = {f"{name}:{port}" for name in names} | ({*names} if port == HTTP else set())
            content = pages.get(self.path.partition("?")[0])
            if host not in here:
                self._send(HTTPStatus.FORBIDDEN, b"this server answers to 127.0.0.1 only\n", "text/plain", body=body)
            elif content is None:
                self._send(HTTPStatus.NOT_FOUND, b"no such file\n", "text/plain", body=body)
            else:
                kind = "application/json" if self.path.partition("?")[0].endswith(".json") else "text/html"
                self._send(HTTPStatus.OK, content, kind, body=body)

        def _send(self, status: HTTPStatus, content: bytes, kind: str, *, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Security-Policy", policy if kind == "text/html" else STRICTEST)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    serving = ThreadingHTTPServer((LOOPBACK, port), Handler)
    serving.daemon_threads = True
    return serving
