"""The report: one self-contained page of all results in a folder, to open from disk, send, or read on a phone.

It needs no network, runs only circuitsvis' bundle, and escapes every name of a result, a model or a file (see
`views.page`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from positional_heads.core.arguments import checked
from positional_heads.core.whole_files import write_atomically
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.comparison import Comparison
from positional_heads.results.distance_profile import DistanceProfile
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.files import (
    ABLATION,
    COMPARISON,
    DISTANCE_PROFILE,
    DISTANCE_RESPONSE,
    EMERGENCE,
    EXAMPLES,
    EXTRAPOLATION,
    HEAD_PLAN,
    HEAD_PROFILE,
    JUMPS,
    MANIPULATION,
    PAGE_NAME,
    PAIR_PLAN,
    PLAN_STUDY,
    RECOMMENDATION,
    SCORES,
    STABILITY,
    lies_in,
)
from positional_heads.results.head_examples import HeadExamples
from positional_heads.results.head_plan import HeadPlan
from positional_heads.results.head_profile import HeadProfile
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.results.pair_plan import PairPlan
from positional_heads.results.plan_study import PlanStudy
from positional_heads.results.recommendation import Recommendation
from positional_heads.results.record import Record
from positional_heads.results.scores import HeadScores
from positional_heads.results.stability import Stability
from positional_heads.results.tables import model_label, text_label
from positional_heads.results.text import printable
from positional_heads.results.unfinished import unfinished
from positional_heads.views.page import render
from positional_heads.views.report.caveats import caveats
from positional_heads.views.report.commands import (
    distance_command,
    folders,
    placeholders,
    profile_command,
    score_command,
    study_commands,
)
from positional_heads.views.report.comparison import compared_title, comparison_section
from positional_heads.views.report.distances import distance_section
from positional_heads.views.report.emergence import emergence_command, emergence_section
from positional_heads.views.report.head_profile import profile_section
from positional_heads.views.report.headlined import after_headline, far_from, result_folders
from positional_heads.views.report.jumps import jump_section, response_section
from positional_heads.views.report.lines import distance_lines, jump_lines, profile_lines, response_lines, score_lines
from positional_heads.views.report.local_names import without_paths
from positional_heads.views.report.manipulation import manipulation_command, manipulation_section
from positional_heads.views.report.plan_commands import (
    plan_commands,
    plan_study_command,
    profile_folders,
    recommend_command,
)
from positional_heads.views.report.plan_sections import plan_section, plan_study_section, recommendation_section
from positional_heads.views.report.sections import (
    VECTOR,
    Code,
    Section,
    ablation_section,
    examples_section,
    extrapolation_section,
    run_section,
    scores_section,
)

WRITING = "score, profile, distances, plan, compare, ablate, manipulate, extrapolate, recommend or emerge"
"""Commands whose --out folders have a page."""
LARGEST_PAGE = 6_000_000
RESOLUTIONS = (VECTOR, 90, 60)
"""Plots as lines, or their dots per inch, the next one where the page would grow too large."""
SHOWN_KINDS = (
    *(SCORES, EXAMPLES, HEAD_PROFILE, DISTANCE_PROFILE, HEAD_PLAN, PAIR_PLAN, PLAN_STUDY, ABLATION, EXTRAPOLATION),
    *(RECOMMENDATION, MANIPULATION, COMPARISON, STABILITY, EMERGENCE, JUMPS, DISTANCE_RESPONSE),
)
HEAD = re.compile(r"\b(L\d+H\d+)\b")
WRITTEN = re.compile(r"^positional-heads .* --out (\S+)$", re.MULTILINE)
"""The folder that a command writes."""
MOST_STUDIES = 4
"""Studies of each kind on the page."""
PAPER = """\
@inproceedings{hong2024token,
  title     = {On the token distance modeling ability of higher {RoPE} attention dimension},
  author    = {Hong, Xiangyu and Jiang, Che and Qi, Biqing and Meng, Fandong and Yu, Mo and Zhou, Bowen and Zhou, Jie},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2024},
  year      = {2024},
  note      = {arXiv:2410.08703},
  url       = {https://arxiv.org/abs/2410.08703}
}"""
SOFTWARE = f"""\
@software{{positional_heads,
  title   = {{positional_heads}},
  author  = {{{{The positional_heads developers}}}},
  version = {{{version("positional_heads")}}},
  license = {{MIT}}
}}"""
"""How to cite, as in CITATION.cff, which an installed package cannot read."""


@dataclass(frozen=True)
class Results:
    """The results in a folder and its subfolders, and notes on what was left out."""

    folder: Path
    scores: HeadScores | None
    examples: HeadExamples | None
    ablations: list[AblationStudy]
    extrapolations: list[ExtrapolationStudy]
    profiles: list[HeadProfile]
    distances: list[DistanceProfile]
    plans: list[HeadPlan | PairPlan]
    plan_studies: list[PlanStudy]
    manipulations: list[ManipulationStudy]
    recommendations: list[Recommendation]
    comparisons: list[Comparison | Stability]
    emergences: list[EmergenceStudy]
    jumps: list[JumpStudy]
    responses: list[DistanceResponse]
    files: list[str]
    notes: list[str]

    @property
    def first(self) -> Record:
        """The result whose model and settings stand at the top: the scores, or else the first study."""
        results = [self.scores, *self.studies, self.examples, *self.comparisons]
        return next(result for result in results if result is not None)

    @property
    def provenance(self) -> dict[str, Any]:
        """Its provenance."""
        return self.first.provenance

    @property
    def studies(self) -> list[Record]:
        """Everything about a single model but scores and examples, in the order of preference for its provenance."""
        own = [*self.profiles, *self.distances, *self.ablations, *self.manipulations, *self.extrapolations]
        own += self.plan_studies
        return [*own, *self.recommendations, *self.plans, *self.emergences, *self.jumps, *self.responses]


def read_results(folder: str | Path) -> Results:
    """Read every result in a folder and in its subfolders.

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        msg = f"{folder}: no such folder; give the --out folder of positional-heads {WRITING}"
        raise FileNotFoundError(msg)
    folders = result_folders(folder)
    notes: list[str] = []
    named = {
        name: [path / name for path in folders if lies_in(path, name)]
        for name in (one.file_name for one in SHOWN_KINDS)
    }
    # a page has room for one of each: the scores of what was profiled, and the examples beside them
    scored, profiled = named[SCORES.file_name], named[HEAD_PROFILE.file_name][:1]
    if len(scored) > 1 and profiled:
        profiles = [HeadProfile.load(file) for file in profiled]
        scored.sort(key=lambda file: after_headline(HeadScores.load(file), profiles))
    named[EXAMPLES.file_name].sort(key=lambda file: far_from(scored, file))
    chosen = {
        name: _at_most(files, 1 if name in {SCORES.file_name, EXAMPLES.file_name} else MOST_STUDIES, folder, notes)
        for name, files in named.items()
    }
    interrupted = [note.replace(f"{folder}/", "") for path in folders if (note := unfinished(path)) is not None]
    notes += interrupted
    if interrupted and not any(chosen.values()):
        raise FileNotFoundError(" ".join(interrupted))
    if not any(chosen.values()):
        msg = f"{folder}: holds no result ({', '.join(chosen)}); give the --out folder of positional-heads {WRITING}"
        raise FileNotFoundError(msg)
    scores = [without_paths(HeadScores.load(file)) for file in chosen[SCORES.file_name]]
    examples = [without_paths(HeadExamples.load(file)) for file in chosen[EXAMPLES.file_name]]
    comparisons = [without_paths(Comparison.load(file)) for file in chosen[COMPARISON.file_name]]
    text = chosen[EXAMPLES.file_name]
    return Results(
        folder=folder,
        scores=scores[0] if scores else None,
        examples=_matching(examples, scores, notes, of_others=any(far_from(scored, file) > 1 for file in text)),
        ablations=[without_paths(AblationStudy.load(file)) for file in chosen[ABLATION.file_name]],
        extrapolations=[without_paths(ExtrapolationStudy.load(file)) for file in chosen[EXTRAPOLATION.file_name]],
        profiles=[without_paths(HeadProfile.load(file)) for file in chosen[HEAD_PROFILE.file_name]],
        distances=[without_paths(DistanceProfile.load(file)) for file in chosen[DISTANCE_PROFILE.file_name]],
        plans=[
            *(without_paths(HeadPlan.load(file)) for file in chosen[HEAD_PLAN.file_name]),
            *(without_paths(PairPlan.load(file)) for file in chosen[PAIR_PLAN.file_name]),
        ],
        plan_studies=[without_paths(PlanStudy.load(file)) for file in chosen[PLAN_STUDY.file_name]],
        manipulations=[without_paths(ManipulationStudy.load(file)) for file in chosen[MANIPULATION.file_name]],
        recommendations=[without_paths(Recommendation.load(file)) for file in chosen[RECOMMENDATION.file_name]],
        comparisons=[*comparisons, *(without_paths(Stability.load(file)) for file in chosen[STABILITY.file_name])],
        emergences=[without_paths(EmergenceStudy.load(file)) for file in chosen[EMERGENCE.file_name]],
        jumps=[without_paths(JumpStudy.load(file)) for file in chosen[JUMPS.file_name]],
        responses=[without_paths(DistanceResponse.load(file)) for file in chosen[DISTANCE_RESPONSE.file_name]],
        files=[str(file.relative_to(folder)) for files in chosen.values() for file in files],
        notes=notes,
    )


