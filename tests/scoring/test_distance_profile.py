"""A distance profile against plain Python on the attention that Hugging Face's own model returns, in float64.

The logarithm of a pattern is the score up to a constant of each query, so it judges the scores, too, without our code.
"""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import positional_heads as ph
from positional_heads.bridge import prefill
from positional_heads.core.distance_sums import distance_effect, entry_counts
from tests.support.tiny_models import WRONG_BRIDGES, boot

LENGTH, WINDOW, SINKS, EDGES = 24, 6, 2, [0, 1, 3, 8]
TOKENS = torch.randint(97, 122, (3, LENGTH), generator=torch.Generator().manual_seed(3))
ENCODINGS = {
    "gpt2": ["added"] * 2,
    "opt": ["added"] * 2,
    "xglm": ["added"] * 2,
    "gpt_neo": ["added"] * 2,
    "bloom": ["alibi"] * 2,
    "mpt": ["alibi"] * 2,
    "smollm3": ["rotary", "none"],
    "llama4": ["rotary", "none"],
    "llama": ["rotary"] * 2,
    "gptj": ["rotary"] * 2,
    "gemma3": ["rotary"] * 2,
    "mistral": ["rotary"] * 2,
    "gpt_oss": ["rotary"] * 2,
}
"""Learned positions, sinusoids, ALiBi, layers without any, rotation with windows, and a learned sink."""
IN_FLOAT32 = ("xglm", "gpt_oss")
"""Families that Hugging Face cannot run in float64."""


def attention(folder, tokens=TOKENS):
    """Attention among keys, [layer][row] -> [head query key], of Hugging Face's own model."""
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    own = own if own.config.model_type in IN_FLOAT32 else own.double()
    with torch.no_grad():
        found = [own(row[None], output_attentions=True).attentions for row in tokens]
    return [
        [(one[layer][0] / one[layer][0].sum(-1, keepdim=True)).double().numpy() for one in found]
        for layer in range(len(found[0]))
    ]


def entries(pattern):
    """Distance and attention of every query-key pair that the mask shows and whose key is no sink, by query."""
    return {
        m: [(m - n, pattern[m, n]) for n in range(SINKS, m + 1) if pattern[m, n] > 0]
        for m in range(SINKS, len(pattern))
    }


def shares(pattern):
    """Numerators and denominators of reach, distant mass and sink mass of one head and sequence; mass by distance."""
    free = [one for row in entries(pattern).values() for one in row]
    by_distance = np.zeros(len(pattern))
    for t, a in free:
        by_distance[t] += a
    sink = sum(pattern[m, n] for m in range(SINKS, len(pattern)) for n in range(SINKS))
    return by_distance, [
        (sum(t * a for t, a in free), sum(a for _, a in free)),
        (sum(a for t, a in free if t >= WINDOW), len(pattern) - WINDOW - SINKS),
        (sink, len(pattern) - SINKS),
    ]


def evenly(pattern):
    """The pattern of a head that attends evenly to what this one sees."""
    return (pattern > 0) / (pattern > 0).sum(-1, keepdims=True)


def regression(patterns):
    """Least squares of log attention on distance, with a constant for each query of each sequence."""
    rows = [
        (number, m, t, math.log(a))
        for number, pattern in enumerate(patterns)
        for m, row in entries(pattern).items()
        for t, a in row
    ]
    queries = {query: at for at, query in enumerate(dict.fromkeys((number, m) for number, m, _, _ in rows))}
    design = np.zeros((len(rows), len(queries) + LENGTH))
    for at, (number, m, t, _) in enumerate(rows):
        design[at, queries[number, m]] = design[at, len(queries) + t] = 1
    score = np.array([row[3] for row in rows])
    centred = score.copy()
    for query in queries:
        own = [at for at, (number, m, _, _) in enumerate(rows) if (number, m) == query]
        centred[own] -= score[own].mean()
    fit = np.linalg.lstsq(design, score, rcond=None)[0]
    return design[:, len(queries) :], centred, fit[len(queries) :], ((score - design @ fit) ** 2).sum()


