"""Every sequence is rotated as in one whole run of its own: in chunks, in padded batches, and after any other run.

The oracles are Hugging Face's own models, freshly loaded, run once and whole, with D and rho in float64 by hand and by
scipy.
"""

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge import capture as capturing
from positional_heads.bridge import prefill
from positional_heads.bridge.loading import load_model
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.bridge.rope_scaling.extended_rope import extended_rope
from positional_heads.bridge.run_lengths import follows_length
from positional_heads.studies.tasks.task import function_task
from positional_heads.zoo.architecture import byte_tokenizer
from tests.bridge.rope_scaling.test_clex import clex
from tests.bridge.rope_scaling.test_extended_checkpoints import extended_folder
from tests.support.extended import TRAINED, hugging_face, settings_for
from tests.support.tiny_models import COMMON, HYBRID, SCORED, boot

TOKENS = torch.randint(256, (2, 150), generator=torch.Generator().manual_seed(11))
OWN = {
    # a checkpoint's own rotation that follows the length of the run: family, configuration
    "dynamic": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64}),
    "longrope": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0 + n for n in range(8)]},
            "original_max_position_embeddings": 64,
        },
    ),
}


def brute_dominant(query, key):
    """D of every pair that a query sees, [head pair], from rotated vectors [pos head channel] of half-split layout."""
    query, key = query.double().numpy(), key.double().numpy()
    half = query.shape[-1] // 2
    turned = query.reshape(*query.shape[:2], 2, half), key.reshape(*key.shape[:2], 2, half)
    rows, columns = np.tril_indices(len(query))
    found = (turned[0][rows] * turned[1][columns]).sum(2)  # [pair head rotary_pair]
    weights = np.exp(found - found.max(-1, keepdims=True))
    return ((weights * np.arange(half)).sum(-1) / weights.sum(-1)).T, rows - columns


def brute_rho(model_of, sequences, layer, heads=4):
    """Spearman's rho of the first heads over all pairs of all sequences, each run whole by a model of its own."""
    dominant, distance = [], []
    for tokens in sequences:
        _, run = model_of().run_with_cache(tokens[None], names_filter=lambda name: "hook_rot" in name)
        query, key = run["rot_q", layer][0], run["rot_k", layer][0]
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        found, back = brute_dominant(query[:, :heads], key[:, :heads])
        dominant.append(found)
        distance.append(back)
    dominant, distance = np.concatenate(dominant, axis=1), np.concatenate(distance)
    return torch.tensor([spearmanr(distance, head).statistic for head in dominant])


def in_chunks(monkeypatch, size):
    for module in ("positional_heads.scoring.batches", "positional_heads.bridge.prefill"):
        monkeypatch.setattr(f"{module}.chunk_length", lambda model, rows, length: min(size, length))


@pytest.mark.parametrize("method", ["dynamic", "longrope", "yarn"])
@pytest.mark.parametrize("family", ["llama", "neox"])
@torch.no_grad()
def test_chunks_give_the_logits_of_hugging_faces_whole_run(family, method, tiny, tiny_folder, monkeypatch):
    ours, theirs = settings_for(family, method)
    expected = hugging_face(tiny_folder(family), theirs)(TOKENS).logits
    in_chunks(monkeypatch, 40)
    with extended_rope(tiny(family), method, training_length=TRAINED, **ours):
        assert torch.allclose(prefill.prefilled_logits(tiny(family), TOKENS), expected, atol=1e-5)


METHODS = {
    **{name: {"factor": 4.0} for name in ("none", "linear", "ntk", "dynamic", "yarn", "llama3")},
    "longrope": {"factor": 4.0},
    "p_rope": {"keep": 0.5},
    "self_extend": {"group": 4, "window": 8},
    "dpe": {"window": 8},
    "rerope": {"window": 8, "leak": 0.25},
    "clex": {},
    "dynamic heads": {"factor": 4.0, "heads": [ph.Head(0, 1)]},
}
OTHER_WAYS = ("yarn", "dynamic", "longrope", "self_extend", "dynamic heads")
"""One method of each way in which a run can be rotated; all methods go through on one family of each kind of bridge."""


def applied(model, rotary, name):
    """A block under a method with the settings that fit the model."""
    settings = dict(METHODS[name])
    if name == "longrope":
        settings |= {"short_factor": [1.0] * rotary.n_pairs}
        settings |= {"long_factor": [1 + 0.5 * pair for pair in range(rotary.n_pairs)]}
    if name == "dpe":
        settings["pair_groups"] = [(1, 2, 4, 8)[pair % 4] for pair in range(rotary.n_pairs)]
    method = clex(pairs=rotary.n_pairs) if name == "clex" else name.split()[0]
    return extended_rope(model, method, training_length=24, **settings)


