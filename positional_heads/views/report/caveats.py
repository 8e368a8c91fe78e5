"""Caveats of results, and the commands that reproduce them, from their provenance alone."""

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from positional_heads.bridge.provenance import data_hash
from positional_heads.core.heads import Head
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy, RankBy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable
from positional_heads.zoo.architecture import BOS_ID
from positional_heads.zoo.bundled import BUNDLED, bundled_text, text_names

FEW_GROUPS = 16
ENOUGH_REPEATS = 10
ENOUGH_PERMUTATIONS = 19
"""With fewer, no p-value can reach 0.05."""
OPTIONS = {
    "null_repeats": ("--null-repeats", 20),
    "null_pairs": ("--null-pairs", None),
    "skip_keys": ("--skip-keys", 0),
    "control_keys": ("--control-keys", 0),
    "min_distance": ("--min-distance", 0),
    "max_distance": ("--max-distance", None),
    "temperature": ("--temperature", 1.0),
    "resolution": ("--resolution", 1 / 256),
    "pairs": ("--pairs", None),
    "seed": ("--seed", 0),
}
TASK_OPTIONS = [
    "length",
    "examples",
    "digits",
    "statement",
    "answer",
    "question",
    "keys",
    "updates",
    "passage",
    "cue",
    "near",
    "held_out",
]
"""Settings of tasks that are options of `ablate` by the same name."""


def caveats(scores: HeadScores | None, studies: list[AblationStudy], extended: list[ExtrapolationStudy]) -> list[str]:
    """The limits of these results, in sentences."""
    notes = ["rho is a correlation. To show that a head matters for long range, ablate it."]
    stored = {
        origin["storage"]
        for one in (scores, *studies, *extended)
        if one is not None and (origin := one.provenance.get("model", {}).get("origin"))
    }
    notes += [f"The weights were {how}: they are not the original's to the bit." for how in sorted(stored)]
    if scores is not None:
        notes += _score_caveats(scores)
    if not studies:
        notes.append("This folder has no ablation study, so it does not show whether the model needs these heads.")
    for study in studies:
        settings = study.provenance.get("settings", {})
        permutations = int(settings.get("n_permuted", settings.get("n_random", 0)))
        if permutations < ENOUGH_PERMUTATIONS and study.sizes:
            notes.append(f"The ablation of {study.task} has {permutations} permuted rankings, too few for p = 0.05.")
    if extended:
        notes.append(
            "Methods and lengths of an extrapolation study share a model and a text, so the intervals of its "
            "correlations measure only how much they depend on the methods tried."
        )
    notes.append(
        "The definitions are the paper's; its numbers could not be compared, because its code is not published."
    )
    return notes


def _score_caveats(scores: HeadScores) -> list[str]:
    settings, groups = scores.provenance.get("settings", {}), scores.n_groups
    repeats = int(settings.get("null_repeats", 0))
    notes = []
    if scores.null is None:
        notes.append(
            "No null was computed. Even without content, D changes with distance. Score again with null_repeats=20."
        )
    elif repeats < ENOUGH_REPEATS:
        notes.append(f"The null has only {repeats} shuffles, so its spread is a rough estimate; 20 are usual.")
    if scores.bootstrap_rho is None:
        notes.append("There is a single sequence and so no interval: the variation of rho between texts is unknown.")
    elif groups < FEW_GROUPS:
        enough = groups >= FEWEST_UNITS
        rest = "Intervals and p-values rest" if enough else f"No interval below {FEWEST_UNITS} groups; p-values rest"
        notes.append(
            f"{rest} on {groups} groups of sequences. With few groups, small p-values are too small; score at least "
            f"{FEW_GROUPS} sequences to test many heads."
        )
    if not settings.get("skip_keys"):
        check = "score with control_keys=64 to see which heads stay without them."
        if scores.control is not None:
            check = (
                f"the column 'stays' has the heads that beat their null without the first {scores.control_keys} too."
            )
        notes.append(
            "The first keys are counted. An attention sink, or the content of the first positions, can look like an "
            f"effect of distance: {check}"
        )
    if scores.provenance.get("extension"):
        notes.append("The model was scored with its context extended, not as it was trained.")
    notes.append(
        "Sequences cut from one document are not fully independent, so intervals are slightly too narrow. "
        "Query-key pairs are not independent at all, so no p-value is computed over them."
    )
    return notes


