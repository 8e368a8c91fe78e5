"""Plans and studies that somebody edited and sealed again are refused in a sentence, and never half understood."""

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

import positional_heads as ph
from positional_heads.results.files import read_result, understood, write_result
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


def read(record, content, tensors):
    """What `load` makes of a whole file with this content."""
    with understood("a file", record.saved_as):
        return type(record)._from_file(content, tensors)


def refused(record, content, tensors):
    with pytest.raises(ph.ResultFileError, match=f"not damaged, but not a .*{type(record).__name__}"):
        read(record, content, tensors)


def saved(kind, folder):
    """A record, and the content and tensors of its file."""
    record = RECORDS[kind]()
    content, raw = read_result(record.save(folder), record.saved_as)
    return record, content, safetensors.torch.load(raw)


def test_a_sealed_file_is_read_so(tmp_path):
    record, content, tensors = saved("HeadPlan", tmp_path)
    own = {key: value for key, value in content.items() if key not in {"format", "version"}}
    write_result(tmp_path / "plan.safetensors", safetensors.torch.save(tensors), own | {"window": 1}, record.saved_as)
    with pytest.raises(ph.ResultFileError, match=r"plan\.safetensors: not damaged, .*window 1 must be a whole number"):
        ph.HeadPlan.load(tmp_path)


@pytest.mark.parametrize("kind", RECORDS)
def test_values_that_make_no_sense_are_refused(kind, tmp_path):
    record, content, tensors = saved(kind, tmp_path)
    read(record, content, tensors)
    for name, values in EDITS[kind].items():
        for value in values:
            refused(record, {**content, name: value}, tensors)
        if name != "planned":  # which studies before those of pairs do not say
            refused(record, {key: value for key, value in content.items() if key != name}, tensors)


def test_cells_that_make_no_sense_are_refused(tmp_path):
    record, content, tensors = saved("PlanStudy", tmp_path)
    cells = content["cells"]
    for place, values in CELL.items():
        for value in values:
            changed = [*cells[1][:place], value, *cells[1][place + 1 :]]
            refused(record, {**content, "cells": [cells[0], changed, *cells[2:]]}, tensors)
    refused(record, {**content, "cells": cells[1:]}, tensors)  # nothing to compare with
    refused(record, {**content, "cells": [cell for cell in cells if cell[0] != "chance"]}, tensors)
    refused(record, {**content, "rows": content["rows"][:-1]}, tensors)
    refused(record, {**content, "planned": "frozen pairs"}, tensors)  # of which a set is like L0K1:ff


@pytest.mark.parametrize("kind", RECORDS)
def test_tensors_of_another_shape_type_or_range_are_refused(kind, tmp_path):
    record, content, tensors = saved(kind, tmp_path)
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
            refused(record, content, {**tensors, name: one.contiguous()})
        refused(record, content, {other: one for other, one in tensors.items() if other != name})
    if kind != "PlanStudy":
        refused(record, content, {**tensors, "more": torch.ones(2)})


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


def test_measures_of_a_profile_that_do_not_belong_together_are_refused(tmp_path):
    record = synthetic_profile()
    content, raw = read_result(record.save(tmp_path), record.saved_as)
    tensors = safetensors.torch.load(raw)
    read(record, content, tensors)
    weights, kernel = tensors["weights.reach"], tensors["others.kernel"]
    for edit in ({"weights.reach": weights[:-1]}, {"weights.reach": weights.long()}, {"others.kernel": kernel[1:]}):
        refused(record, content, tensors | edit)
    refused(record, content, {name: one for name, one in tensors.items() if name != "weights.reach"})
    refused(record, {**content, "provenance": 3}, tensors)