def captured(model, layers, chunk):
    """Vectors of every layer, and the logits of the same run."""
    found, logits = {}, []

    def visit(vectors):
        found[vectors.rotary.layer] = vectors

    with model.hooks(fwd_hooks=[("unembed.hook_out", lambda out, hook: logits.append(out))]):
        capturing.capture(model, TOKENS[:, :50], layers, visit, None, chunk)
    return found, torch.cat(logits, dim=1)


@pytest.mark.parametrize("family", [name for name in SCORED if name not in ("gptj", "codegen")])
@torch.no_grad()
def test_chunks_are_the_whole_run_under_every_method(family, tiny):
    model = tiny(family)
    layers = list(ph.resolve_layers(model).layers.values())
    for name in METHODS if family in ("llama", "neox", "gemma3", "gpt_oss") else OTHER_WAYS:
        with applied(model, layers[0], name):
            whole, expected = captured(model, layers, None)
            parts, logits = captured(model, layers, 30)
        assert torch.allclose(logits, expected, atol=2e-5), name
        for layer, vectors in whole.items():
            assert torch.allclose(parts[layer].rot_q, vectors.rot_q, atol=2e-5), name
            assert torch.allclose(parts[layer].rot_k, vectors.rot_k, atol=2e-5), name
            assert torch.equal(parts[layer].phases, vectors.phases.expand_as(parts[layer].phases)), name
            bands = zip(parts[layer].bands or [], vectors.bands or [], strict=True)
            assert all(torch.equal(one.key_phase, other.key_phase) for one, other in bands), name


@pytest.mark.parametrize("method", ["dynamic", "longrope", "clex"])
@torch.no_grad()
def test_rho_of_a_long_sequence_is_that_of_its_whole_run(method, bundled):
    tokens = torch.randint(256, (1, 530), generator=torch.Generator().manual_seed(3))
    assert prefill.chunk_length(bundled, 1, 530) < 530
    settings = {"factor": 4.0} if method != "clex" else {}
    if method == "longrope":
        settings |= {"short_factor": [1.0] * 16, "long_factor": [1 + 0.3 * pair for pair in range(16)]}
    with extended_rope(bundled, clex() if method == "clex" else method, **settings):
        expected = brute_rho(lambda: bundled, tokens, 2, heads=2)
        scores = ph.score_heads(bundled, tokens, beyond_context=True, layers=[2], divide_attention_factor=False)
        assert torch.allclose(prefill.prefilled_logits(bundled, tokens), bundled(tokens), atol=2e-4)
    assert torch.allclose(scores.rho[2, :2].double(), expected, atol=2e-3)


@pytest.mark.parametrize("own", OWN)
@torch.no_grad()
def test_a_checkpoints_own_frequencies_are_those_of_the_whole_run(own, tmp_path, monkeypatch):
    folder = extended_folder(tmp_path, *OWN[own])
    model, expected = load_model(str(folder)), AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits
    in_chunks(monkeypatch, 40)
    assert torch.allclose(prefill.prefilled_logits(model, TOKENS), expected, atol=1e-5)
    # and a run that fails in the middle leaves nothing behind
    rotary = next(one for one in model.original_model.modules() if type(one).__name__.endswith("RotaryEmbedding"))
    before = len(rotary._forward_hooks)
    fails = [("blocks.1.attn.hook_attn_scores", lambda *_, **__: 1 / 0)]
    with pytest.raises(ZeroDivisionError), model.hooks(fwd_hooks=fails):
        prefill.prefilled_logits(model, TOKENS)
    assert len(rotary._forward_hooks) == before
    short = AutoModelForCausalLM.from_pretrained(folder)(TOKENS[:, :70]).logits
    assert torch.allclose(model(TOKENS[:, :70]), short, atol=1e-5)


@torch.no_grad()
def test_no_run_leaves_a_trace_in_the_next(tmp_path):
    family, change = OWN["dynamic"]
    folder = extended_folder(tmp_path, family, change)
    model, long, short = load_model(str(folder)), TOKENS[0], TOKENS[1, :70]
    expected = brute_rho(lambda: boot(folder), [long, short], 0)
    for order in ([long, short], [short, long]):
        scores = ph.score_heads(model, order, layers=[0], beyond_context=True)
        assert torch.allclose(scores.rho[0].double(), expected, atol=2e-3)
    alone = AutoModelForCausalLM.from_pretrained(folder)(short[None]).logits
    model(long[None])
    assert torch.allclose(prefill.prefilled_logits(model, short[None]), alone, atol=1e-5)


