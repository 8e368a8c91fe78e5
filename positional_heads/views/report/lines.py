"""Lines of Python that repeat a score or a profile with every setting, and assert the same tokens and weights."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.core.edit_words import MANIPULATED
from positional_heads.core.heads import Head
from positional_heads.results.distance_response import DistanceResponse
from positional_heads.results.edits import edits_of
from positional_heads.results.jump_study import JumpStudy
from positional_heads.results.text import printable
from positional_heads.views.report.commands import STEP, WITH_ADAPTER, beyond_context, text_names
from positional_heads.views.report.local_names import in_folder
from positional_heads.zoo.bundled import BUNDLED

ALWAYS_BEYOND = ("jump_study", "distance_response")
"""Verbs that take sequences of any length without being told to."""


def score_lines(provenance: Mapping[str, Any]) -> str:
    """The lines; the text is not in the result, so a file is named TEXT.txt."""
    return _lines(provenance, "scores", "score_heads", provenance["settings"])


def profile_lines(provenance: Mapping[str, Any]) -> str:
    """The same of a head profile."""
    asked = provenance.get("retrieval")
    given = {"retrieval": None} if asked is None else {}
    if isinstance(asked, Mapping):
        tried = {"retrieval_examples": asked["examples_tried"]} if "examples_tried" in asked else {}
        given = {"retrieval": asked["task"], **tried}
    return _lines(provenance, "profile", "profile_heads", {**provenance["settings"], **given})


def distance_lines(provenance: Mapping[str, Any]) -> str:
    """The same of a distance profile."""
    return _lines(provenance, "profile", "distance_profile", provenance["settings"])


def jump_lines(study: JumpStudy) -> str:
    """The same of a jump study."""
    settings = study.provenance.get("settings", {})
    given = {name: settings.get(name) for name in ("samples", "pairs", "seed") if name in settings}
    return _lines(study.provenance, "jumps", "jump_study", {"training_length": study.training_length, **given})


def response_lines(found: DistanceResponse) -> str:
    """The same of a distance response."""
    settings, every = dict(found.provenance.get("settings", {})), found.scores.heads
    layers, scored = settings.pop("layers", None), found.scores.provenance.get("settings", {})
    if layers is None or len(found.heads) != len(layers) * found.sums.shape[-1] or len(found.heads) < len(every):
        settings = {"heads": [str(head) for head in found.heads], **settings}
    settings |= {"null_repeats": scored["null_repeats"]} if "null_repeats" in scored else {}
    return _lines(found.provenance, "response", "distance_response", settings)


def _lines(provenance: Mapping[str, Any], result: str, verb: str, arguments: Mapping[str, Any]) -> str:
    texts = [_text_expression(text) for text in text_names(provenance)]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    imports, load = _loading(provenance["model"])
    beyond = ", beyond_context=True" if beyond_context(provenance) else ""
    data = provenance["data"]
    if (drawn := data.get("drawn")) is None:
        cut = f"ph.cut_text(model, {text}, {data['longest']}{beyond})[:{data['sequences']}]"
    else:
        how = ", ".join(f"{key}={drawn[key]!r}" for key in ("length", "sequences", "seed", "plain_text"))
        cut = printable(f"ph.cut_text(model, {text}, {how}{beyond})", newlines=False)
    settings = [f"    {key}={value!r},\n" for key, value in arguments.items()]
    settings += ["    beyond_context=True,\n"] if beyond and verb not in ALWAYS_BEYOND else []
    score = f"{result} = ph.{verb}(\n    model,\n    tokens,\n{''.join(settings)})\n"
    if extension := provenance.get("extension"):
        score = _within(extension, provenance["model"].get("layers"), score)
    if edits := edits_of(provenance):
        score = f"# under {edits}:\n{score}"
    known = (("data", "sha256", "tokens"), ("model", "weights", "weights"))
    asserted = "".join(
        f'assert {result}.provenance["{part}"]["{key}"] == {printable(value)!r}  # the same {what}\n'
        for part, key, what in known
        if (value := provenance[part].get(key)) is not None
    )
    path = "from pathlib import Path\n\n" if "Path(" in text else ""
    return f"{path}{imports}import positional_heads as ph\n\n{load}tokens = {cut}\n{score}{asserted}"


def _loading(model: Mapping[str, Any]) -> tuple[str, str]:
    """The imports that loading the model needs, and the line that loads it."""
    name = printable(in_folder(str(model["name"]), model), newlines=False)
    dtype = printable(model.get("dtype") or "float32", newlines=False)
    imports, given = "", "" if dtype == "float32" else f", dtype={dtype!r}"
    if model.get("adapter") is not None:
        given += f", adapter={printable(in_folder(model['adapter'], model, 'adapter'), newlines=False)!r}"
    if isinstance(config := model.get("quantization_config"), Mapping):
        imports = "from transformers.quantizers.auto import AutoQuantizationConfig\n\n"
        given += f", quantization_config=AutoQuantizationConfig.from_dict({dict(config)!r})"
    elif config is not None:
        imports = f"# give quantization_config to load_model: {printable(config, newlines=False)}\n"
    if step := STEP.fullmatch(name):
        load = f"ph.load_bundled_model({step[1]})"
    elif WITH_ADAPTER in name:
        imports = "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        base = f"AutoModelForCausalLM.from_pretrained({name.partition(WITH_ADAPTER)[0]!r}, dtype={dtype!r})"
        load = f"ph.load_model(PeftModel.from_pretrained({base}, 'ADAPTER'))"
    else:
        load = "ph.load_bundled_model()" if (name, given) == (BUNDLED, "") else f"ph.load_model({name!r}{given})"
    mode = "model.enable_compatibility_mode()\n" if model.get("compatibility_mode") else ""
    return imports, f"model = {load}\n{mode}"


def _within(extension: Mapping[str, Any], n_layers: int | None, lines: str) -> str:
    """Lines in the block in which the model was extended; below a comment where no name gives its method."""
    if extension["method"] == MANIPULATED:
        return _within_moves(extension["moves"], lines)
    heads = {int(layer): chosen for layer, chosen in extension["heads"].items()}
    name, trained = extension["method"], extension["training_length"]
    settings = {key: value for key, value in extension.items() if key not in {"method", "training_length", "heads"}}
    own = dict(settings)
    try:
        made = rope_method(name, own.pop("factor", None), training_length=trained, **own)
    except (ValueError, TypeError):
        made = None
    if made is None or json.dumps(dict(made.settings)) != json.dumps(settings):
        return f"# in the block of ph.extended_rope that gives {printable(dict(extension), newlines=False)}:\n{lines}"
    given = [f"{key}={value!r}" for key, value in {**settings, "training_length": trained}.items()]
    if any(chosen is not None for chosen in heads.values()):
        given.append(f"heads={[str(Head(layer, head)) for layer in heads for head in heads[layer] or []]!r}")
    elif len(heads) != n_layers:
        given.append(f"layers={sorted(heads)!r}")
    opening = printable(f"with ph.extended_rope(model, {', '.join([repr(name), *given])}):", newlines=False)
    return "\n    ".join([opening, *lines.splitlines()]) + "\n"


def _within_moves(moves: Sequence[Mapping[str, Any]], lines: str) -> str:
    """Lines in the blocks in which pairs were moved, outer first."""
    for move in reversed(moves):
        given = [f"{key}={value!r}" for key, value in move.items() if key != "heads"]
        opening = f"with ph.manipulated_pairs(model, {', '.join([repr(move['heads']), *given])}, shared='split'):"
        lines = "\n    ".join([printable(opening, newlines=False), *lines.splitlines()]) + "\n"
    return lines


def _text_expression(name: str) -> str:
    """A text that `--text` takes, in Python; a file as its path, so that the ends of its lines are read as they are."""
    if name == BUNDLED:
        return "ph.bundled_text()"
    kind = name.removeprefix(f"{BUNDLED}:")
    return f"Path({name!r})" if kind == name else f"ph.bundled_text({kind!r})"
