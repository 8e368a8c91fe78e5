"""Compare each model family with an oracle in each way of running, and write docs/families.md.

`python -m tests.support.family_table` writes the page; `test_families` compares it with new runs. The oracle reads q, k
and masks from Hugging Face's plain model, one sequence at a time, without a bridge.
"""

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import StaticCache

import positional_heads as ph
from positional_heads.bridge import prefill
from positional_heads.bridge.plain_run import plain_run_refusal
from tests.support import hugging_face, oracles
from tests.support.tiny_models import ADJACENT, FAMILIES, boot, rotary_dim, save_tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
EQUAL, PLAIN, HOOKS, REFUSED = "equal", "plain run", "hooks: ", "refused: "
HEADER = """# Supported families

Results of a tiny random model of each family, of two to four layers. The page is written by
`python -m tests.support.family_table`, and the tests reproduce it. *Equal* means that rho and the mean of D at every
distance equal those of a float64 brute force over the queries, keys and masks of Hugging Face's own forward pass, one
sequence at a time, without a bridge: to 0.001, and in bf16, against Hugging Face's bf16, to 0.01 and 0.05.

- *read from*: a *plain run* of the model, with Hugging Face's own attention and no attention scores in memory, or the
  bridge's *hooks*, with the reason. With hooks of your own and in compatibility mode, it is read from hooks in every
  family.
- *whole*, *left* and *right padding* (sequences of 30 and 23 tokens in one batch): read as the second column says.
  *Hooks* (one row padded on the left, one on the right) and *chunked* (8 tokens at a time; hybrids in one pass): beside
  another hook, so read from hooks.
- *static cache*: logits of a prompt and its continuation with a static key-value cache equal those of one run without a
  cache. *Beam search*: three beams give the same tokens with and without a cache. Both under an ablation, with mode
  `far` where scores can be edited, else `zero`.
- *refused*: raises an `UnsupportedModelError` with the reason.
"""
LENGTHS = (30, 23)
ATTENTION_FACTOR = {"gpt_oss": 0.1 * math.log(32) + 1}
"""Families whose configuration has YaRN with factor 32 by default: D is of contributions without it."""
TOLERANCE = {torch.float32: (1e-3, 1e-3), torch.bfloat16: (1e-2, 5e-2)}
"""Of rho (bins move ranks by up to 5e-4) and of means of D; in bfloat16, TransformerLens rounds in other places."""

ROWS = [np.random.default_rng(0).integers(0, 256, length) for length in LENGTHS]
TOKENS = [torch.from_numpy(row) for row in ROWS]