@torch.no_grad()
def test_references_and_functions_of_users_are_run_as_if_first(tmp_path):
    family, change = OWN["dynamic"]
    folder = extended_folder(tmp_path, family, change)
    fresh, used, tokens = boot(folder), boot(folder), TOKENS[1:, :64]

    def without_head(model):  # the reference is run when the block is entered, and leaves the model fresh
        with ph.ablated_heads(model, [ph.Head(0, 0)], "mean", reference=tokens):
            return model(tokens)

    expected = without_head(fresh)
    used(TOKENS)
    assert torch.allclose(without_head(used), expected, atol=1e-6)
    task = function_task(used, lambda model: model(tokens)[0, -1])
    right = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits[0, -1]
    used(TOKENS)
    assert torch.allclose(task.measure(used)["score"].float(), right, atol=1e-5)


def test_models_whose_frequencies_follow_the_length_are_recognised(tiny, tmp_path):
    for own, (family, change) in OWN.items():
        assert follows_length(load_model(str(extended_folder(tmp_path / own, family, change))))
    model = tiny("llama")
    rotary, found = next(iter(ph.resolve_layers(model).layers.values())), {}
    for name in METHODS:
        with applied(model, rotary, name):
            found[name] = follows_length(model)
    assert {name for name, follows in found.items() if follows} == {"dynamic", "longrope", "clex", "dynamic heads"}
    assert not follows_length(model)


@torch.no_grad()
def test_retrieval_is_scored_as_if_alone_and_first(tmp_path):
    family, change = OWN["dynamic"]
    folder = extended_folder(tmp_path, family, change)
    fresh = AutoModelForCausalLM.from_pretrained(folder)
    prompt = TOKENS[0, :100]
    said = fresh.generate(prompt[None], max_new_tokens=3, do_sample=False, use_cache=False)[0]
    expected = retrieval_scores(boot(folder), [prompt], [(10, 13)], [said[100:]])
    used = boot(folder)
    used(TOKENS)
    assert torch.equal(retrieval_scores(used, [prompt], [(10, 13)], [said[100:]]), expected)
    assert bool(expected.isfinite().all())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("own", OWN)
@torch.no_grad()
def test_a_padded_row_has_the_frequencies_of_its_own_length(own, side, tmp_path):
    folder = extended_folder(tmp_path, *OWN[own])
    model = load_model(str(folder))
    span = slice(90, None) if side == "left" else slice(0, 60)
    mask = torch.zeros_like(TOKENS)
    mask[0, span], mask[1] = 1, 1
    found = {}
    layers = list(ph.resolve_layers(model).layers.values())
    capturing.capture(model, TOKENS, layers, lambda vectors: found.update({vectors.rotary.layer: vectors}), mask)
    for row, tokens in ((0, TOKENS[:1, span]), (1, TOKENS[1:])):
        fresh = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        attention = fresh(tokens, output_attentions=True).attentions
        here = span if row == 0 else slice(None)
        for layer, vectors in found.items():
            query, key = (x[row, here].double() for x in (vectors.rot_q, vectors.rot_k))
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
            hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
            pattern = scores.masked_fill(hidden, -torch.inf).softmax(-1).float()
            assert torch.allclose(pattern, attention[layer][0], atol=1e-5)


@pytest.mark.parametrize("lengths", [(80, 80), (50, 43)])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["plain", *OWN])
@torch.no_grad()
def test_padding_wider_than_every_row_changes_nothing(family, side, lengths, tmp_path):
    """The oracle: the same rows without padding. The two kinds that follow the length do so from 65 tokens on."""
    model = load_model(str(extended_folder(tmp_path, *OWN.get(family, ("llama", {})))))
    mask, width = torch.zeros_like(TOKENS[:, :100]), 100
    for row, length in enumerate(lengths):
        mask[row, slice(width - length, None) if side == "left" else slice(0, length)] = 1
    rows = [tokens[own.bool()] for tokens, own in zip(TOKENS[:, :width], mask, strict=True)]
    padded = ph.score_heads(model, TOKENS[:, :width], attention_mask=mask, beyond_context=True)
    assert torch.allclose(padded.rho, ph.score_heads(model, rows, beyond_context=True).rho, atol=1e-3)
    given = {"heads": [ph.Head(1, 0)], "beyond_context": True}
    padded = ph.contribution_profile(model, TOKENS[:, :width], attention_mask=mask, batch_size=2, **given)
    alone = ph.contribution_profile(model, rows, **given)
    assert torch.equal(padded.pair_counts, alone.pair_counts)
    assert torch.allclose(padded.mean, alone.mean, atol=1e-5)
    if lengths[0] == lengths[1]:
        ran = ph.dominant_dimension_cache(model, TOKENS[:, :width], attention_mask=mask, beyond_context=True)
        found = ran["dominant_dim", 1, "attn"]
        own = slice(width - lengths[0], None) if side == "left" else slice(0, lengths[0])
        right = ph.dominant_dimension_cache(model, torch.stack(rows), beyond_context=True)["dominant_dim", 1, "attn"]
        assert torch.allclose(found[:, :, own, own], right, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["dynamic", "longrope"])
