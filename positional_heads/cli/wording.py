"""What the library says, as the command line says it: `--control-keys 64` where Python has control_keys=64."""

import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

RENAMED = {"n_permuted": "--permutations", "n_anywhere": "--anywhere"}
"""Options that are not called as their arguments are."""
COMMANDS = {
    "run ablation_study": "run positional-heads ablate",
    "run plan_study": "run positional-heads plan --study",
    "run pair_study": "run positional-heads plan --pairs --study",
    "run score_heads": "run positional-heads score",
    "give (name, [revisions])": "add --revisions, e.g. --revisions step0,step1000",
}
"""Calls that verdicts and errors advise."""
NAMED = re.compile(
    r"\w\([^()]*\)"  # a call of Python stays as it is
    r"|(?<![\w/.\\-])([a-z]\w*)=(?!\S*[/\\])('[^']*'|\"[^\"]*\"|[\w.]*\w(?![\w:])|(?=[\s:,.){]|$))"  # no path
    r"|(?<![\w/.\\-])([a-z]+(?:_[a-z]+)+(?![\w/(-]|\.\w)|(?:(?<![\s\S])|(?<=^error: ))[a-z]+(?= names ))"
)


_apps: list[typer.Typer] = []


def know_options_of(app: typer.Typer) -> None:
    """Name the options of this program's commands from now on."""
    _apps.append(app)


def say(message: str) -> None:
    """Print a message to standard error; standard output is for results."""
    typer.echo(in_options(message), err=True)


def in_options(message: str) -> str:
    """A message that names options, not arguments; one without an option is said to be Python's."""
    for call, command in COMMANDS.items():
        message = message.replace(call, command)
    return NAMED.sub(_option, message)


@contextmanager
def warnings_in_options() -> Iterator[None]:
    """A block in which warnings of the library name options, too."""
    logger, handler = logging.getLogger("positional_heads"), _Said()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Said(logging.Handler):
    """Prints warnings, as Python does where nothing else is set up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _option(found: re.Match[str]) -> str:
    argument, value, bare = found.groups()
    option = _options().get(argument or bare)
    if argument is None:
        return option or found[0]
    if option is None:
        return f"{found[0]} (in Python)" if "_" in argument else found[0]
    if value in {"", "True"}:
        return f"{option} " if found.string[found.end() : found.end() + 1] == "{" else option
    return f"{option} {value.strip(chr(39) + chr(34))}"


@functools.cache
def _options() -> dict[str, str]:
    """The option of each argument, of all commands."""
    commands = [
        command
        for app in _apps
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    ]
    options = {one.name: one.opts[0] for command in commands for one in command.params if one.opts[0].startswith("--")}
    return options | RENAMED
