"""Commands that reproduce results, from their provenance alone.

What a command cannot repeat stands below it, in comments; so does the fingerprint of the weights, to compare.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from positional_heads.bridge.provenance import data_hash
from positional_heads.core.edit_words import MANIPULATED
from positional_heads.core.heads import Head
from positional_heads.core.plan import MOST_EXACT, SAMPLED
from positional_heads.results.ablation import AblationStudy, RankBy
from positional_heads.results.edits import edits_of, extension_of
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.text import printable
from positional_heads.views.report.local_names import in_folder
from positional_heads.zoo.architecture import BOS_ID
from positional_heads.zoo.bundled import BUNDLED, bundled_text
from positional_heads.zoo.bundled import text_names as bundled_names

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
"""Settings of a score that are options of `score`, and their defaults there."""
PROFILE_OPTIONS = {name: OPTIONS[name] for name in ("null_repeats", "control_keys", "seed")} | {
    "window": ("--window", 256),
    "sinks": ("--sinks", 4),
}
"""Settings of a head profile that are options of `profile`, and their defaults there."""
DISTANCE_OPTIONS = {name: PROFILE_OPTIONS[name] for name in ("window", "sinks")}
"""Settings of a distance profile that are options of `distances`, and their defaults there."""
WITHOUT_OPTION = {"resamples": 1000, "bins": 2048, "divide_attention_factor": True}
"""Those that are none, and their defaults."""
WITHOUT_PROFILE_OPTION = {name: default for name, (_, default) in OPTIONS.items() if name not in PROFILE_OPTIONS}
WITHOUT_PROFILE_OPTION |= {**WITHOUT_OPTION, "ranges": 24, "queries": 4, "agreement_keys": 64}
PLACEHOLDER = re.compile(r"\b(?:TEXT\d*\.txt|HAYSTACK\.txt|FILE\.jsonl|FOLDER/[^\s'\"]+)")
STEP = re.compile(rf"{BUNDLED} at step (\d+)")
"""Name of the bundled model at a step of its training."""
WITH_ADAPTER = " with adapter "
"""Between the names of a model and of the adapter that its layers compute beside their weights."""
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
    words, missing = _counting_command("score", provenance, OPTIONS, WITHOUT_OPTION)
    return printed([*words, "--out", "report"], [*missing, *not_repeated(provenance)])


def profile_command(provenance: Mapping[str, Any], out: str = "profile") -> str:
    """The command that profiles the same model with the same settings; the result does not contain the text."""
    longest = provenance["data"]["longest"]
    pairs = "all" if longest * (longest + 1) // 2 <= MOST_EXACT else SAMPLED  # when none are asked for
    words, missing = _counting_command(
        "profile", provenance, PROFILE_OPTIONS, {**WITHOUT_PROFILE_OPTION, "pairs": pairs}
    )
    asked = provenance.get("retrieval")
    if asked is None:
        words += ["--retrieval", "none"]
    elif isinstance(asked, Mapping):
        words += ["--retrieval", str(asked["task"])] if asked["task"] != "passkey" else []
        words += [f"--retrieval-examples={asked['examples_tried']}"] if "examples_tried" in asked else []
    return printed([*words, "--out", out], [*missing, *not_repeated(provenance)])


def distance_command(provenance: Mapping[str, Any], out: str = "distances") -> str:
    """The command that makes the same distance profile; the result does not contain the text."""
    words, missing = _counting_command("distances", provenance, DISTANCE_OPTIONS, {"edges": None})
    if seed := (provenance["data"].get("drawn") or {}).get("seed"):
        words += ["--seed", str(seed)]
    return printed([*words, "--out", out], [*missing, *not_repeated(provenance)])


def _counting_command(
    command: str,
    provenance: Mapping[str, Any],
    options: Mapping[str, tuple[str, Any]],
    without: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """The words of a command that counts over a text, and what they do not repeat."""
    data, settings = provenance["data"], provenance["settings"]
    drawn, missing = data.get("drawn"), []
    words = ["positional-heads", command, model_name(provenance)]
    for name in text_names(provenance):
        words += ["--text", name]
    if drawn is None:
        words += ["--sequences", str(data["sequences"]), "--in-order", "--length", str(data["longest"])]
        missing.append("how the sequences were made is not recorded: these are the first of a text, no --plain-text")
    else:
        words += ["--sequences", str(drawn["sequences"]), "--length", str(drawn["length"])]
        words += ["--plain-text"] if drawn["plain_text"] else []
    words += loading_options(provenance)
    for setting, (option, default) in options.items():
        if setting in settings and settings[setting] != default:
            words += [option, str(settings[setting])]
    missing += [
        no_option(setting, settings[setting])
        for setting, default in without.items()
        if settings.get(setting, default) != default
    ]
    if drawn is not None and drawn["seed"] != settings.get("seed", drawn["seed"]):
        missing.append(f"it draws other sequences: the seed of these was {drawn['seed']}, see the lines in Python")
    if beyond_context(provenance):
        missing.append(f"sequences of {data['longest']} tokens are beyond the model's context, which it refuses")
    return words, missing


def beyond_context(provenance: Mapping[str, Any]) -> bool:
    """Whether sequences are longer than the model's context."""
    return bool(provenance["data"]["longest"] > provenance["model"].get("context", float("inf")))


