"""What runs on a GPU: every tensor is moved to where it is needed, shown on a device that only pretends to be another.

In a process of its own, because PyTorch cannot forget a device.
"""

import json

import pytest
import torch

import positional_heads as ph
from benchmarks.models import bridged, bridged_llama, llama_config, plain_llama, random_tokens
from tests.support.processes import Process

TOKENS = random_tokens(3, 130)
PADDING = torch.ones_like(TOKENS)
PADDING[1, :20] = PADDING[2, 90:] = 0


def scored(model, **settings):
    found = ph.score_heads(model, TOKENS, **{"temperature": "attention", "null_repeats": 2} | settings)
    return torch.cat([found.rho.flatten(), found.bound.flatten(), found.null.rho.flatten()])


def extended(model):
    with ph.extended_rope(model, "yarn", factor=2):
        return scored(model)


def in_two_ranges(model):
    with ph.extended_rope(model, "self_extend", window=32, group=2):
        return scored(model)


def ablated(model):
    with ph.ablated_heads(model, ["L0H1", "L1H2"], "mean", reference=TOKENS), torch.no_grad():
        return model(TOKENS.to(model.cfg.device)).cpu()


def answered(model):
    examples = tuple(ph.Example(row, ((120, 124), (126, 130)), unit) for unit, row in enumerate(TOKENS))
    task = ph.AnswerTask("given", examples, (), {})
    return torch.stack(list(ph.evaluate(model, task, heads=["L0H1"]).measures.values()))


def profiled(model):
    found = ph.profile_heads(model, TOKENS, attention_mask=PADDING, window=32, retrieval=None)
    return torch.cat([*(found.values(name).flatten() for name in found.names), found.pairs.contribution.flatten()])


CASES = {
    "exact": lambda model: scored(model, pairs="all"),
    "sampled": lambda model: scored(model, pairs=2048),
    "padded": lambda model: scored(model, attention_mask=PADDING, batch_size=3),
    "exact null": lambda model: scored(model, skip_keys=2, max_distance=99),
    "yarn": extended,
    "self_extend": in_two_ranges,
    "profile": lambda model: ph.contribution_profile(model, TOKENS, heads=["L0H1", "L1H0"]).mean,
    "heads": profiled,
    "examples": lambda model: ph.head_examples(model, TOKENS[0], heads=["L0H1"]).weighted_dominant,
    "ablated": ablated,
    "answers": answered,
}


def print_distances_from_the_cpu():
    """How far results on the other device are from those on the CPU, case by case; for a process of its own."""
    from tests.support.other_device import NAME, registered

    config = llama_config(2, 4, 32, 4096, num_key_value_heads=2)
    own = bridged_llama(config)
    expected = {name: case(own) for name, case in CASES.items()}
    with registered():
        model = bridged(plain_llama(config).to(NAME), NAME)
        found = {name: float((case(model) - expected[name]).abs().nan_to_num().max()) for name, case in CASES.items()}
    print(json.dumps(found))  # noqa: T201


@pytest.mark.slow
def test_results_on_another_device_are_those_of_the_cpu():
    done = Process(print_distances_from_the_cpu).ended()
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("heads") < 1e-12  # sums in float64, whose order the strides of a tensor decide
    # the same arithmetic, by the same kernel
    assert found == dict.fromkeys(CASES.keys() - {"heads"}, 0.0)