class Family:
    """A family's tiny model, booted when it is needed, and what the oracle says of it."""

    def __init__(self, name: str, folder: Path, bridge: Callable[..., Any]) -> None:
        self.name, self.folder, self._bridge = name, folder, bridge
        self._oracles: dict[torch.dtype, dict[int, tuple[np.ndarray, np.ndarray]]] = {}

    def bridge(self, **settings: Any) -> Any:
        return self._bridge(self.name, **settings)

    def oracle(self, dtype: torch.dtype = torch.float32) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """rho [head] and curve [head distance] of each layer that rotates."""
        if dtype not in self._oracles:
            read = [hugging_face.read(self.folder, row, dtype) for row in ROWS]
            self._oracles[dtype] = {layer: self._attended([row[layer] for row in read], layer) for layer in read[0]}
        return self._oracles[dtype]

    def _attended(self, rows: list[Any], layer: int) -> tuple[np.ndarray, np.ndarray]:
        factor = ATTENTION_FACTOR.get(self.name, 1)
        plain = [(q / factor, k / factor, visible) for q, k, visible in rows]
        layout = "adjacent" if self.name in ADJACENT else "half"
        return oracles.attended_score(plain, layout, rotary_dim(self.name, layer) // 2)


def compared(scores: Any, oracle: dict[int, Any], dtype: torch.dtype = torch.float32) -> str:
    """`EQUAL`, or by how much scores miss the oracle's."""
    rho_error = curve_error = 0.0
    scored = [layer for layer in range(len(scores.rho)) if not scores.rho[layer].isnan().all()]
    if not scored:
        return "nothing was scored"
    for layer in scored:
        rho, curve = oracle[layer]
        found = scores.curve[layer].numpy()
        if np.isnan(found[:, : curve.shape[1]]).any() or not np.isnan(found[:, curve.shape[1] :]).all():
            return f"layer {layer} counts other distances"
        rho_error = max(rho_error, float(np.abs(scores.rho[layer].numpy() - rho).max()))
        curve_error = max(curve_error, float(np.abs(found[:, : curve.shape[1]] - curve).max()))
    limits = TOLERANCE[dtype]
    fits = rho_error <= limits[0] and curve_error <= limits[1]
    return EQUAL if fits else f"misses rho by {rho_error:.1g}, means of D by {curve_error:.1g}"


def read_from(family: Family) -> str:
    layers = list(ph.resolve_layers(family.bridge()).layers.values())
    reason = plain_run_refusal(family.bridge())
    assert (reason is None) == all(rotary.plain for rotary in layers)
    return PLAIN if reason is None else f"{HOOKS}{reason}"


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    """A block with an idle hook, so that nothing is read from plain runs."""
    with model.hooks(fwd_hooks=[("embed.hook_out", lambda tensor, hook: None)]):
        assert plain_run_refusal(model) is not None
        yield


def whole(family: Family) -> str:
    return compared(ph.score_heads(family.bridge(), TOKENS), family.oracle())


def chunked(family: Family) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "SHORTEST_CHUNK", 8)
        patch.setattr(prefill, "LONGEST_CHUNK", 8)
        with hooked(family.bridge()):
            return compared(ph.score_heads(family.bridge(), TOKENS), family.oracle())


def padded(*sides: str) -> Callable[[Family], str]:
    """Both rows padded, the shorter and the longer one on that side."""

    def run(family: Family) -> str:
        width = max(LENGTHS) + (len(set(sides)) - 1)
        tokens, mask = torch.full((2, width), 257), torch.zeros(2, width, dtype=torch.long)
        for row, (one, side) in enumerate(zip(TOKENS, sides, strict=True)):
            place = slice(width - len(one), None) if side == "left" else slice(len(one))
            tokens[row, place], mask[row, place] = one, 1
        return compared(ph.score_heads(family.bridge(), tokens, attention_mask=mask), family.oracle())

    return run


def hooks(family: Family) -> str:
    with hooked(family.bridge()):
        return padded("left", "right")(family)


def compatible(family: Family) -> str:
    try:
        model = family.bridge(compatible=True)
    except RuntimeError:
        return "refused: TransformerLens itself cannot put this family into compatibility mode"
    return compared(ph.score_heads(model, TOKENS), family.oracle())


def half(family: Family) -> str:
    model = boot(family.folder, dtype=torch.bfloat16)
    return compared(ph.score_heads(model, TOKENS), family.oracle(torch.bfloat16), torch.bfloat16)


@contextmanager
def _edited(family: Family, model: Any) -> Iterator[None]:
    """A head that sees 3 tokens back, or where scores take no edits one without output: in one of the scored layers."""
    layer = min(ph.resolve_layers(model).layers)
    far = ph.resolve_layers(model).layers[layer].holds == "scores"
    with ph.ablated_heads(model, [ph.Head(layer, 1)], "far" if far else "zero", **({"distance": 3} if far else {})):
        yield


@torch.no_grad()
def static_cache(family: Family) -> str:
    """Logits of a prompt and of what follows it, against one run without a cache."""
    model, tokens = family.bridge(), TOKENS[0][None]
    untouched = model(tokens)
    with _edited(family, model):
        expected = model(tokens)
        cache = StaticCache(config=model.original_model.config, max_cache_len=48)
        parts = [
            model(part, past_key_values=cache, use_cache=True, return_type="logits_and_cache")[0]
            for part in tokens.split(20, dim=1)
        ]
    assert not torch.allclose(expected, untouched, atol=1e-2), "the edit does nothing"
    error = float((torch.cat(parts, 1) - expected).abs().max() / expected.abs().max())
    return EQUAL if error < 1e-4 else f"logits differ by {error:.1g} of the largest"