def report_html(folder: str | Path, explorer: str | None = None) -> str:
    """The page of a result folder, below 6 MB.

    Args:
        folder: The --out folder of a command of positional-heads, or a folder of such folders.
        explorer: Relative address of the explorer's page, to which heads and sections then link, "explorer.html".

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        ValueError: If the page would be too large even with coarse plots.
    """
    results = read_results(folder)
    for dpi in RESOLUTIONS:
        page = _page(results, dpi, explorer)
        if len(page.encode()) < LARGEST_PAGE:
            return page
    msg = f"{folder}: its page would exceed {LARGEST_PAGE // 10**6} MB; report on its subfolders one by one"
    raise ValueError(msg)


@checked
def write_report_page(folder: str | Path, out: str | Path | None = None, *, explorer: str | None = None) -> Path:
    """Write the page of a result folder to a file, complete or not at all.

    Args:
        folder: The result folder.
        out: The file; `report.html` in the folder when None, or in `out` if that is a folder.
        explorer: Address of the explorer's page, relative to the file, e.g. "explorer.html": heads and sections link
            there. No links when None.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: If there is no such folder, or no result in it.
        ResultFileError: If a result is damaged, foreign, or from a newer version.
        OSError: If the file cannot be written.
    """
    file = page_file(folder, out)
    write_atomically(file, report_html(folder, explorer))
    return file