def not_repeated(provenance: Mapping[str, Any]) -> list[str]:
    """Sentences on what of the model no command repeats, and what its weights must then be."""
    model, missing = provenance["model"], []
    if step := STEP.fullmatch(str(model["name"])):
        missing.append(
            f"the model was that of a step of training, ph.load_bundled_model({step[1]}): no command loads it"
        )
    if WITH_ADAPTER in str(model["name"]):
        missing.append("the adapter was in the layers of a model that was loaded already: --adapter FOLDER merges one")
    if (config := model.get("quantization_config")) is not None:
        missing.append(no_option("quantising weights while they are loaded, quantization_config", config))
    if model.get("compatibility_mode"):
        missing.append("the model was in compatibility mode, enable_compatibility_mode(): no option switches it on")
    if (extension := provenance.get("extension")) and extension["method"] == MANIPULATED:
        missing.append(f"the model was run with {extension_of(provenance)}: no option does that")
    elif extension:
        missing.append(no_option("an extended context,", extension))
    if edits := edits_of(provenance):
        missing.append(f"the model was run under {edits}: no option does that")
    if fingerprint := model.get("weights"):
        missing.append(f"the same weights have the fingerprint {fingerprint}")
    return missing


def printed(words: Iterable[str], missing: Iterable[str]) -> str:
    """A command, and below it what it does not repeat, in comments."""
    command = " ".join(shlex.quote(printable(word, newlines=False)) for word in words)
    return "\n".join([command, *(f"# {printable(sentence, newlines=False)}" for sentence in missing)])


def model_name(provenance: Mapping[str, Any]) -> str:
    """What loads the model, or the nearest to it."""
    name = str(provenance["model"]["name"]).partition(WITH_ADAPTER)[0]
    return BUNDLED if STEP.fullmatch(name) else in_folder(name, provenance["model"])


def text_names(provenance: Mapping[str, Any]) -> list[str]:
    """What `--text` takes for each text that was scored."""
    drawn = provenance["data"].get("drawn")
    if drawn is None:
        return [BUNDLED if _on_bundled_text(provenance) else "TEXT.txt"]
    kinds = bundled_names()
    names = [kinds.get(text["sha256"]) for text in drawn["texts"]]
    return [name or ("TEXT.txt" if len(names) == 1 else f"TEXT{number}.txt") for number, name in enumerate(names, 1)]


def study_commands(studies: list[AblationStudy], extended: list[ExtrapolationStudy]) -> str:
    """The commands of the studies; comments below a command list the settings that it does not have."""
    commands = [
        *map(_ablate_command, studies, folders("ablation", len(studies))),
        *map(_extrapolate_command, extended, folders("extrapolation", len(extended))),
    ]
    return "\n".join(printed(words, missing) for words, missing in commands)