@pytest.mark.parametrize("family", [name for name in ENCODINGS if name not in WRONG_BRIDGES])
def test_everything_is_that_of_hugging_faces_own_attention(family, tiny, tiny_folder):
    profile = ph.distance_profile(tiny(family), TOKENS, window=WINDOW, sinks=SINKS, edges=EDGES)
    assert profile.encodings == ENCODINGS[family]
    assert profile.edges.tolist() == [*EDGES, LENGTH]
    ranges = np.searchsorted(EDGES, np.arange(LENGTH), side="right") - 1
    queries = len(TOKENS) * (LENGTH - SINKS)
    for layer, rows in enumerate(attention(tiny_folder(family))):
        for head in range(4):
            own = [row[head] for row in rows]
            for patterns, found in ((own, "own"), ([evenly(one) for one in own], "even")):
                mass, ratios = zip(*map(shares, patterns), strict=True)
                for at, name in enumerate(("reach", "distant_mass", "sink_mass")):
                    value, weight = (sum(one[at][part] for one in ratios) for part in (0, 1))
                    seen = profile.values(name)[layer, head] if found == "own" else profile.even[name][layer]
                    assert float(seen) == pytest.approx(value / weight, abs=1e-4), (name, found)
                by_range = [sum(mass)[ranges == one].sum() / queries for one in range(len(EDGES))]
                seen = profile.mass[layer, head] if found == "own" else profile.even_mass[layer]
                np.testing.assert_allclose(seen.numpy(), by_range, atol=1e-5)
                half = int(np.flatnonzero(np.cumsum(sum(mass)) >= sum(mass).sum() / 2 - 1e-12)[0])
                seen = profile.half_distance[layer, head] if found == "own" else profile.even["half_distance"][layer]
                assert float(seen) == half
        design, centred, effect, _ = regression([row[0] for row in rows])  # of the first head: the slow part
        counts = design.sum(0)
        effect = np.where(counts > 0, effect - (effect * counts).sum() / counts.sum(), 0)
        for one in range(len(EDGES)):
            inside = design[:, ranges == one].any(1)
            assert int(profile.counts[layer, one]) == inside.sum()
            if inside.any():
                mean = (effect * counts)[ranges == one].sum() / inside.sum()
                assert float(profile.score[layer, 0, one]) == pytest.approx(mean, abs=2e-4)
                assert float(profile.score_sd[layer, 0, one]) == pytest.approx(centred[inside].std(), abs=2e-4)
        single = [regression([row[0]]) for row in rows]
        total = sum((one[1] ** 2).sum() for one in single)
        explained = total - sum(one[3] for one in single)
        assert float(profile.values("eta2")[layer, 0]) == pytest.approx(explained / total, abs=1e-4)
        repeated = 0.0
        for at, one in enumerate(single):
            others = regression([row[0] for number, row in enumerate(rows) if number != at])[2]
            repeated += one[1] @ one[0] @ others
        assert float(profile.values("eta2_repeated")[layer, 0]) == pytest.approx(repeated / total, abs=1e-4)


def test_a_head_profile_has_the_same_reach_and_mass_and_scores_the_same_dominant_dimension(tiny):
    model, kept = tiny("mistral"), {"window": WINDOW, "sinks": SINKS}
    profile = ph.distance_profile(model, TOKENS, **kept)
    other = ph.profile_heads(model, TOKENS, retrieval=None, **kept)
    for name in ("reach", "distant_mass", "sink_mass"):
        torch.testing.assert_close(profile.values(name), other.values(name))
    single = ph.distance_profile(model, TOKENS, edges=list(range(LENGTH)), **kept)
    torch.testing.assert_close(single.dominant, other.scores.curve.double(), equal_nan=True)
    assert ph.distance_profile(tiny("gpt2"), TOKENS).dominant is None


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt", "smollm3"])
def test_padding_batches_and_chunks_change_nothing(family, tiny, monkeypatch):
    model, kept = tiny(family), {"window": WINDOW, "sinks": SINKS, "edges": EDGES}
    rows = [TOKENS[0], TOKENS[1, :17], TOKENS[2]]
    plain = ph.distance_profile(model, rows, **kept).to_frame()
    left = torch.stack([torch.nn.functional.pad(row, (LENGTH - len(row), 0), value=120) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones(len(row)), (LENGTH - len(row), 0)) for row in rows]).long()
    padded = ph.distance_profile(model, left, attention_mask=mask, batch_size=1, **kept).to_frame()
    monkeypatch.setattr(prefill, "CHUNK_SCORES", 1)
    monkeypatch.setattr(prefill, "SHORTEST_CHUNK", 5)
    chunked = ph.distance_profile(model, rows, **kept).to_frame()
    for other in (padded, chunked):
        np.testing.assert_allclose(
            other.select_dtypes("number").to_numpy(), plain.select_dtypes("number").to_numpy(), atol=1e-4
        )


