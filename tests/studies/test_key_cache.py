"""What a profile says of the key cache is what Hugging Face's own cache holds after a forward pass."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.results.key_cache import key_cache

TOKENS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
SHARED = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}


def cached_keys(folder):
    """Key heads and tokens of each layer of Hugging Face's cache; None where the layer has none of its own.

    A layer with a sliding window drops the key that its next query cannot see: with that query's own it has as many.
    """
    with torch.no_grad():
        cache = AutoModelForCausalLM.from_pretrained(folder)(TOKENS[:1], use_cache=True).past_key_values
    found = []
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        dropped = bool(getattr(layer, "is_sliding", False)) and keys is not None and keys.shape[2] < TOKENS.shape[1]
        found.append(None if keys is None else (keys.shape[1], keys.shape[2] + dropped))
    return found


@pytest.fixture(scope="module")
def profiled(tiny):
    made = {}

    def profile(family, **settings):
        if family not in made:
            model = tiny(family, **settings)
            made[family] = ph.profile_heads(model, TOKENS, window=8, sinks=2, retrieval=None, null_repeats=0)
        return made[family]

    return profile


@pytest.mark.parametrize(
    ("family", "settings"), [("gemma4", SHARED), ("qwen3_next", {}), ("smollm3", {}), ("gemma3", {}), ("falcon_h1", {})]
)
def test_entries_are_those_of_hugging_faces_cache(family, settings, profiled, tiny_folder):
    cache, found = key_cache(profiled(family, **settings)), cached_keys(tiny_folder(family, **settings))
    assert cache.held.tolist() == [0 if one is None else one[0] for one in found]
    length = TOKENS.shape[1]
    entries = sum(heads * tokens for heads, tokens in filter(None, found))
    plan = ph.window_plan(profiled(family, **settings), 0)
    assert cache.entries(length) == entries
    assert plan.kept(length) == entries - int(plan.windowed.sum()) * (length - 10)
    assert plan.kept_share(length) == pytest.approx(plan.kept(length) / entries)
    assert len(plan.to_frame()) == sum(heads for heads, _ in filter(None, found))


def test_a_key_head_that_several_layers_read_is_one(profiled):
    profile = profiled("gemma4", **SHARED)
    plan = ph.window_plan(profile, 0)  # of four layers two have a window, and one has no keys of its own
    assert plan.windowed.nonzero().tolist() == [[1, 0]]
    assert {head.layer for head in plan.heads} == {1, 3}
    assert len(plan.heads) == 8
    assert float(plan.ranked_by[1, 0]) == float(profile.values("reach")[[1, 3]].max())
    assert plan.to_frame().set_index(["layer", "key_head"])["readers"][1, 0].split() == list(map(str, plan.heads))
    assert "Layers 2-3 hold no keys and read those of layers 0-1: a window there is one for all" in plan.notes[-1]
    assert "1 of 3 key heads, all that can have a window, see the first 2 and the last 8 keys; 2 stay" in plan.verdict


def test_layers_without_attention_are_said_to_have_none(profiled):
    plan = ph.window_plan(profiled("qwen3_next"))
    assert plan.notes == ["Layers 0 have no attention, and no keys to cache."]
    assert plan.description.startswith(f"{plan.model_name}: 1 of 2 key heads, those lowest by reach")
    assert ph.window_plan(profiled("smollm3")).notes == ["Layers 1 were not profiled, and stay as they are."]
