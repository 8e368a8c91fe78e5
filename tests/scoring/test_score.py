"""Scores of real models equal a brute force that shares no code, whatever the batches, padding and limits."""

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.sequences import batches
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.settings import ScoringSettings
from tests.support import hugging_face, oracles

FAMILIES = ("llama", "mistral", "qwen3", "neox", "gptj", "phi3", "gemma2")
WINDOWS = {"mistral": (12, 12), "gemma2": (12, None)}
LENGTHS = (40, 33)


def token_rows(lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length) for length in lengths]


def brute_force(family, folder, rows, **limits):
    """rho [layer head] and curves {distance: mean D} from Hugging Face's own model, in plain loops."""
    captured = [hugging_face.rotated(family, folder, row) for row in rows]
    layout, n_pairs = captured[0][2:]
    rho, curves = np.empty((2, 4)), {}
    for layer in range(2):
        window = WINDOWS.get(family, (None, None))[layer]
        for head in range(4):
            q, k = ([found[which][layer][head] for found in captured] for which in (0, 1))
            rho[layer, head], curves[layer, head] = oracles.head_score(q, k, layout, n_pairs, window=window, **limits)
    return rho, curves


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_a_brute_force_over_all_pairs(family, tiny, tiny_folder):
    rows = token_rows()
    scores = ph.score_heads(tiny(family), [torch.from_numpy(row) for row in rows])
    rho, curves = brute_force(family, tiny_folder(family), rows)
    np.testing.assert_allclose(scores.rho.numpy(), rho, atol=1e-3)
    for head, curve in curves.items():
        found = scores.curve[head].numpy()
        assert set(np.flatnonzero(~np.isnan(found))) == set(curve)
        np.testing.assert_allclose([found[t] for t in curve], list(curve.values()), atol=1e-4)


LIMITS = [{"skip_keys": 2}, {"min_distance": 3}, {"max_distance": 20}, {"temperature": 4.0}]


@pytest.mark.parametrize("limits", LIMITS)
def test_limits_and_temperature_equal_the_brute_force(limits, tiny, tiny_folder):
    rows = token_rows()
    scores = ph.score_heads(tiny("llama"), [torch.from_numpy(row) for row in rows], **limits)
    rho, curves = brute_force("llama", tiny_folder("llama"), rows, **limits)
    np.testing.assert_allclose(scores.rho.numpy(), rho, atol=1e-3)
    np.testing.assert_allclose(
        [float(scores.curve[1, 2, t]) for t in curves[1, 2]], list(curves[1, 2].values()), atol=1e-4
    )


def test_temperature_attention_is_the_models_scale(tiny):
    tokens = torch.from_numpy(token_rows()[0])
    named = ph.score_heads(tiny("llama"), tokens, temperature="attention")
    assert torch.equal(named.rho, ph.score_heads(tiny("llama"), tokens, temperature=16**0.5).rho)


