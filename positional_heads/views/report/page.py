"""One page of everything in a result folder: to open from disk, send to someone, read on a phone.

It needs no network, runs nothing but circuitsvis' bundle, and escapes everything that a result, a model or a file is
called (see `views.safe_page`).
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from positional_heads.results.ablation import AblationStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import (
    ABLATION,
    EXAMPLES,
    EXTRAPOLATION,
    SCORES,
    write_atomically,
)
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.scores import HeadScores
from positional_heads.results.unfinished import unfinished
from positional_heads.views.page import render
from positional_heads.views.report.caveats import caveats, score_command, score_lines, study_commands
from positional_heads.views.report.citation import PAPER, SENTENCE, SOFTWARE
from positional_heads.views.report.sections import (
    Code,
    Section,
    ablation_section,
    examples_section,
    extrapolation_section,
    run_section,
    scores_section,
)

PAGE_NAME = "report.html"
LARGEST_PAGE = 6_000_000
RESOLUTIONS = (140, 90, 60)
"""Dots per inch of the plots, the next one where the page would grow too large."""
MOST_STUDIES = 4


@dataclass(frozen=True)
class Found:
    """Everything that a folder, and the folders in it, hold; what was left out, in sentences."""

    folder: Path
    scores: HeadScores | None
    examples: HeadExamples | None
    ablations: list[AblationStudy]
    extrapolations: list[ExtrapolationStudy]
    files: list[str]
    notes: list[str]

    @property
    def provenance(self) -> dict[str, object]:
        """Where the scores come from, or else the first study."""
        results = [self.scores, *self.ablations, *self.extrapolations, self.examples]
        return next(result.provenance for result in results if result is not None)


def find_results(folder: str | Path) -> Found:
    """Read every result in a folder and one level below it.

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"{folder}: no such folder; give the one that positional-heads score, ablate or extrapolate wrote"
        raise FileNotFoundError(msg)
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    notes: list[str] = []
    named = {
        name: [place / name for place in places if (place / name).is_file()]
        for name in (SCORES.file_name, EXAMPLES.file_name, ABLATION.file_name, EXTRAPOLATION.file_name)
    }
    chosen = {
        name: _at_most(files, 1 if name in {SCORES.file_name, EXAMPLES.file_name} else MOST_STUDIES, folder, notes)
        for name, files in named.items()
    }
    left = [said for place in places if (said := unfinished(place)) is not None]
    notes += left
    if left and not any(chosen.values()):
        raise FileNotFoundError(" ".join(left))
    if not any(chosen.values()):
        msg = f"{folder}: holds no result ({', '.join(chosen)}); run positional-heads score --out {folder} first"
        raise FileNotFoundError(msg)
    scores = [HeadScores.load(file) for file in chosen[SCORES.file_name]]
    examples = [HeadExamples.load(file) for file in chosen[EXAMPLES.file_name]]
    return Found(
        folder=folder,
        scores=scores[0] if scores else None,
        examples=_matching(examples, scores, notes),
        ablations=[AblationStudy.load(file) for file in chosen[ABLATION.file_name]],
        extrapolations=[ExtrapolationStudy.load(file) for file in chosen[EXTRAPOLATION.file_name]],
        files=[str(file.relative_to(folder)) for files in chosen.values() for file in files],
        notes=notes,
    )


def report_html(folder: str | Path) -> str:
    """The page of a result folder, below 6 MB.

    Args:
        folder: What `positional-heads score`, `ablate` or `extrapolate` wrote, or a folder that holds such folders.

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        ValueError: If the page would be too large even with coarse plots.
    """
    found = find_results(folder)
    for dpi in RESOLUTIONS:
        page = _page(found, dpi)
        if len(page.encode()) < LARGEST_PAGE:
            return page
    msg = f"{folder}: its page would have more than {LARGEST_PAGE // 10**6} MB; report on the folders in it one by one"
    raise ValueError(msg)


def write_report_page(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a result folder to a file, all of it or nothing.

    Args:
        folder: The result folder.
        out: Where to; `report.html` in the folder when None, or in `out` where that is a folder.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        OSError: If the file cannot be written.
    """
    file = page_file(folder, out)
    write_atomically(file, report_html(folder))
    return file


def page_file(folder: str | Path, out: str | Path | None = None) -> Path:
    """Where the page of a folder goes."""
    place = Path(folder) if out is None else Path(out)
    return place / PAGE_NAME if out is None or place.is_dir() else place


def _page(found: Found, dpi: int) -> str:
    sections = _sections(found, dpi)
    model = found.provenance.get("model", {})
    return render(
        "report.html",
        interactive=any(section.views for section in sections),
        images=True,
        title=f"Positional Heads: {model.get('name', 'unknown model') if isinstance(model, dict) else model}",
        folder=found.folder.resolve().name or str(found.folder),
        version=version("positional_heads"),
        verdict=found.scores.verdict if found.scores is not None else "",
        sections=sections,
        notes=found.notes,
    )


def _sections(found: Found, dpi: int) -> list[Section]:
    sections = [run_section(found.provenance, found.files)]
    if found.scores is not None:
        sections.append(scores_section(found.scores, dpi))
    if found.examples is not None:
        sections.append(examples_section(found.examples))
    sections += [ablation_section(study, number, dpi) for number, study in enumerate(found.ablations, 1)]
    sections += [extrapolation_section(study, number, dpi) for number, study in enumerate(found.extrapolations, 1)]
    said = caveats(found.scores, found.ablations, found.extrapolations)
    sections.append(Section("caveats", "What this does not show", points=said))
    sections.append(_reproduction(found))
    cited = [Code("The paper", PAPER), Code("This software", SOFTWARE)]
    sections.append(Section("cite", "How to cite", paragraphs=[SENTENCE], codes=cited))
    return sections


def _reproduction(found: Found) -> Section:
    codes = []
    if found.scores is not None:
        codes.append(Code("Scores, from the command line", score_command(found.scores.provenance)))
        codes.append(Code("Scores, in Python", score_lines(found.scores.provenance)))
    studies = study_commands(found.ablations, found.extrapolations)
    if studies:
        codes.append(Code("Studies, from the command line", studies))
    codes.append(Code("This page", "positional-heads report report"))
    text = (
        "From the settings that the results carry. They do not hold the text: where TEXT.txt stands, give the one that "
        "was used; the fingerprint of the token ids tells whether it was the same. What a study was given besides "
        "stands in its file."
    )
    return Section("reproduce", "How to make it again", paragraphs=[text], codes=codes)


def _at_most(files: list[Path], most: int, folder: Path, notes: list[str]) -> list[Path]:
    if len(files) > most:
        others = ", ".join(str(file.relative_to(folder)) for file in files[most:])
        notes.append(f"Not shown, as there are more of the kind: {others}.")
    return files[:most]


def _matching(examples: list[HeadExamples], scores: list[HeadScores], notes: list[str]) -> HeadExamples | None:
    """Examples of the scored model; those of another one would mislead."""
    if not examples:
        return None
    weights = {result.provenance.get("model", {}).get("weights") for result in examples}
    weights |= {result.provenance.get("model", {}).get("weights") for result in scores}
    if len(weights) > 1:
        notes.append(f"{EXAMPLES.file_name} is left out: it is of other weights than the scores.")
        return None
    return examples[0]