def _on_bundled_text(provenance: Mapping[str, Any]) -> bool:
    """Whether the bundled model scored the bundled text: its tokens are bytes, so their fingerprint can be computed."""
    data = provenance["data"]
    if provenance["model"]["name"] != BUNDLED:
        return False
    room = data["longest"] - 1
    content = bundled_text().encode()[: data["sequences"] * room]
    rows = [torch.tensor([BOS_ID, *content[at : at + room]]) for at in range(0, len(content), room)]
    return data_hash([(row, None) for row in rows]) == data.get("sha256")


def score_command(provenance: Mapping[str, Any]) -> str:
    """The command that scores the same model with the same settings; the result does not contain the text."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    drawn = data.get("drawn")
    words = ["positional-heads", "score", str(model["name"])]
    for name in _text_names(provenance):
        words += ["--text", name]
    if drawn is None:
        words += ["--sequences", str(data["sequences"]), "--in-order", "--length", str(data["longest"])]
    else:
        words += ["--sequences", str(drawn["sequences"]), "--length", str(drawn["length"])]
        words += ["--plain-text"] if drawn["plain_text"] else []
    words += _loading_options(provenance)
    for setting, (option, default) in OPTIONS.items():
        if setting in settings and settings[setting] != default:
            words += [option, str(settings[setting])]
    command = " ".join(shlex.quote(printable(word, newlines=False)) for word in [*words, "--out", "report"])
    if drawn is not None and drawn["seed"] != settings.get("seed", drawn["seed"]):
        seed = printable(drawn["seed"], newlines=False)
        command += f"  # draws other sequences: the seed of these was {seed}, see the lines in Python"
    return command


def _text_names(provenance: Mapping[str, Any]) -> list[str]:
    """What `--text` takes for each text that was scored."""
    drawn = provenance["data"].get("drawn")
    if drawn is None:
        return [BUNDLED if _on_bundled_text(provenance) else "TEXT.txt"]
    kinds = text_names()
    names = [kinds.get(text["sha256"]) for text in drawn["texts"]]
    return [name or ("TEXT.txt" if len(names) == 1 else f"TEXT{number}.txt") for number, name in enumerate(names, 1)]


def score_lines(provenance: Mapping[str, Any]) -> str:
    """The same in Python, with every setting."""
    model, data = provenance["model"], provenance["data"]
    name = printable(model["name"], newlines=False)
    dtype = printable(model.get("dtype") or "float32", newlines=False)
    given = "" if dtype == "float32" else f", dtype={dtype!r}"
    if model.get("adapter") is not None:
        given += f", adapter={printable(model['adapter'], newlines=False)!r}"
    load = "ph.load_bundled_model()" if (name, given) == (BUNDLED, "") else f"ph.load_model({name!r}{given})"
    texts = [_text_expression(text) for text in _text_names(provenance)]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    path = "from pathlib import Path\n\n" if "Path(" in text else ""
    settings = "".join(f"    {key}={value!r},\n" for key, value in provenance["settings"].items())
    if (drawn := data.get("drawn")) is None:
        cut = f"ph.cut_text(model, {text}, {data['longest']})[:{data['sequences']}]"
    else:
        how = ", ".join(f"{key}={drawn[key]!r}" for key in ("length", "sequences", "seed", "plain_text"))
        cut = printable(f"ph.cut_text(model, {text}, {how})", newlines=False)
    return (
        f"{path}import positional_heads as ph\n\nmodel = {load}\n"
        f"tokens = {cut}\n"
        f"scores = ph.score_heads(\n    model,\n    tokens,\n{settings})\n"
        f'assert scores.provenance["data"]["sha256"] == {printable(data.get("sha256"))!r}  # the same tokens\n'
    )


def _text_expression(name: str) -> str:
    """A text that `--text` takes, in Python; a file as its path, so that the ends of its lines are read as they are."""
    if name == BUNDLED:
        return "ph.bundled_text()"
    kind = name.removeprefix(f"{BUNDLED}:")
    return f"Path({name!r})" if kind == name else f"ph.bundled_text({kind!r})"


def study_commands(studies: list[AblationStudy], extended: list[ExtrapolationStudy]) -> str:
    """The commands of the studies; comments below a command list the settings that it does not have."""
    commands = [*map(_ablate_command, studies), *map(_extrapolate_command, extended)]
    lines = []
    for words, missing in commands:
        lines.append(" ".join(shlex.quote(printable(word, newlines=False)) for word in words))
        lines += [f"# {printable(sentence, newlines=False)}" for sentence in missing]
    return "\n".join(lines)


def _ablate_command(study: AblationStudy) -> tuple[list[str], list[str]]:
    provenance = study.provenance
    ablation, settings = provenance["ablation"], provenance.get("settings", {})
    words = ["positional-heads", "ablate", provenance["model"]["name"], "--scores", "report"]
    words += ["--task", provenance["task"].get("name", study.task)]  # a study of some answers has a longer name
    words += ["--mode", ablation["mode"], *_loading_options(provenance)]
    if ablation.get("distance") is not None:
        words.append(f"--distance={ablation['distance']}")
    task_words, missing = _task_options(provenance["task"])
    words += task_words
    if selected := provenance.get("selected"):
        missing.append(f"these are some answers of that study: AblationStudy.where(**{selected})")
    if "sizes" in settings:
        # the file has numbers of heads; their shares round to these numbers again
        shares = ",".join(f"{size / len(study.ranking):.6g}" for size in settings["sizes"])
        words.append(f"--fractions={shares or 'none'}")
    if study.rank_by in get_args(RankBy):
        words += [f"--rank-by={study.rank_by}"] if study.rank_by != "rho" else []
    else:
        missing.append(f"the command cannot rank heads by a measure of your own, {study.rank_by}")
    if "singles" in settings:
        words.append("--singles=" + {len(study.ranking): "all", 0: "none"}.get(settings["singles"], "top"))
    numbers = {"n_random": "n-random", "n_permuted": "permutations", "n_anywhere": "anywhere", "seed": "seed"}
    words += [f"--{option}={settings[key]}" for key, option in numbers.items() if key in settings]
    if provenance["task"].get("seed", settings.get("seed")) != settings.get("seed"):
        missing.append(f"--seed is also the seed of the task, which was {provenance['task']['seed']} in this study")
    if ablation.get("reference") is not None:
        missing.append("if the reference was a text, add --reference FILE; without it, held-out examples are used")
    return [*words, "--out", "ablation"], missing


def _extrapolate_command(study: ExtrapolationStudy) -> tuple[list[str], list[str]]:
    provenance = study.provenance
    methods = list(dict.fromkeys(study.labels))
    factors = ",".join(f"{length / study.training_length:.9g}" for length in sorted(set(study.lengths)))
    words = ["positional-heads", "extrapolate", provenance["model"]["name"], "--methods", ",".join(methods)]
    words += ["--factors", factors, f"--training-length={study.training_length}", *_loading_options(provenance)]
    if data := provenance.get("data"):
        text = "bundled" if _on_bundled_text(provenance) else "TEXT.txt"
        words += ["--text", text, f"--sequences={data['sequences']}"]
    task = provenance["task"]
    known = {"name", "depths", "examples", "seed"}
    task_words, missing = _task_options({key: value for key, value in task.items() if key in known})
    words += ["--task", task["name"], *task_words]
    words += [f"--seed={task['seed']}"] if "seed" in task else []
    missing += [_no_option(key, value) for key, value in task.items() if key not in known]
    missing += [_no_option("the settings of method", label) for label in methods if "(" in label]
    if data and data.get("longest", 0) > max(study.lengths):
        missing.append(f"the text was cut into sequences of {data['longest']} tokens, for a length that was left out")
    missing.append(f"the command follows the heads with the highest rho; this study followed {_names(study.heads)}")
    return [*words, "--out", "extrapolation"], missing


def _task_options(task: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Options for the settings of a task, and sentences on those that have none."""
    words = [f"--length={length}" for length in task.get("lengths", ())]
    missing = []
    depths = task.get("depths")
    if isinstance(depths, list):
        even = [index / len(depths) for index in range(len(depths))]
        if depths == even:
            words.append(f"--depths={len(depths)}")
        else:
            missing.append(_no_option("depths", depths))
    elif depths is not None:
        words.append(f"--depths={depths}")
    if task.get("haystack") == "own":
        words.append("--haystack=HAYSTACK.txt")
    if "documents" in task:  # LongBench
        words += ["--file=FILE.jsonl", f"--examples={task['documents']}"]
    words += [f"--{key.replace('_', '-')}={task[key]}" for key in TASK_OPTIONS if task.get(key) is not None]
    return words, missing


def _loading_options(provenance: Mapping[str, Any]) -> list[str]:
    """The options that load the model as it was."""
    model = provenance["model"]
    dtype, adapter = model.get("dtype") or "float32", model.get("adapter")
    words = [] if dtype == "float32" else ["--dtype", str(dtype)]
    return words if adapter is None else [*words, "--adapter", str(adapter)]


def _no_option(setting: str, value: Any) -> str:
    return f"the command has no option for {setting} {value}"


def _names(heads: Iterable[Head]) -> str:
    return ", ".join(map(str, heads))