@pytest.mark.parametrize("family", ["llama", "neox", "gptj", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_counts(family, side, tiny):
    rows = [torch.from_numpy(row) for row in token_rows((30, 22))]
    pad = torch.full((8,), 257)
    short = torch.cat([pad, rows[1]] if side == "left" else [rows[1], pad])
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, slice(0, 8) if side == "left" else slice(22, 30)] = 0
    padded = ph.score_heads(tiny(family), torch.stack([rows[0], short]), attention_mask=mask)
    alone = ph.score_heads(tiny(family), rows)
    assert torch.equal(padded.pair_counts, alone.pair_counts)
    assert torch.allclose(padded.rho, alone.rho, atol=2e-3)  # angles of other positions, rounded, may swap ranks
    assert torch.allclose(padded.curve, alone.curve, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_compatibility_mode_changes_no_score(family, tiny):
    rows = [torch.from_numpy(row) for row in token_rows()]
    plain = ph.score_heads(tiny(family), rows)
    folded = ph.score_heads(tiny(family, compatible=True), rows)
    assert torch.allclose(plain.rho, folded.rho, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_limits_count_from_the_first_real_token(side, tiny):
    """A window, skipped keys and distance limits, behind padding and without."""
    rows = [torch.from_numpy(row) for row in token_rows((30, 22))]
    pad = torch.full((8,), 257)
    short = torch.cat([pad, rows[1]] if side == "left" else [rows[1], pad])
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, slice(0, 8) if side == "left" else slice(22, 30)] = 0
    limits = {"skip_keys": 3, "min_distance": 2, "max_distance": 9}
    padded = ph.score_heads(tiny("mistral"), torch.stack([rows[0], short]), attention_mask=mask, **limits)
    alone = ph.score_heads(tiny("mistral"), rows, **limits)
    assert torch.equal(padded.pair_counts, alone.pair_counts)
    assert torch.allclose(padded.rho, alone.rho, atol=2e-3)  # angles of other positions, rounded, may swap ranks
    assert torch.allclose(padded.curve, alone.curve, atol=1e-3, equal_nan=True)


def test_scoring_keeps_the_callers_hooks_and_random_state(tiny):
    model, calls = tiny("llama"), []
    model.add_hook("blocks.0.attn.hook_z", lambda z, hook: calls.append(hook))
    state = torch.get_rng_state()
    try:
        ph.score_heads(model, torch.from_numpy(token_rows()[0]), null_repeats=2)
        calls.clear()
        model(torch.arange(4)[None])
    finally:
        model.reset_hooks()
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("pairs", ["all", 1024])
def test_batches_change_no_score(pairs, tiny):
    tokens = torch.from_numpy(np.stack(token_rows((64, 64, 64, 64, 64))))
    one, many = (ph.score_heads(tiny("llama"), tokens, batch_size=size, pairs=pairs, null_repeats=3) for size in (1, 4))
    bound = one.bound + many.bound  # bins are placed on another pilot
    assert ((one.rho - many.rho).abs() <= bound).all()
    assert ((one.null.rho - many.null.rho).abs() <= bound).all()  # each sequence has its own shuffles
    assert torch.allclose(one.curve, many.curve, atol=1e-5, equal_nan=True)
    assert torch.equal(one.pair_counts, many.pair_counts)
    coarse = (one.bootstrap_rho - many.bootstrap_rho).abs().mean()
    assert coarse < one.bootstrap_rho.std(0).mean() / 10  # each sequence in its own group, on coarse bins
    if pairs != "all":
        assert torch.allclose(one.sampling_sd, many.sampling_sd, rtol=0.05)


def test_a_seed_gives_the_same_result(tiny):
    tokens = torch.from_numpy(np.stack(token_rows((24, 24))))
    first, again, other = (ph.score_heads(tiny("llama"), tokens, null_repeats=3, seed=seed) for seed in (5, 5, 6))
    for name, tensor in first._tensors().items():
        assert torch.equal(tensor.nan_to_num(), again._tensors()[name].nan_to_num()), name
    assert torch.equal(first.rho, other.rho)
    assert not torch.equal(first.null.rho, other.null.rho)


def test_a_window_that_changes_during_the_run_is_refused(tiny):
    position, runs = torch.arange(24), []
    distant = position[:, None] - position >= 5

    def narrow(scores, hook):
        runs.append(scores.shape[-1] == 24)
        return scores.masked_fill(distant, torch.finfo(scores.dtype).min) if sum(runs) > 2 else None

    model, tokens = tiny("llama"), torch.from_numpy(np.stack(token_rows((24, 24))))
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_attn_scores", narrow)]),
        pytest.raises(ph.UnsupportedModelError, match="layer 1 has a window of 5 tokens now, None when the run was"),
    ):
        ph.score_heads(model, tokens, batch_size=1)


def test_layers_not_asked_for_have_a_reason(tiny):
    scores = ph.score_heads(tiny("llama"), torch.from_numpy(token_rows()[0]), layers=[1])
    assert scores.rho[0].isnan().all()
    assert scores.rho[1].isfinite().all()
    assert scores.reasons[ph.Head(0, 0)] == "its layer was not asked for"


def test_layers_without_rotation_have_a_reason(tiny):
    scores = ph.score_heads(tiny("smollm3"), torch.from_numpy(token_rows()[0]))
    assert scores.rho[1].isnan().all()
    assert "NoPE" in scores.reasons[ph.Head(1, 3)]
    assert ph.Head(0, 0) not in scores.reasons


def test_a_head_with_constant_dominant_dimension_has_no_score(tiny_folder):
    from tests.support.tiny_models import boot

    model = boot(tiny_folder("llama"))
    with torch.no_grad():
        model.original_model.model.layers[0].self_attn.q_proj.original_component.weight[16:32] = 0
    scores = ph.score_heads(model, torch.from_numpy(token_rows()[0]))
    assert scores.rho.isnan().nonzero().tolist() == [[0, 1]]
    assert "the same for every query-key pair" in scores.reasons[ph.Head(0, 1)]


def test_provenance_identifies_model_and_text(tiny, tiny_folder):
    rows = [torch.from_numpy(row) for row in token_rows()]
    scores = ph.score_heads(tiny("llama"), rows)
    other_text = ph.score_heads(tiny("llama"), rows[:1])
    other_model = ph.score_heads(tiny("llama", rms_norm_eps=1e-3), rows)
    assert scores.provenance["data"]["sha256"] != other_text.provenance["data"]["sha256"]
    assert scores.provenance["data"]["tokens"] == 73
    assert scores.provenance["model"]["weights"] == other_text.provenance["model"]["weights"]
    assert set(scores.provenance["versions"]) >= {"positional-heads", "transformer-lens", "transformers", "torch"}
    assert other_model.provenance["model"]["layers"] == 2
    assert tiny_folder("llama") != tiny_folder("llama", rms_norm_eps=1e-3)


def test_the_pilot_includes_more_batches_than_the_longest(tiny):
    """Eight sequences in three batches, the longest in the middle: bins must not be placed on that one alone."""
    rows = [torch.full((30,), token) for token in range(60, 66)] + [torch.arange(50) * 5 % 256, torch.arange(29)]
    data = batches(tiny("llama"), rows, None, 6)
    assert [len(batch.tokens) for batch in data] == [6, 1, 1]
    counter = EntryCounter(tiny("llama"), data, ph.resolve_layers(tiny("llama")), None, ScoringSettings())
    assert sorted(counter.pilot_batches) == [0, 1, 2]
    assert counter.pilot_batches[-1] == 1


def test_sequences_in_which_nothing_counts_leave_intervals_and_p_values_as_they_are(tiny):
    lengths = (12, 40, 10, 39, 38, 40, 9, 37)
    tokens, mask = torch.full((8, 40), 257), torch.zeros(8, 40, dtype=torch.long)
    for row, text in enumerate(token_rows(lengths)):
        tokens[row, : lengths[row]], mask[row, : lengths[row]] = torch.from_numpy(text), 1
    limits = {"min_distance": 16, "null_repeats": 3, "batch_size": 8}
    long = torch.tensor([1, 3, 4, 5, 7])
    every = ph.score_heads(tiny("llama"), tokens, attention_mask=mask, **limits)
    alone = ph.score_heads(tiny("llama"), tokens[long], attention_mask=mask[long], **limits)
    assert every.n_groups == alone.n_groups == 5
    assert torch.allclose(every.interval(), alone.interval(), atol=0.01)  # bins lie a little elsewhere
    assert bool(every.p_values.isfinite().all())
