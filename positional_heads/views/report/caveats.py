"""What must a reader of a result know before believing it, and how is it made again? From its provenance alone."""

import shlex
from collections.abc import Mapping
from typing import Any

import torch

from positional_heads.bridge.provenance import data_hash
from positional_heads.core.statistics import FEWEST_UNITS
from positional_heads.results.ablation import AblationStudy
from positional_heads.results.extrapolation import ExtrapolationStudy
from positional_heads.results.scores import HeadScores
from positional_heads.results.text import printable
from positional_heads.zoo.architecture import BOS_ID
from positional_heads.zoo.bundled import BUNDLED, bundled_text

FEW_GROUPS = 16
ENOUGH_REPEATS = 10
ENOUGH_PERMUTATIONS = 19
"""One in twenty: with fewer no p-value can be as low as 0.05."""
OPTIONS = {
    "null_repeats": ("--null-repeats", 20),
    "skip_keys": ("--skip-keys", 0),
    "min_distance": ("--min-distance", 0),
    "max_distance": ("--max-distance", None),
    "temperature": ("--temperature", 1.0),
    "resolution": ("--resolution", 1 / 256),
    "pairs": ("--pairs", None),
    "seed": ("--seed", 0),
}


def caveats(scores: HeadScores | None, studies: list[AblationStudy], extended: list[ExtrapolationStudy]) -> list[str]:
    """What these results do not show, in sentences."""
    said = ["rho is correlation. That a head carries distance must be shown by taking it away."]
    if scores is not None:
        said += _score_caveats(scores)
    if not studies:
        said.append("No ablation study is in this folder: nothing here says what the model would lose without a head.")
    for study in studies:
        permutations = int(study.provenance.get("settings", {}).get("n_random", 0))
        if permutations < ENOUGH_PERMUTATIONS:
            said.append(f"The ablation of {study.task} has {permutations} permuted rankings: too few for p = 0.05.")
    if extended:
        said.append(
            "Methods and lengths of an extrapolation study share a model and a text: the interval of its correlations "
            "says how much they depend on which methods were tried, and no more."
        )
    said.append("The paper's definitions are replicated; its numbers could not be compared, as no code was published.")
    return said


def _score_caveats(scores: HeadScores) -> list[str]:
    settings, groups = scores.provenance.get("settings", {}), scores.n_groups
    repeats = int(settings.get("null_repeats", 0))
    said = []
    if scores.null is None:
        said.append("No null was computed: geometry alone moves the dominant dimension with distance. Score with 20.")
    elif repeats < ENOUGH_REPEATS:
        said.append(f"The null has {repeats} shuffles, so that its spread is poorly known; 20 are usual.")
    if scores.bootstrap_rho is None:
        said.append("There is a single sequence, hence no interval: how much rho varies between texts is not known.")
    elif groups < FEW_GROUPS:
        enough = groups >= FEWEST_UNITS
        rest = "Intervals and p-values rest" if enough else f"No interval below {FEWEST_UNITS} groups; p-values rest"
        said.append(
            f"{rest} on {groups} groups of sequences. With few groups small p-values come out too small; score at "
            f"least {FEW_GROUPS} sequences where many heads are tested."
        )
    if not settings.get("skip_keys"):
        said.append(
            "The first keys count. An attention sink, and the content of first positions, can pass for distance: see "
            "that what is found survives skip_keys=64."
        )
    if scores.provenance.get("extension"):
        said.append("The model was scored inside an extension of its context, not as it was trained.")
    said.append(
        "Sequences cut from one document are not quite independent, and intervals are that much too narrow. A p-value "
        "over millions of dependent pairs would mean nothing; none is given."
    )
    return said


def _on_our_text(provenance: Mapping[str, Any]) -> bool:
    """Whether the bundled model scored the bundled text: its tokens are bytes, so their fingerprint is known."""
    data = provenance["data"]
    if provenance["model"]["name"] != BUNDLED:
        return False
    room = data["longest"] - 1
    content = bundled_text().encode()[: data["sequences"] * room]
    rows = [torch.tensor([BOS_ID, *content[at : at + room]]) for at in range(0, len(content), room)]
    return data_hash([(row, None) for row in rows]) == data.get("sha256")


def score_command(provenance: Mapping[str, Any]) -> str:
    """The command that scores the same model with the same settings, on a text that the result does not hold."""
    model, data, settings = provenance["model"], provenance["data"], provenance["settings"]
    name = str(model["name"])
    words = ["positional-heads", "score", name, "--text", "bundled" if _on_our_text(provenance) else "TEXT.txt"]
    words += ["--sequences", str(data["sequences"]), "--length", str(data["longest"])]
    if model.get("dtype") not in {None, "float32"}:
        words += ["--dtype", str(model["dtype"])]
    for setting, (option, default) in OPTIONS.items():
        if setting in settings and settings[setting] != default:
            words += [option, str(settings[setting])]
    return " ".join(shlex.quote(printable(word, newlines=False)) for word in [*words, "--out", "report"])


def score_lines(provenance: Mapping[str, Any]) -> str:
    """The same in Python, every setting as it was."""
    model, data = provenance["model"], provenance["data"]
    name = printable(model["name"], newlines=False)
    dtype = printable(model.get("dtype") or "float32", newlines=False)
    precision = "" if dtype == "float32" else f", dtype={dtype!r}"
    load = "ph.load_bundled_model()" if name == BUNDLED else f"ph.load_model({name!r}{precision})"
    ours = _on_our_text(provenance)
    # as bytes, because ends of lines stay what they are, like in the command line
    text = "ph.bundled_text()" if ours else 'Path("TEXT.txt").read_bytes().decode("utf-8")'
    path = "" if ours else "from pathlib import Path\n\n"
    settings = "".join(f"    {key}={value!r},\n" for key, value in provenance["settings"].items())
    return (
        f"{path}import positional_heads as ph\n\nmodel = {load}\n"
        f"tokens = ph.cut_text(model, {text}, {data['longest']})[:{data['sequences']}]\n"
        f"scores = ph.score_heads(\n    model,\n    tokens,\n{settings})\n"
        f'assert scores.provenance["data"]["sha256"] == {printable(data.get("sha256"))!r}  # the same tokens\n'
    )


def study_commands(studies: list[AblationStudy], extended: list[ExtrapolationStudy]) -> str:
    """What the command line needs for the studies; what else they were given stands in their files."""
    lines = []
    for study in studies:
        provenance = study.provenance
        name, mode = provenance["model"]["name"], provenance["ablation"]["mode"]
        words = ["positional-heads", "ablate", name, "--scores", "report", "--task", study.task, "--mode", mode]
        settings = provenance.get("settings", {})
        words += [f"--{key.replace('_', '-')}={settings[key]}" for key in ("n_random", "seed") if key in settings]
        lines.append([*words, "--out", "ablation"])
    for other in extended:
        provenance = other.provenance
        methods = ",".join(dict.fromkeys(other.labels))
        factors = ",".join(f"{length / other.training_length:g}" for length in sorted(set(other.lengths)))
        words = ["positional-heads", "extrapolate", provenance["model"]["name"], "--methods", methods]
        lines.append([*words, "--factors", factors, "--task", provenance["task"]["name"], "--out", "extrapolation"])
    return "\n".join(" ".join(shlex.quote(printable(word, newlines=False)) for word in words) for words in lines)