def page_file(folder: str | Path, out: str | Path | None = None) -> Path:
    """The file that `write_report_page` writes."""
    path = Path(folder) if out is None else Path(out)
    return path / PAGE_NAME if out is None or path.is_dir() else path


def _page(results: Results, dpi: int, explorer: str | None = None) -> str:
    sections = _sections(results, dpi)
    return render(
        "report.html",
        interactive=any(section.views for section in sections),
        images=True,
        explorer=explorer and quote(explorer),
        linked=_linked(explorer),
        title=f"Positional Heads: {_subject(results)}",
        folder=results.folder.resolve().name or str(results.folder),
        version=version("positional_heads"),
        verdict=results.scores.verdict if results.scores is not None else "",
        sections=sections,
        notes=results.notes,
    )


def _linked(explorer: str | None) -> Callable[[object], object]:
    """How the page shows a text: as it is or, with an explorer, with a link for every head that it names."""
    if explorer is None:
        return lambda text: text
    address = quote(explorer)

    def linked(text: object) -> Markup:
        parts = HEAD.split(printable(text))
        heads = [Markup('<a href="{}#{}">{}</a>').format(address, head, head) for head in parts[1::2]]
        return Markup("").join(part for both in zip_longest(parts[::2], heads, fillvalue="") for part in both)

    return linked


def _subject(results: Results) -> str:
    """What the page is about: a model, and the text or what is compared."""
    if results.scores is None and not results.studies and results.comparisons:
        return compared_title(results.comparisons[0])
    model, named = results.provenance.get("model", {}), text_label(results.provenance)
    name = model_label(results.provenance) if isinstance(model, dict) and "name" in model else "unknown model"
    return f"{name} on {named}" if named else str(name)


def _run_section(results: Results) -> Section:
    """What was run; a plan repeats the provenance of its profile, and a study of plans says its settings itself."""
    planned = [*results.plans, *results.plan_studies]
    of_profile = isinstance(results.first, HeadPlan | PairPlan | HeadProfile) and bool(planned)
    return run_section(
        results.provenance,
        results.files,
        of_what=" of the profile" if of_profile else "",
        settings=not isinstance(results.first, PlanStudy),
    )


def _sections(results: Results, dpi: int) -> list[Section]:
    sections = [_run_section(results)]
    if results.scores is not None:
        sections.append(scores_section(results.scores, dpi))
    if results.examples is not None:
        sections.append(examples_section(results.examples))
    sections += [profile_section(profile, number, dpi) for number, profile in enumerate(results.profiles, 1)]
    sections += [distance_section(profile, number, dpi) for number, profile in enumerate(results.distances, 1)]
    sections += [plan_section(plan, number) for number, plan in enumerate(results.plans, 1)]
    sections += [plan_study_section(study, number, dpi) for number, study in enumerate(results.plan_studies, 1)]
    sections += [comparison_section(one, number, dpi) for number, one in enumerate(results.comparisons, 1)]
    sections += [ablation_section(study, number, dpi) for number, study in enumerate(results.ablations, 1)]
    sections += [manipulation_section(study, number, dpi) for number, study in enumerate(results.manipulations, 1)]
    sections += [extrapolation_section(study, number, dpi) for number, study in enumerate(results.extrapolations, 1)]
    sections += [recommendation_section(made, number, dpi) for number, made in enumerate(results.recommendations, 1)]
    sections += [emergence_section(study, number, dpi) for number, study in enumerate(results.emergences, 1)]
    sections += [jump_section(study, number, dpi) for number, study in enumerate(results.jumps, 1)]
    sections += [response_section(found, number, dpi) for number, found in enumerate(results.responses, 1)]
    points = caveats(
        results.scores,
        results.ablations,
        results.extrapolations,
        results.profiles,
        distances=results.distances,
        plans=results.plans,
        plan_studies=results.plan_studies,
        manipulations=results.manipulations,
        made=results.recommendations,
        emergences=results.emergences,
        moved=[*results.jumps, *results.responses],
    )
    sections.append(Section("caveats", "What this does not show", points=points))
    sections.append(_reproduction(results))
    request = "Please cite the paper that defines the measure, and this software."
    citations = [Code("The paper", PAPER), Code("This software", SOFTWARE)]
    sections.append(Section("cite", "How to cite", paragraphs=[request], codes=citations))
    return sections


