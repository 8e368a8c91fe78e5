"""`positional-heads compare`: two scored results head by head, or several side by side; loads no model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from positional_heads.cli import options
from positional_heads.cli.common import one_line_errors, prepared_folder
from positional_heads.cli.show import finish, print_content

if TYPE_CHECKING:
    from positional_heads.results.comparison import Comparison
    from positional_heads.results.head_profile import HeadProfile
    from positional_heads.results.scores import HeadScores
    from positional_heads.results.stability import Stability

OWN_NAMES = {"scores.safetensors", "heads.safetensors"}
"""Names of files that say nothing of a result; its folder's name does."""


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders (or files) that `score` wrote: two, or several to put side by side; or two of `profile`."
        ),
    ],
    names: Annotated[
        str | None, typer.Option(help="What to call them, separated by commas; their folders' names if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, plot and text; only printed if not given.")
    ] = None,
    top: options.Top = 10,
    as_json: options.AsJson = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare scores of two texts, lengths, checkpoints or models of one shape.

    Shows which heads differ, with intervals over sequences, how far the ranks agree, and which heads beat their null in
    one only; of two profiles also whether the change sits in the slow rotary pairs. More than two results are put side
    by side: which heads beat their null in how many of them. Needs no model.

    Example: positional-heads compare prose code --out prose-code
    """
    with one_line_errors():
        files = _result_files(results)
        called = _names(names, results)
        from positional_heads.results.compare import compare as compare_two
        from positional_heads.results.scores import HeadScores
        from positional_heads.results.stability import compare_all

        loaded = [_loaded(file) for file in files]
        if len(loaded) == 2:  # noqa: PLR2004
            result: Comparison | Stability = compare_two(loaded[0], loaded[1], names=called)
        else:
            scores = [one if isinstance(one, HeadScores) else one.scores for one in loaded]
            result = compare_all(dict(zip(called, scores, strict=True)))
        if out is None:
            print_content(result._content(), result.saved_as, as_json, top)
            return
        with prepared_folder(out, result.saved_as.file_name, overwrite):
            finish(result, out, as_json, top=top)


def _loaded(file: Path) -> "HeadScores | HeadProfile":
    """The scores or the head profile in a file."""
    from positional_heads.results.files import HEAD_PROFILE, kind_of
    from positional_heads.results.head_profile import HeadProfile
    from positional_heads.results.scores import HeadScores

    profiled = file.is_file() and kind_of(file) == HEAD_PROFILE.label
    return HeadProfile.load(file) if profiled else HeadScores.load(file)


def _result_files(results: list[Path]) -> list[Path]:
    """The file of each result: its scores, or its head profile where there are none.

    Raises:
        ValueError: If there are fewer than two, or one is given twice.
    """
    from positional_heads.results.files import HEAD_PROFILE, SCORES, lies_in, result_file

    if len(results) < 2:  # noqa: PLR2004
        msg = f"{results[0]} alone cannot be compared: give two results of positional-heads score, or more"
        raise ValueError(msg)
    files = []
    for result in results:
        profiled = lies_in(result, HEAD_PROFILE.file_name) and not lies_in(result, SCORES.file_name)
        files.append(result_file(result, HEAD_PROFILE.file_name if profiled else SCORES.file_name))
    resolved = [file.resolve() for file in files]
    for number, file in enumerate(resolved):
        if file in resolved[:number]:
            msg = f"{results[resolved.index(file)]} and {results[number]} are the same file: give different results"
            raise ValueError(msg)
    return files


def _names(names: str | None, results: list[Path]) -> list[str]:
    """What to call each result: as asked, or the last part of its path in which all differ.

    Raises:
        ValueError: If there are not as many names as results, or two are equal.
    """
    if names is not None:
        called = [name.strip() for name in names.split(",")]
        if len(called) != len(results) or len(set(called)) != len(called) or not all(called):
            msg = f"--names {names!r}: give {len(results)} different ones, separated by commas"
            raise ValueError(msg)
        return called
    folders = [result.parent if result.suffix and result.name in OWN_NAMES else result for result in results]
    last = [folder.resolve().name.removesuffix(".safetensors") for folder in folders]
    return last if len(set(last)) == len(last) and all(last) else [str(folder) for folder in folders]