@torch.no_grad()
def test_a_padded_row_is_extended_by_its_own_length(method, side, tiny, tiny_folder):
    ours, theirs = settings_for("llama", method)
    span = slice(90, None) if side == "left" else slice(0, 60)
    mask = torch.zeros_like(TOKENS)
    mask[0, span], mask[1] = 1, 1
    references = [hugging_face(tiny_folder("llama"), theirs) for _ in range(2)]
    expected = [one(x).logits for one, x in zip(references, (TOKENS[:1, span], TOKENS[1:]), strict=True)]
    with extended_rope(tiny("llama"), method, training_length=TRAINED, **ours):
        logits = tiny("llama")(TOKENS, attention_mask=mask)
        scores = ph.score_heads(tiny("llama"), TOKENS, attention_mask=mask, divide_attention_factor=False)
        alone = ph.score_heads(
            tiny("llama"), [TOKENS[0, span], TOKENS[1]], divide_attention_factor=False, beyond_context=True
        )
    assert torch.allclose(logits[:1, span], expected[0], atol=1e-5)
    assert torch.allclose(logits[1:], expected[1], atol=1e-5)
    assert torch.allclose(scores.rho, alone.rho, atol=1e-3)
    longest = references[1].model.rotary_emb.inv_freq  # as its run of 150 tokens has left them
    assert torch.allclose(scores.frequencies.float(), longest.expand(2, -1), rtol=1e-4)


@pytest.fixture(scope="module")
def bamba(tmp_path_factory):
    """A tiny model of state-space layers and attention, from Hugging Face and as a bridge."""
    torch.manual_seed(0)
    layers = {"num_key_value_heads": 2, "attn_layer_indices": [1]}
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
    model = transformers.BambaForCausalLM(transformers.BambaConfig(**{**COMMON, **layers, **mamba})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bamba")
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model, boot(folder)


@torch.no_grad()
def test_models_with_a_state_go_through_in_one_run(bamba, monkeypatch):
    reference, model = bamba
    monkeypatch.setattr(prefill, "SHORTEST_CHUNK", 40)
    monkeypatch.setattr(prefill, "LONGEST_CHUNK", 40)
    found = prefill.prefilled_logits(model, TOKENS)
    assert torch.allclose(found, reference(TOKENS).logits, atol=1e-5)
    monkeypatch.setattr(prefill, "WHOLE_RUN_SCORES", 2 * 4 * 149**2)
    with pytest.raises(ph.UnsupportedModelError, match=r"2 sequence\(s\) of 150 tokens need 1.8e\+05 attention scores"):
        prefill.prefilled_logits(model, TOKENS)
    assert prefill.prefilled_logits(model, TOKENS[:, :149]).shape[1] == 149


@pytest.mark.parametrize("family", HYBRID)
@torch.no_grad()
def test_layers_of_attention_and_a_state_go_through_in_one_run_too(family, tiny, monkeypatch):
    monkeypatch.setattr(prefill, "SHORTEST_CHUNK", 40)
    monkeypatch.setattr(prefill, "LONGEST_CHUNK", 40)
    model, lengths = tiny(family), []
    embedding = model.original_model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    prefill.prefilled_logits(model, TOKENS[:1])
    handle.remove()
    assert lengths == [150]


@pytest.mark.parametrize("own", OWN)
@torch.no_grad()
def test_one_head_put_back_on_a_checkpoint_that_follows_the_length(own, tmp_path, monkeypatch):
    family, change = OWN[own]
    model = load_model(str(extended_folder(tmp_path, family, change)))
    with extended_rope(model, "none", heads=[ph.Head(1, 0)]):
        whole, expected = prefill.prefilled_logits(model, TOKENS), ph.score_heads(model, TOKENS, beyond_context=True)
        in_chunks(monkeypatch, 40)
        parts, scores = prefill.prefilled_logits(model, TOKENS), ph.score_heads(model, TOKENS, beyond_context=True)
    assert torch.allclose(parts, whole, atol=1e-5)
    assert torch.allclose(scores.rho, expected.rho, atol=1e-4)
    assert not torch.allclose(whole, prefill.prefilled_logits(model, TOKENS), atol=1e-3)