def folders(name: str, count: int) -> list[str]:
    """Names of the folders that so many commands write, which are numbered where there are several."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def placeholders(commands: Iterable[str]) -> list[str]:
    """Files in commands and lines of Python that stand for what is not in a result."""
    return list(dict.fromkeys(name for command in commands for name in PLACEHOLDER.findall(command)))


def _ablate_command(study: AblationStudy, out: str) -> tuple[list[str], list[str]]:
    provenance = study.provenance
    ablation, settings = provenance["ablation"], provenance.get("settings", {})
    words = ["positional-heads", "ablate", model_name(provenance), "--scores", "report"]
    words += ["--task", provenance["task"].get("name", study.task)]  # a study of some answers has a longer name
    words += ["--mode", ablation["mode"], *loading_options(provenance)]
    if ablation.get("distance") is not None:
        words.append(f"--distance={ablation['distance']}")
    task_words, missing = task_options(provenance["task"])
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
    return [*words, "--out", out], [*missing, *not_repeated(provenance)]


def _extrapolate_command(study: ExtrapolationStudy, out: str) -> tuple[list[str], list[str]]:
    provenance = study.provenance
    methods = list(dict.fromkeys(study.labels))
    factors = ",".join(f"{length / study.training_length:.9g}" for length in sorted(set(study.lengths)))
    words = ["positional-heads", "extrapolate", model_name(provenance), "--methods", ",".join(methods)]
    words += ["--factors", factors, f"--training-length={study.training_length}", *loading_options(provenance)]
    data: Mapping[str, Any] = provenance.get("data") or {}
    drawn: Mapping[str, Any] = data.get("drawn") or {}
    if data:
        for name in text_names(provenance):
            words += ["--text", name]
        words += [f"--sequences={data['sequences']}", *([] if drawn else ["--in-order"])]
    task = provenance["task"]
    known = {"name", "depths", "examples", "seed"}
    task_words, missing = task_options({key: value for key, value in task.items() if key in known})
    words += ["--task", task["name"], *task_words]
    words += [f"--seed={task['seed']}"] if "seed" in task else []
    missing += [no_option(key, value) for key, value in task.items() if key not in known]
    if drawn.get("seed", task.get("seed")) != task.get("seed"):
        missing.append(f"--seed is also the seed of the drawn sequences, which was {drawn['seed']} in this study")
    if drawn.get("plain_text"):
        missing.append(no_option("plain_text", value=True))
    missing += [no_option("the settings of method", label) for label in methods if "(" in label]
    if drawn and drawn["length"] != data["longest"]:
        missing.append(f"it draws other sequences: these were the first {data['longest']} tokens of {drawn['length']}")
    if data and data.get("longest", 0) > max(study.lengths):
        missing.append(f"the text was cut into sequences of {data['longest']} tokens, for a length that was left out")
    missing.append(f"the command follows the heads with the highest rho; this study followed {_names(study.heads)}")
    return [*words, "--out", out], [*missing, *not_repeated(provenance)]


def task_options(task: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Options for the settings of a task, and sentences on those that have none."""
    words = [f"--length={length}" for length in task.get("lengths", ())]
    missing = []
    depths = task.get("depths")
    if isinstance(depths, list):
        even = [index / len(depths) for index in range(len(depths))]
        if depths == even:
            words.append(f"--depths={len(depths)}")
        else:
            missing.append(no_option("depths", depths))
    elif depths is not None:
        words.append(f"--depths={depths}")
    if task.get("haystack") == "own":
        words.append("--haystack=HAYSTACK.txt")
    if "documents" in task:  # LongBench
        words += ["--file=FILE.jsonl", f"--examples={task['documents']}"]
    words += [f"--{key.replace('_', '-')}={task[key]}" for key in TASK_OPTIONS if task.get(key) is not None]
    return words, missing


def loading_options(provenance: Mapping[str, Any]) -> list[str]:
    """The options that load the model as it was."""
    model = provenance["model"]
    dtype, adapter = model.get("dtype") or "float32", model.get("adapter")
    words = [] if dtype == "float32" else ["--dtype", str(dtype)]
    return words if adapter is None else [*words, "--adapter", in_folder(str(adapter), model, "adapter")]


def no_option(setting: str, value: Any) -> str:
    """A sentence on a setting that the command cannot repeat."""
    return f"the command has no option for {setting} {value}"


def _names(heads: Iterable[Head]) -> str:
    return ", ".join(map(str, heads))