def test_layers_without_attention_are_left_out_and_said(tiny):
    profile = ph.distance_profile(tiny("qwen3_next"), TOKENS)
    assert profile.encodings == ["", "rotary"]
    assert {head.layer for head in profile.heads} == {1}
    assert "Layers 0: it has no attention, but a state (Qwen3NextGatedDeltaNet)" in profile.verdict
    assert bool(profile.values("reach")[0].isnan().all())
    with pytest.raises(ValueError, match="layer 0 cannot be profiled: it has no attention"):
        ph.distance_profile(tiny("qwen3_next"), TOKENS, layers=[0])
    with pytest.raises(ph.UnsupportedModelError, match=r"but a state \(MambaMixer\) without queries and keys"):
        ph.distance_profile(tiny("mamba"), TOKENS)


def test_a_bridge_that_attends_otherwise_than_the_original_is_refused(tiny_folder, monkeypatch):
    model = boot(tiny_folder("bloom")).eval()
    ph.distance_profile(model, TOKENS)
    kind = type(model.blocks[0].attn)  # not the instance, where it would be an edit that is known
    compute = kind.forward

    def doubled(self, *args, **kwargs):
        return compute(self, *args, **{**kwargs, "alibi": 2 * kwargs["alibi"]})

    monkeypatch.setattr(kind, "forward", doubled)
    with pytest.raises(ph.UnsupportedModelError, match=r"layer 0: .* differs from that of Hugging Face's"):
        ph.distance_profile(model, TOKENS)


def test_falcon_with_alibi_is_the_original_or_refused(tiny, tiny_folder):
    """TransformerLens' bridge of it has differed from the original, by version."""
    try:
        profile = ph.distance_profile(tiny("falcon", alibi=True), TOKENS, sinks=SINKS, window=WINDOW)
    except ph.UnsupportedModelError as refusal:
        assert "differs from" in str(refusal)  # noqa: PT017
        return
    for layer, rows in enumerate(attention(tiny_folder("falcon", alibi=True))):
        value, weight = np.sum([shares(row[1])[1][0] for row in rows], axis=0)
        assert float(profile.values("reach")[layer, 1]) == pytest.approx(value / weight, abs=1e-3)


def test_what_acts_on_a_model_without_rotation_is_refused_and_on_rotary_layers_measured(tiny):
    with (
        ph.ablated_heads(tiny("gpt2"), "L0H1", "zero"),
        pytest.raises(ph.UnsupportedModelError, match="nothing of the"),
    ):
        ph.distance_profile(tiny("gpt2"), TOKENS)
    model, plain = tiny("llama"), ph.distance_profile(tiny("llama"), TOKENS)
    with ph.ablated_heads(model, "L0H1", "zero"):
        edited = ph.distance_profile(model, TOKENS)
    assert "Measured under" in edited.verdict
    assert torch.equal(edited.values("reach")[0], plain.values("reach")[0])
    assert not torch.equal(edited.values("reach")[1], plain.values("reach")[1])
    with ph.extended_rope(model, "self_extend", group=2, window=4):
        assert not torch.equal(ph.distance_profile(model, TOKENS).values("reach"), plain.values("reach"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"edges": [1, 2]}, "must ascend from 0"),
        ({"edges": [0, 4, 4]}, "must ascend from 0"),
        ({"edges": []}, "must ascend from 0"),
        ({"edges": [0, LENGTH]}, "the last range begins at 24 tokens"),
        ({"sinks": LENGTH}, "leave no two keys"),
        ({"window": 0}, "window 0 must be at least 1"),
        ({"layers": [2]}, "layer 2 does not exist"),
        ({"layers": []}, "no layer given"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, message, tiny):
    with pytest.raises(ValueError, match=message):
        ph.distance_profile(tiny("gpt2"), TOKENS, **given)


def test_positions_that_are_not_in_the_table_are_refused(tiny):
    with pytest.raises(ValueError, match="300 tokens are more than this model's context of 256"):
        ph.distance_profile(tiny("gpt2"), torch.zeros(1, 300).long(), beyond_context=True)


def test_the_effect_of_distance_is_exact_on_long_sequences():
    """Scores that are a function of distance and a constant of each query are explained to the last digit."""
    length, generator = 3000, torch.Generator().manual_seed(0)
    effect, seen = torch.randn(length, generator=generator).double(), torch.zeros(length + 1).double()
    seen[1 : length + 1] = 1  # query m sees m + 1 keys
    prefix = effect.cumsum(0) / torch.arange(1, length + 1)
    score = effect * entry_counts(seen) - prefix.flip(0).cumsum(0).flip(0)
    centre = (effect * entry_counts(seen)).sum() / entry_counts(seen).sum()
    torch.testing.assert_close(distance_effect(score[None], seen)[0], effect - centre, atol=1e-6, rtol=0)
