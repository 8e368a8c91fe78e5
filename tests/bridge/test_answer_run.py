"""Plain runs of answers give the bridge's logits, whatever is ablated; hooks of others are never passed by."""

import pytest
import torch

from positional_heads.bridge import answer_run as running
from positional_heads.bridge.ablation import Ablation
from positional_heads.bridge.answer_run import answer_run, runs_plainly
from positional_heads.bridge.kept_residuals import kept_residuals
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from tests.support.tiny_models import DELEGATED, FAMILIES, HYBRID, NAMED_REFUSALS, NOT_ROTARY, SCORED
from tests.support.watching import watch

TOKENS = torch.randint(256, (2, 60), generator=torch.Generator().manual_seed(7))
TOKENS[1, :25] = TOKENS[0, :25]
POSITIONS = [3, 24, 25, 58]
HEADS = ["L0H1", "L1H0", "L1H3"]
PLAIN = [
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi", "phi3", "gemma", "gemma3", "olmo2", "stablelm", "cohere"),
    *("glm", "smollm3", "neox", "granite", "olmo"),
]
"""Families whose own model is run; the others use no attention interface, or have a soft-cap or a sink."""


def hooks_of(model, mode):
    reference = TOKENS.flip(1) if mode in {"mean", "resample"} else None
    return Ablation(model, mode, reference=reference, distance=5 if mode in {"far", "near"} else None).hooks(HEADS)


def logits(model, tokens=TOKENS, positions=POSITIONS, **settings):
    with answer_run(model) as logits_at:
        return logits_at(tokens, positions, **settings)


@torch.no_grad()
def bridged(model):
    return model(TOKENS)[:, POSITIONS]


@pytest.mark.parametrize("family", [family for family in SCORED if family in PLAIN])
def test_plain_runs_give_the_bridges_logits(family, tiny, monkeypatch):
    model = tiny(family)
    before = bridged(model)
    cases = [[], hooks_of(model, "zero"), hooks_of(model, "mean")]
    if family != "smollm3":  # its layer 1 does not rotate, so its scores cannot be edited
        cases += [hooks_of(model, "far"), [*Ablation(model, "far", distance=3).hooks("L0H2"), *cases[1]]]
        cases.append(Ablation(model, "far", distance=3, sinks=2).hooks(HEADS))
    else:
        cases.append(Ablation(model, "far", distance=3, sinks=2).hooks("L0H2"))
    monkeypatch.setattr(running, "chunk_length", lambda *_: 20)  # with masks of their own, heads run in parts
    for hooks in cases:
        with model.hooks(fwd_hooks=hooks):
            assert runs_plainly(model)
            expected = bridged(model)
            size = expected.abs().max()
            # rounding: attention is summed in another order; a mistake is of the order of the logits
            assert (logits(model) - expected).abs().max() < 1e-4 * size
            assert (logits(model, shared=25) - expected).abs().max() < 1e-4 * size
            assert (expected - before).abs().max() > 1e-2 * size or not hooks
    assert torch.equal(bridged(model), before)
    assert not any(module._forward_pre_hooks for module in model.blocks[0].attn.o.original_component.modules())


def test_other_families_run_on_the_bridge(tiny):
    refused = {*NOT_ROTARY, *NAMED_REFUSALS, *HYBRID, *DELEGATED}
    for family in [family for family in FAMILIES if family in SCORED and family not in PLAIN and family not in refused]:
        model = tiny(family)
        assert not runs_plainly(model), family
        with model.hooks(fwd_hooks=hooks_of(model, "zero")):
            assert torch.allclose(logits(model), bridged(model), atol=1e-5), family


@pytest.mark.parametrize("name", ["hook_resid_pre", "attn.hook_attn_scores", "mlp.hook_out", "attn.hook_z"])
def test_a_hook_of_the_users_acts_as_on_the_bridge(name, tiny):
    model = tiny("llama")
    plain = logits(model)
    with model.hooks(fwd_hooks=[(f"blocks.1.{name}", lambda x, hook: x * 0.5)]):
        assert not runs_plainly(model)
        found = logits(model)
        assert torch.equal(found, bridged(model))
    assert (found - plain).abs().max() > 1e-3
    assert runs_plainly(model)