@torch.no_grad()
def beams(family: Family) -> str:
    """Tokens of beam search with the model's cache, against beam search without one."""
    model, prompt = family.bridge(), TOKENS[0][None, :16]
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "return_type": "tokens", "stop_at_eos": False}
    with _edited(family, model):
        found = [model.hf_generate(prompt, use_past_kv_cache=use, **settings) for use in (True, False)]
    return EQUAL if torch.equal(*found) else "other tokens"


MODES: dict[str, Callable[[Family], str]] = {
    "read from": read_from,
    "whole": whole,
    "left padding": padded("left", "left"),
    "right padding": padded("right", "right"),
    "hooks": hooks,
    "chunked": chunked,
    "static cache": static_cache,
    "beam search": beams,
    "compatibility mode": compatible,
    "bf16": half,
}


def cells(family: Family) -> list[str]:
    """What is read, and what each way of running gives: `EQUAL`, or why there is no number."""
    found: list[str] = []
    for mode in MODES.values():
        if found and found[0].startswith(REFUSED):  # at the door, whatever the way of running
            found.append(found[0])
            continue
        try:
            found.append(mode(family))
        except ph.UnsupportedModelError as refused:
            found.append(f"{REFUSED}{refused}")
    return found


def page(rows: dict[str, list[str]]) -> str:
    """The page of the docs."""
    reasons = list(dict.fromkeys(cell for row in rows.values() for cell in row if ": " in cell))
    shown = {EQUAL: EQUAL, PLAIN: PLAIN}
    shown |= {reason: f"{reason.split(':')[0]} ({number})" for number, reason in enumerate(reasons, 1)}
    lines = [HEADER, f"| family | {' | '.join(MODES)} |", "| --- |" + " --- |" * len(MODES)]
    lines += [f"| {FAMILIES[name][0]} | {' | '.join(shown[cell] for cell in row)} |" for name, row in rows.items()]
    lines += ["", "Why:", ""]
    lines += [f"{number}. {reason.split(': ', 1)[1]}." for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


def committed() -> dict[str, list[str]]:
    """The table in the docs, read back: cells by family."""
    text = PAGE.read_text()
    reasons = dict(re.findall(r"^(\d+)\. (.*)\.$", text, re.MULTILINE))
    names = {prefix: name for name, (prefix, _) in FAMILIES.items()}
    rows = {}
    for line in text.splitlines():
        first, *row = [cell.strip() for cell in line.strip("|").split("|")]
        if first in names:
            rows[names[first]] = [_read_back(cell, reasons) for cell in row]
    return rows


def _read_back(cell: str, reasons: dict[str, str]) -> str:
    word, _, number = cell.removesuffix(")").partition(" (")
    return f"{word}: {reasons[number]}" if number else cell


def main() -> None:
    """Run every family and write the page."""
    folders = tempfile.TemporaryDirectory()
    rows = {}
    for name in FAMILIES:
        folder = save_tiny_model(name, Path(folders.name) / name)
        booted: dict[bool, Any] = {}

        def bridge(_: str, compatible: bool = False, folder: Path = folder, booted: dict[bool, Any] = booted) -> Any:
            if compatible not in booted:
                booted[compatible] = boot(folder)
                if compatible:
                    booted[compatible].enable_compatibility_mode(disable_warnings=True)
            return booted[compatible]

        rows[name] = cells(Family(name, folder, bridge))
        print(name, [cell for cell in rows[name] if cell not in (EQUAL, PLAIN)] or EQUAL, flush=True)  # noqa: T201
    PAGE.write_text(page(rows))
    folders.cleanup()


if __name__ == "__main__":
    main()
