"""Plans and studies that somebody edited and sealed again are refused in a sentence, and never half understood."""

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

import positional_heads as ph
from positional_heads.results.files import read_result, write_result
from tests.support.planted_plans import SHAPE, planted_plans
from tests.support.synthetic_profile import synthetic_profile

COSTS = np.arange(24.0).reshape(SHAPE)
RECORDS = {
    "HeadPlan": lambda: ph.window_plan(synthetic_profile()),
    "PairPlan": lambda: ph.pair_plan(synthetic_profile()),
    "PlanStudy": lambda: planted_plans(COSTS, {"good": COSTS}, budgets=(0.5,), units=4, n_random=2),
}
NUMBERS = (-2, 1.5, 10**30, math.nan, True, "x", None, [])
WORDS = ("", 3, None, [], ["x"], "\u0000" * 200)
EDITS = {
    "HeadPlan": {"by": WORDS, "budget": NUMBERS, "window": (1, *NUMBERS), "sinks": NUMBERS},
    "PairPlan": {"by": WORDS, "budget": NUMBERS, "how": ("zero", *WORDS)},
    "PlanStudy": {"planned": ("zero", *WORDS), "rows": ([], [[]], [{}], [{"unit": 0, "reach": "far"}], "x", None)},
}
for edits in EDITS.values():
    edits |= {"notes": ("x", [3], None, {}), "provenance": ("x", [], None)}
EDITS["PlanStudy"] |= {
    "task": (3, None, []),
    "chance": ([], {"log_prob": "x"}, {"log_prob": None}),
    "measures": ([], ["other"], "x"),
    "cells": ([], [["none", 0, 0, [], "none", 1.0]], "x", [[]], [["none", 0, 0, ["x"], "none", 1.0]]),
}
CELL = {0: ("zero", 3, None), 1: (-1, 1.5, "x"), 2: (-1, None), 3: ([3], "L0H0", ["L0"], []), 4: (3, None)}
CELL[5] = NUMBERS


def sealed(record, folder, content, tensors=None):
    """A file with this content, as this library would have written it."""
    file = record.save(folder)
    _, raw = read_result(file, record.saved_as)
    tensors = safetensors.torch.load(raw) if tensors is None else tensors
    own = {key: value for key, value in content.items() if key not in {"format", "version"}}
    write_result(file, safetensors.torch.save(tensors), own, record.saved_as)
    return file


def refused(record, folder, content, tensors=None):
    file = sealed(record, folder, content, tensors)
    with pytest.raises(ph.ResultFileError, match=f"not damaged, but not a .*{type(record).__name__}"):
        type(record).load(file)


@pytest.mark.parametrize("kind", RECORDS)
def test_values_that_make_no_sense_are_refused(kind, tmp_path):
    record = RECORDS[kind]()
    content, _ = read_result(record.save(tmp_path), record.saved_as)
    type(record).load(sealed(record, tmp_path, content))
    for name, values in EDITS[kind].items():
        for value in values:
            refused(record, tmp_path, {**content, name: value})
        if name != "planned":  # which studies before those of pairs do not say
            refused(record, tmp_path, {key: value for key, value in content.items() if key != name})


def test_cells_that_make_no_sense_are_refused(tmp_path):
    record = RECORDS["PlanStudy"]()
    content, _ = read_result(record.save(tmp_path), record.saved_as)
    cells = content["cells"]
    for place, values in CELL.items():
        for value in values:
            changed = [*cells[1][:place], value, *cells[1][place + 1 :]]
            refused(record, tmp_path, {**content, "cells": [cells[0], changed, *cells[2:]]})
    refused(record, tmp_path, {**content, "cells": cells[1:]})  # nothing to compare with
    refused(record, tmp_path, {**content, "cells": [cell for cell in cells if cell[0] != "chance"]})
    refused(record, tmp_path, {**content, "rows": content["rows"][:-1]})
    refused(record, tmp_path, {**content, "planned": "frozen pairs"})  # of which a set is like L0K1:ff


@pytest.mark.parametrize("kind", RECORDS)
def test_tensors_of_another_shape_type_or_range_are_refused(kind, tmp_path):
    record = RECORDS[kind]()
    content, raw = read_result(record.save(tmp_path), record.saved_as)
    tensors = safetensors.torch.load(raw)
    for name, values in tensors.items():
        wrong = [values[:-1], values[..., :0], values[None], torch.zeros(()), values.to(torch.complex64)]
        if values.is_floating_point() and name.startswith("values"):
            wrong += [torch.full_like(values, torch.nan), values + torch.inf]
        elif values.is_floating_point():
            wrong += [values.float(), torch.full_like(values, torch.inf)]
        elif values.dtype == torch.bool:
            wrong += [values.long(), values.float()]
        else:
            wrong += [values + 100, values - 100, values.float(), values.int()]
            wrong = [one for one in wrong if not (name == "cache.windows" and torch.equal(one, values + 100))]
        for one in wrong:
            refused(record, tmp_path, content, {**tensors, name: one.contiguous()})
        refused(record, tmp_path, content, {other: one for other, one in tensors.items() if other != name})
    if kind != "PlanStudy":
        refused(record, tmp_path, content, {**tensors, "more": torch.ones(2)})


def test_windows_where_none_can_be_are_refused():
    plan = RECORDS["HeadPlan"]()
    with pytest.raises(ValueError, match="windowed has key heads that do not exist, or whose layer has a sliding"):
        replace(plan, cache=replace(plan.cache, windows=torch.tensor([7, 7, 0])))
    with pytest.raises(ValueError, match="ranked_by must be finite"):
        replace(plan, ranked_by=plan.ranked_by * torch.nan)
    with pytest.raises(ValueError, match="key_heads names other key heads than the layer, or"):
        replace(plan, cache=replace(plan.cache, held=torch.tensor([2, 1, 0])))
    pairs = RECORDS["PairPlan"]()
    with pytest.raises(ValueError, match="kept must be True where there is no pair to choose"):
        replace(pairs, kept=torch.zeros_like(pairs.kept))