@pytest.mark.parametrize("mode", ["uniform", "near", "resample"])
def test_modes_that_need_positions_or_scores_run_on_the_bridge(mode, tiny):
    model = tiny("llama")
    with model.hooks(fwd_hooks=hooks_of(model, mode)):
        assert not runs_plainly(model)
        assert torch.equal(logits(model, shared=25), bridged(model))


def test_processed_weights_run_on_the_bridge(tiny):
    model = tiny("llama", compatible=True)
    assert not runs_plainly(model)
    assert torch.equal(logits(model), bridged(model))


EXTENSIONS = [
    ("yarn", {"factor": 4}),
    ("dynamic_ntk", {"factor": 4}),
    ("self_extend", {"group": 8, "window": 8}),
    ("rerope", {"window": 10, "leak": 0.2}),
    ("dpe", {"pair_groups": [8, 4] * 4, "window": 8}),
    ("yarn", {"factor": 4, "heads": ["L0H1", "L1H0"]}),
    ("self_extend", {"group": 6, "window": 6, "layers": [1]}),
]


@pytest.mark.parametrize(("method", "settings"), EXTENSIONS)
def test_extensions_act_as_on_the_bridge(method, settings, tiny, monkeypatch):
    model = tiny("llama", max_position_embeddings=20)
    plain = logits(model)
    with extended_rope(model, method, **settings):
        for mode in ("zero", "far"):
            with model.hooks(fwd_hooks=hooks_of(model, mode)):
                assert runs_plainly(model)
                expected = running.prefilled_logits(model, TOKENS)[:, POSITIONS]
                for shared, segment in ((0, 8192), (25, 8192), (25, 20)):
                    monkeypatch.setattr(running, "LONGEST_SEGMENT", segment)
                    assert torch.allclose(logits(model, shared=shared), expected, atol=1e-4)
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_cos", lambda x, hook: x)]):
            assert not runs_plainly(model)
    assert (expected - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["neox", "glm", "gemma3", "mistral"])
def test_scores_are_rewritten_as_on_the_bridge_in_other_families(family, tiny):
    """Of partial and adjacent pairs, windows, and layers of two bases."""
    model = tiny(family)
    with extended_rope(model, "self_extend", group=4, window=8):
        assert runs_plainly(model)
        expected = bridged(model)
        assert torch.allclose(logits(model), expected, atol=1e-4)


def test_what_an_extension_computes_only_plainly_is_left_to_the_bridge(tiny, monkeypatch):
    model = tiny("llama", max_position_embeddings=40)
    attend = running.plain_attention
    with extended_rope(model, "self_extend", group=4, window=32) as extension:

        def wrong_far_away(module, query, key, value, mask, **rest):
            output, pattern = attend(model)(module, query, key, value, mask, **rest)
            output[:, extension.far :] *= 1.1
            return output, pattern

        monkeypatch.setattr(running, "plain_attention", lambda _: wrong_far_away)
        assert not runs_plainly(model)


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_frequencies_are_those_of_the_whole_run(rope, tiny):
    """Dynamic NTK chooses frequencies by the length of a pass; a part of a run is rotated as in the whole."""
    model = tiny("llama", max_position_embeddings=20, rope_parameters={"rope_theta": 10000.0, **rope})
    assert runs_plainly(model)
    logits(model, TOKENS[:, :30], [3])  # leaves nothing behind
    expected = bridged(model)
    for shared in (0, 25):
        assert torch.allclose(logits(model, shared=shared), expected, atol=1e-4)


def test_a_model_that_computes_otherwise_without_the_bridge_is_left_to_it(tiny_folder):
    from tests.support.tiny_models import boot

    model = boot(tiny_folder("llama"))
    scale = model.blocks[1].attn.original_component
    scale.scaling = 2 * scale.scaling  # Hugging Face's module reads it, the bridge's own attention may not
    assert torch.allclose(logits(model), bridged(model), atol=1e-5)


def test_only_the_logits_that_are_asked_for_exist(bundled, monkeypatch):
    assert runs_plainly(bundled)
    sizes = []
    head = bundled.unembed.original_component
    handle = watch(head, lambda module, args, output: sizes.append(output.shape[1]))
    try:
        logits(bundled)
        assert set(sizes) == {len(POSITIONS)}
        sizes.clear()
        monkeypatch.setattr(running, "LONGEST_SEGMENT", 20)
        in_parts = logits(bundled, shared=25)
    finally:
        handle.remove()
    assert sum(sizes) <= len(POSITIONS) + 1  # 4 passes; the one without a position keeps its last
    assert torch.allclose(in_parts, bridged(bundled), atol=1e-4)