def _reproduction(results: Results) -> Section:
    codes = []
    if results.scores is not None:
        codes.append(Code("Scores, from the command line", score_command(results.scores.provenance)))
        codes.append(Code("Scores, in Python", score_lines(results.scores.provenance)))
    for profile, out in zip(results.profiles, profile_folders(results.profiles, results.plans), strict=True):
        codes.append(Code("Head profile, from the command line", profile_command(profile.provenance, out)))
        codes.append(Code("Head profile, in Python", profile_lines(profile.provenance)))
    for number, out in enumerate(folders("distances", len(results.distances))):
        provenance = results.distances[number].provenance
        codes.append(Code("Distance profile, from the command line", distance_command(provenance, out)))
        codes.append(Code("Distance profile, in Python", distance_lines(provenance)))
    codes += [Code("Jump study, in Python", jump_lines(study)) for study in results.jumps]
    codes += [Code("Distance response, in Python", response_lines(found)) for found in results.responses]
    studies = study_commands(results.ablations, results.extrapolations)
    if studies:
        codes.append(Code("Studies, from the command line", studies))
    several = [("Plan", plan_commands(results.profiles, results.plans))]
    several.append(("Plan study", _numbered(plan_study_command, results.plan_studies, "study")))
    several.append(("Manipulation", _numbered(manipulation_command, results.manipulations, "manipulation")))
    several.append(("Recommendation", _numbered(recommend_command, results.recommendations, "recommendation")))
    several.append(("Heads through training", _numbered(emergence_command, results.emergences, "emergence")))
    codes += [Code(f"{what}, from the command line", command) for what, commands in several for command in commands]
    printed = [code.lines for code in codes]
    text = "Made from the settings in the result files."
    if named := placeholders(printed):
        text += (
            f" These do not contain the text: replace {', '.join(named)} by what was used, and compare the fingerprint "
            "of the token ids."
        )
    codes.append(Code("This page", f"positional-heads report {_reported(results, printed)}"))
    return Section("reproduce", "How to reproduce it", paragraphs=[text], codes=codes)


def _numbered(command: Callable[[Any, str], str], made: Sequence[Record], name: str) -> list[str]:
    """The command of each of some results, which writes it to a folder of its own."""
    return [command(one, out) for one, out in zip(made, folders(name, len(made)), strict=True)]


def _reported(results: Results, commands: Sequence[str]) -> str:
    """The folder of the results that the commands write, or where there are several, the one that holds these."""
    written = [folder for command in commands for folder in WRITTEN.findall(command)]
    if results.profiles == [] and results.plans:  # a profile is written on the way
        written = [folder for folder in written if not folder.startswith("profile")]
    return written[0] if len({*written}) == 1 and not results.comparisons else "."


def _at_most(files: list[Path], most: int, folder: Path, notes: list[str]) -> list[Path]:
    if len(files) > most:
        others = ", ".join(str(file.relative_to(folder)) for file in files[most:])
        notes.append(f"Not shown, because a page has room for {most} of a kind: {others}.")
    return files[:most]


def _matching(
    examples: list[HeadExamples], scores: list[HeadScores], notes: list[str], *, of_others: bool
) -> HeadExamples | None:
    """The examples, if they are of the scored model and text; those of another one would mislead."""
    if not examples:
        return None
    weights = {result.provenance.get("model", {}).get("weights") for result in [*examples, *scores]}
    if len(weights) > 1:
        notes.append(f"{EXAMPLES.file_name} is left out: its model has other weights than that of the scores.")
        return None
    if of_others:
        notes.append(f"{EXAMPLES.file_name} is left out: it lies beside other scores than those shown here.")
        return None
    return examples[0]
