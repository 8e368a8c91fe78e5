"""`positional-heads compare`: two scored results head by head, or several side by side; loads no model."""

from pathlib import Path
from typing import Annotated

import typer

from positional_heads.cli import options
from positional_heads.cli.common import one_line_errors, prepared_folder
from positional_heads.cli.show import finish, print_content


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Folders (or files) that `score` wrote: two, or several to put side by side.")
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
    one only. More than two results are put side by side: which heads beat their null in how many of them. Needs no
    model.

    Example: positional-heads compare prose code --out prose-code
    """
    with one_line_errors():
        files = _scores_files(results)
        called = _names(names, results)
        from positional_heads.results.compare import compare as compare_two
        from positional_heads.results.scores import HeadScores
        from positional_heads.results.stability import compare_all

        scores = [HeadScores.load(file) for file in files]
        by_name = dict(zip(called, scores, strict=True))
        two = len(scores) == 2  # noqa: PLR2004
        result = compare_two(scores[0], scores[1], names=called) if two else compare_all(by_name)
        if out is None:
            print_content(result._content(), result.saved_as, as_json, top)
            return
        with prepared_folder(out, result.saved_as.file_name, overwrite):
            finish(result, out, as_json, top=top)


def _scores_files(results: list[Path]) -> list[Path]:
    """The file of each result.

    Raises:
        ValueError: If there are fewer than two, or one is given twice.
    """
    from positional_heads.results.files import SCORES, result_file

    if len(results) < 2:  # noqa: PLR2004
        msg = f"{results[0]} alone cannot be compared: give two results of positional-heads score, or more"
        raise ValueError(msg)
    files = [result_file(result, SCORES.file_name) for result in results]
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
    folders = [result.parent if result.suffix and result.name == "scores.safetensors" else result for result in results]
    last = [folder.resolve().name.removesuffix(".safetensors") for folder in folders]
    return last if len(set(last)) == len(last) and all(last) else [str(folder) for folder in folders]