def test_the_model_is_given_back_after_an_error(bundled):
    before = bridged(bundled)
    inside = bundled.blocks[0].original_component
    with pytest.raises(IndexError), bundled.hooks(fwd_hooks=hooks_of(bundled, "zero")):
        logits(bundled, tokens=TOKENS + 10_000)
    assert inside is bundled.blocks[0].original_component
    assert torch.equal(bridged(bundled), before)
    assert torch.allclose(logits(bundled), before, atol=1e-4)


class Counted:
    """How often each layer of a model is run."""

    def __init__(self, model):
        self.model, self.runs = model, [0] * len(model.blocks)

    def __enter__(self):
        self.handles = []
        for number, block in enumerate(self.model.blocks):

            def count(*_, number=number):
                self.runs[number] += 1

            self.handles.append(watch(block.mlp.original_component, count))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("mode", ["zero", "mean", "far"])
@pytest.mark.parametrize("shared", [0, 25])
def test_kept_residuals_change_no_bit_and_save_layers(mode, shared, bundled):
    reference = TOKENS if mode == "mean" else None
    ablation = Ablation(bundled, mode, reference=reference, distance=5 if mode == "far" else None)
    sets = [["L1H2", "L2H0"], ["L1H2", "L3H1"], ["L2H0"], ["L2H0", "L3H5"], [], ["L0H0"]]
    starts = [{1, 2}, {1}, {2, 3}, {2}, set(), set()]

    def run(heads):
        with bundled.hooks(fwd_hooks=ablation.hooks(heads)):
            return logits(bundled, shared=shared)

    expected = [run(heads) for heads in sets]
    with Counted(bundled) as counted, kept_residuals(bundled) as residuals:
        # proofs on probes run layers, too: once before counting
        for layer in (1, 2, 3):
            residuals.keep([layer])
            run([])
        counted.runs = [0] * 4
        residuals.keep([])
        found = []
        for heads, later in zip(sets, starts, strict=True):
            residuals.keep(later)
            found.append(run(heads))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    passes = 2 if shared else 1
    assert counted.runs == [count * passes for count in (2, 3, 5, 6)]


def test_the_order_of_sets_decides_what_is_saved_never_what_is_computed(bundled):
    ablation = Ablation(bundled, "zero")
    sets = [["L1H2"], ["L1H3"], ["L2H0"], ["L1H3", "L2H1"], [], ["L0H1", "L1H3"], ["L1H3"]]

    def run(heads):
        with bundled.hooks(fwd_hooks=ablation.hooks(heads)):
            return logits(bundled, shared=25)

    expected, others = [run(heads) for heads in sets], logits(bundled, (TOKENS + 1) % 256, shared=25)
    with kept_residuals(bundled) as residuals:
        residuals.keep([1, 2, 3])
        assert all(torch.equal(run(heads), own) for heads, own in zip(sets, expected, strict=True))
        assert torch.equal(logits(bundled, (TOKENS + 1) % 256, shared=25), others)


def test_layers_with_hooks_of_others_are_not_skipped(bundled):
    seen = []
    handle = bundled.blocks[0].mlp.original_component.register_forward_hook(lambda *call: seen.append(1))
    try:
        with kept_residuals(bundled) as residuals:
            residuals.keep([2])
            first, second = logits(bundled), logits(bundled)
    finally:
        handle.remove()
    assert torch.equal(first, second)
    assert len(seen) == 2


def test_residuals_beyond_the_limit_are_not_kept(bundled, monkeypatch):
    from positional_heads.bridge import kept_residuals as keeping

    monkeypatch.setattr(keeping, "MOST_BYTES", 2 * 60 * 128 * 4 + 1)
    with kept_residuals(bundled) as residuals:
        residuals.keep([1, 2])
        expected = logits(bundled)
        assert residuals._bytes == 2 * 60 * 128 * 4
        residuals.keep([])
        assert torch.equal(logits(bundled), expected)
        assert residuals._bytes == 0
