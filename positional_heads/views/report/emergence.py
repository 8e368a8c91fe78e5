"""Emergence studies in reports: the files of their folder, and their section of the page."""

from positional_heads.results.emergence import EmergenceStudy
from positional_heads.results.emergence_tables import births_line, births_table, emergence_line, steps_table
from positional_heads.results.record import json_rows
from positional_heads.views.emergence import AXES, emergence_tracks, named_heads
from positional_heads.views.figures import png
from positional_heads.views.report.commands import STEP, loading_options, no_option, printed, task_options, text_names
from positional_heads.views.report.last_line import DPI, last_line
from positional_heads.views.report.sections import Section, Table, plot
from positional_heads.zoo.bundled import BUNDLED


def emergence_files(study: EmergenceStudy) -> dict[str, bytes | str]:
    """Tables, plot and text of an emergence study, by the names of their files."""
    return {
        "heads_by_step.csv": study.to_frame().to_csv(index=False),
        "steps.csv": study.step_frame().to_csv(index=False),
        "births.csv": study.own_births().to_csv(index=False),
        **({"order.csv": study.own_order().to_csv(index=False)} if study.values else {}),
        "emergence.png": png(emergence_tracks(study), DPI),
        "emergence.md": _text(study),
    }


def coloured(study: EmergenceStudy) -> str:
    """Which heads have a colour of their own in the plot, in a sentence."""
    named = ", ".join(named_heads(study))
    measure = AXES[study.default_measure]
    return f"In colour, the heads with the highest {measure} at the last checkpoint: {named}; all others are grey."


def emergence_section(study: EmergenceStudy, number: int, dpi: int) -> Section:
    """Heads through training: every step, births, and the tracks."""
    steps = steps_table(json_rows(study.step_frame()))
    births = births_table(json_rows(study.own_births()))
    said = "Tracks of the heads over training steps, with loss and task beneath; the numbers are in heads_by_step.csv."
    caption = f"{coloured(study)} A marker is a birth of a head; a vertical line is a birth of the skill."
    return Section(
        f"emergence-{number}",
        "Heads through training",
        verdict=study.verdict,
        paragraphs=[study.description, births_line(study.born)],
        glossary=[*steps.glossary, *births.glossary],
        tables=[
            Table("Every checkpoint", steps.cells),
            Table("When the skill and heads were born, the earliest first; a dash is not born", births.cells),
        ],
        plots=[plot(emergence_tracks(study), dpi, f"{said} {coloured(study)}", caption)],
        points=study.notes,
    )


def emergence_command(study: EmergenceStudy, out: str = "emergence") -> str:
    """The command that follows the same checkpoints; the result does not contain the text."""
    provenance, missing = study.provenance, []
    source, settings, data = provenance.get("source") or {}, provenance["settings"], provenance["data"]
    words = ["positional-heads", "emerge", str(source.get("folder", source.get("model", "FOLDER")))]
    words += [f"--revisions={','.join(source['revisions'])}"] if "revisions" in source else []
    if all(STEP.fullmatch(str(one.provenance["model"]["name"])) for one in study.scores.values()):
        words[-1], source = BUNDLED, {"folder": BUNDLED}
    if not source:
        missing.append(
            "these checkpoints were not of one folder: put them into FOLDER, in folders named by their steps"
        )
    for name in text_names(provenance):
        words += ["--text", name]
    drawn = data.get("drawn")
    words += [f"--sequences={data['sequences']}", f"--length={data['longest']}", *([] if drawn else ["--in-order"])]
    words += [f"--null-repeats={settings['null_repeats']}", f"--seed={settings['seed']}", *loading_options(provenance)]
    words += [f"--control-keys={settings['control_keys']}"] if settings.get("control_keys") else []
    asked = settings.get("retrieval")
    words += [f"--retrieval={asked or 'none'}"] if asked != "passkey" and not isinstance(asked, dict) else []
    words += ["--retrieval-examples", str(settings["retrieval_examples"])] if asked else []
    words += [f"--births={settings['births']}"] if settings.get("births") else []
    words += [f"--threshold={settings['threshold']:.9g}"] if settings.get("threshold") is not None else []
    words += ["--plain-text"] if settings.get("plain_text") else []
    if study.task:
        task = provenance["task"]
        words += [f"--task={task['name']}"]
        own, without = task_options({f"task_{key}" if key == "lengths" else key: one for key, one in task.items()})
        words += [f"--task-length={length}" for length in task.get("lengths", ())]
        words += [word for word in own if _has(word)]
        missing += [*without, *(no_option(word.removeprefix("--"), "") for word in own if not _has(word))]
    return printed([*words, "--out", out], missing)


def _has(word: str) -> bool:
    """Whether `emerge` has this option of a task."""
    return word.startswith(("--depths", "--examples"))


def _text(study: EmergenceStudy) -> str:
    notes = "".join(f"- {note}\n" for note in study.notes)
    content = {"provenance": study.provenance, "task": study.task, "steps": study.steps}
    return f"""# Heads through training

{emergence_line(content)}

**Verdict.** {study.verdict}

{steps_table(json_rows(study.step_frame())).markdown}

{births_line(study.born)}

{births_table(json_rows(study.own_births())).markdown}

![heads, loss and task over training steps](emergence.png)

{coloured(study)}

{notes}
`heads_by_step.csv` has every head at every step, `births.csv` every birth with its interval{
        ", `order.csv` what came first" if study.values else ""
    }.

{last_line(study)}
"""
