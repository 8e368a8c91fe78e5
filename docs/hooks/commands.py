"""A page for every command of the command line, written while the site is built, from what `--help` prints."""

import functools
import re
from html import escape
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from positional_heads.cli import app

PROGRAM = "positional-heads"
SECTION = "Command line"
EXAMPLE = "Example: "


@functools.cache
def commands() -> dict[str, Any]:
    """Every command by its name, in the order of `--help`."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages where the navigation has a section for them."""
    for entry in config.nav:
        if SECTION in entry:
            entry[SECTION] = ["commands/index.md", *({name: f"commands/{name}.md"} for name in commands())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "commands/index.md", content=index()))
    for name in commands():
        files.append(File.generated(config, f"commands/{name}.md", content=page(name)))
    return files


def index() -> str:
    """The page that lists all commands."""
    program = typer.main.get_command(app)
    rows = [
        f'<tr><td><a href="{name}.html"><code>{name}</code></a></td><td>{escape(first_lines(command.help))}</td></tr>'
        for name, command in commands().items()
    ]
    return "\n".join(
        [
            "# Commands\n",
            f"{escape(program.help or '')}\n",
            f"`{PROGRAM} COMMAND --help` prints what these pages show. Results go to standard output, progress and",
            "errors to standard error. The exit status is 0 when all went well, 1 after an error, 2 for wrong usage,",
            "130 after Ctrl-C.\n",
            "<table><thead><tr><th>command</th><th>what it does</th></tr></thead><tbody>",
            *rows,
            "</tbody></table>",
            *described("Options", program),
        ]
    )


def page(name: str) -> str:
    """The page of one command: its usage, its help, its arguments, its options."""
    command = commands()[name]
    with typer.Context(command, info_name=f"{PROGRAM} {name}") as context:
        usage = f"{PROGRAM} {name} {' '.join(command.collect_usage_pieces(context))}"
    parts = [f"# {PROGRAM} {name}\n", f"```text\n{usage}\n```\n"]
    for paragraph in re.split(r"\n\s*\n", command.help or ""):
        text = " ".join(paragraph.split())
        example = text.startswith(EXAMPLE)
        parts.append(f"```console\n$ {text.removeprefix(EXAMPLE)}\n```\n" if example else f"<p>{escape(text)}</p>\n")
    return "\n".join([*parts, *described("Arguments", command), *described("Options", command)])


def described(heading: str, command: Any) -> list[str]:
    """A table of the arguments or options of a command, as its help describes them; nothing where it has none."""
    kind = heading.lower().removesuffix("s")
    with typer.Context(command) as context:
        found = [one for one in command.get_params(context) if one.param_type_name == kind and not one.hidden]
        records = [record for one in found if (record := one.get_help_record(context))]
    rows = [
        f'<tr id="{names.split()[0].strip(",")}"><td><code>{escape(names)}</code></td><td>{escape(text)}</td></tr>'
        for names, text in records
    ]
    head = f"<thead><tr><th>{kind}</th><th>meaning</th></tr></thead>"
    return [f"\n## {heading}\n", f"<table>{head}<tbody>", *rows, "</tbody></table>"] if rows else []


def first_lines(text: str | None) -> str:
    """The first paragraph of a help text, on one line."""
    return " ".join((text or "").split("\n\n")[0].split())
