"""Every measure of a head profile against a direct computation from the model's own pattern, queries and keys."""

import cmath
import functools
import itertools

import numpy as np
import pytest
import torch
from transformer_lens.head_detector import detect_head

import positional_heads as ph
from positional_heads.core.attention_sums import attention_sums
from positional_heads.core.token_matches import TokenMatches
from positional_heads.scoring.profile_sums import ProfileSums

profile_heads = functools.partial(ph.profile_heads, retrieval=None)
LENGTH, WINDOW, SINKS = 40, 16, 3
TOKENS = torch.randint(97, 105, (3, LENGTH), generator=torch.Generator().manual_seed(7))
FAMILIES = ["llama", "neox", "gptj", "qwen3", "gemma2"]
"""Grouped keys, partial rotary, adjacent pairs, norms of queries and keys, a soft-cap with a sliding window."""


@pytest.fixture(scope="module", params=FAMILIES)
def profiled(request, tiny):
    model = tiny(request.param)
    settings = {"window": WINDOW, "sinks": SINKS, "queries": 3, "agreement_keys": 6, "ranges": 7}
    profile = profile_heads(model, TOKENS, **settings)
    _, run = model.run_with_cache(TOKENS)
    contributions = ph.dominant_dimension_cache(model, TOKENS, contributions=True)
    patterns = torch.stack([run["pattern", layer, "attn"] for layer in range(2)]).double()  # [layer batch head q k]
    return model, profile, patterns, contributions


def distances():
    position = torch.arange(LENGTH)
    return (position[:, None] - position).double()


def queries_mean(values, counted):
    """Mean over batch and queries of [layer batch head query], of the queries that count."""
    return values.movedim(2, -1)[:, :, counted].mean((1, 2))


def close(found, expected, atol=2e-6):
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=1e-5)


def test_distance_and_mass_are_those_of_the_models_own_pattern(profiled):
    _, profile, patterns, _ = profiled
    t, keys = distances(), torch.arange(LENGTH)
    close(profile.values("mean_distance"), (patterns * t).sum(-1).mean((1, 3)))
    free = patterns * (keys >= SINKS)
    close(profile.values("reach"), (free * t).sum((1, 3, 4)) / free.sum((1, 3, 4)), atol=1e-5)
    distant = (free * (t >= WINDOW)).sum(-1)
    close(profile.values("distant_mass"), queries_mean(distant, keys >= WINDOW + SINKS))
    close(profile.values("sink_mass"), queries_mean(patterns[..., :SINKS].sum(-1), keys >= SINKS))
    for first, (low, high) in enumerate(itertools.pairwise(profile.edges.tolist())):
        inside = patterns * ((t >= low) & (t < high))
        close(profile.mass[..., first], inside.sum(-1).mean((1, 3)))
        expected = (inside * t).sum((1, 3, 4)) / inside.sum((1, 3, 4))
        close(profile.reached[..., first].nan_to_num(-1), expected.nan_to_num(-1), atol=1e-4)


def test_token_measures_are_those_of_the_models_own_pattern(profiled):
    _, profile, patterns, _ = profiled
    following = torch.cat([TOKENS[:, 1:], torch.full((3, 1), -1)], 1)
    holds_next = (following[:, :, None] == TOKENS[:, None]) & (distances() >= 0)
    copied = (patterns * holds_next[None, :, None]).sum((1, 3, 4))
    close(profile.values("copying"), copied / holds_next.any(-1).sum())
    close(profile.values("current_token"), patterns.diagonal(dim1=-2, dim2=-1).mean((1, 3)))


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_window_hides_keys_that_a_query_has(family, tiny):
    """Shares of some queries have one convention: the text before a query counts, not what its layer sees."""
    model, tokens = tiny(family), torch.randint(97, 122, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    profile = profile_heads(model, tokens, window=6, sinks=SINKS)
    _, run = model.run_with_cache(tokens)
    for layer, head in itertools.product(range(2), range(4)):
        sums, counted = dict.fromkeys(("copying", "distant_mass", "sink_mass"), 0.0), {}
        for row in range(2):
            text, attention = tokens[row].tolist(), run["pattern", layer, "attn"][row, head].tolist()
            for m in range(LENGTH):
                keys = {
                    "copying": [n for n in range(m + 1) if m + 1 < LENGTH and text[n] == text[m + 1]],
                    "distant_mass": [n for n in range(SINKS, m + 1) if m - n >= 6],
                    "sink_mass": [n for n in range(SINKS) if m >= SINKS],
                }
                for name, own in keys.items():
                    sums[name] += sum(attention[m][n] for n in own)
                    counted[name] = counted.get(name, 0) + bool(own)
        for name, value in sums.items():
            assert float(profile.values(name)[layer, head]) == pytest.approx(value / counted[name], abs=1e-5), name
    hidden = run["pattern", 0, "attn"][..., -1, 0]
    assert bool((hidden == 0).all())  # the first layer has a window


@pytest.mark.parametrize("family", ["llama", "gptj", "gemma2"])
def test_token_measures_equal_those_of_transformer_lens(family, tiny):
    model, text = tiny(family), "the cat sat on the mat, and the cat ran to the man"
    profile = profile_heads(model, text)
    for name in ("previous_token", "duplicate_token", "induction"):
        detected = detect_head(model, text, f"{name.removesuffix('_token')}{'_token' * (name != 'induction')}_head")
        close(profile.values(name), detected)


def test_pair_norms_and_agreement_are_those_of_the_contributions(profiled):
    model, profile, _, cache = profiled
    _, run = model.run_with_cache(TOKENS)
    chosen = [20, 30, 39]
    for layer in range(2):
        g = cache["contributions", layer, "attn"].double()
        scores = run["attn_scores", layer, "attn"].double()
        found, pairs = profile.pairs.agreement[layer], g.shape[-1]
        overlap = np.zeros((len(TOKENS), len(chosen), *found.shape))
        for batch, (at, query), head, pair in itertools.product(
            range(len(TOKENS)), enumerate(chosen), range(len(found)), range(pairs)
        ):
            seen = [key for key in range(query + 1) if float(scores[batch, head, query, key]) > -1e30]
            by_score, by_pair = (
                set(sorted(seen, key=lambda key: -float(values[key]))[:6])
                for values in (scores[batch, head, query], g[batch, head, query, :, pair])
            )
            overlap[batch, at, head, pair] = len(by_score & by_pair) / 6
        np.testing.assert_allclose(found[:, :pairs].numpy(), overlap.mean((0, 1)), atol=1e-6)
        for low, high in itertools.pairwise(profile.edges.tolist()):
            inside = (distances() >= low) & (distances() < high) & (scores[0, 0] > -1e30)
            if bool(inside.any()):
                close(
                    profile.pairs.contribution[layer, ..., profile.edges.tolist().index(low)][:, :pairs],
                    g[:, :, inside].mean((0, 2)),
                    atol=2e-6,
                )


@pytest.mark.parametrize(("family", "layout"), [("llama", "half"), ("neox", "half"), ("gptj", "adjacent")])
def test_centers_and_norms_are_of_queries_and_keys_before_rotation(family, layout, tiny):
    model = tiny(family)
    profile = profile_heads(model, TOKENS, window=WINDOW)
    _, run = model.run_with_cache(TOKENS)
    pairs = profile.pairs.query_norm.shape[-1]
    for layer, (name, own) in itertools.product(range(2), (("query", "q"), ("key", "k"))):
        x = run[own, layer, "attn"]
        x = x.unflatten(-1, (-1, 16)) if x.ndim == 3 else x
        planes = [x[..., :pairs], x[..., pairs : 2 * pairs]]
        if layout == "adjacent":
            planes = [x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]]
        values = torch.complex(*planes).to(torch.complex128)
        if values.shape[2] == 2:
            values = values.repeat_interleave(2, 2)
        center = torch.view_as_complex(getattr(profile.pairs, f"{name}_center")[layer].contiguous())
        torch.testing.assert_close(center, values.mean((0, 1)), atol=1e-6, rtol=1e-5)
        close(getattr(profile.pairs, f"{name}_norm")[layer], values.abs().mean((0, 1)))


def test_semantic_and_positional_follow_their_definition_in_plain_python(tiny):
    model = tiny("neox")
    profile = profile_heads(model, TOKENS[:1], window=WINDOW, queries=2, agreement_keys=5)
    _, run = model.run_with_cache(TOKENS[:1])
    layer, head = 1, 2
    q, k = (run[name, layer, "attn"][0].reshape(LENGTH, -1, 16)[:, head].double().numpy() for name in "qk")
    pairs = profile.pairs.query_norm.shape[-1]
    f = [10000.0 ** (-2 * i / (2 * pairs)) for i in range(pairs)]

    def score(query, key, moved):
        turned = sum(
            (
                complex(q[query, i], q[query, i + pairs])
                * complex(k[key, i], -k[key, i + pairs])
                * cmath.exp(1j * moved * f[i])
            ).real
            for i in range(pairs)
        )
        return turned + float(q[query, 2 * pairs :] @ k[key, 2 * pairs :])

    places = sorted({round(39 ** (n / 15)) for n in range(16)})
    semantic, positional = [], []
    for query in (20, 39):
        table = np.array([[score(query, key, m) for m in places] for key in (0, 10, 20, 29, 39)])
        after = np.array([[score(query, key, m + 1) for m in places] for key in (0, 10, 20, 29, 39)])
        correlations = np.corrcoef(table.T)
        semantic.append(correlations[np.triu_indices(len(places), 1)].mean())
        positional.append(np.sqrt(((after - table) ** 2).mean()) / table.std())
    assert float(profile.values("semantic")[layer, head]) == pytest.approx(np.mean(semantic), abs=1e-4)
    assert float(profile.values("positional")[layer, head]) == pytest.approx(np.mean(positional), rel=1e-4)


def test_massive_channels_are_those_whose_norm_exceeds_five_means(tiny):
    model = tiny("llama")
    with model.hooks(fwd_hooks=[("blocks.0.attn.q.hook_out", _one_large_channel)]):
        profile = profile_heads(model, TOKENS, window=WINDOW)
    # rotation spreads a channel over the two of its pair
    assert profile.values("massive_query")[0].tolist() in ([0, 1, 0, 0], [0, 2, 0, 0])
    assert profile.values("massive_query")[1].tolist() == [0, 0, 0, 0]


def _one_large_channel(x, hook):
    x = x.clone()
    x.view(*x.shape[:2], 4, 16)[:, :, 1, 7] += 300
    return x


def test_scores_are_those_of_scoring_and_batches_and_padding_change_nothing(tiny):
    model = tiny("llama")
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :11] = 0
    options = {"null_repeats": 3, "window": WINDOW}
    padded = profile_heads(model, TOKENS, attention_mask=mask, batch_size=3, **options)
    alone = profile_heads(model, [TOKENS[0], TOKENS[1, 11:], TOKENS[2]], **options)
    scores = ph.score_heads(model, [TOKENS[0], TOKENS[1, 11:], TOKENS[2]], null_repeats=3)
    assert torch.equal(alone.scores.rho, scores.rho)
    assert torch.equal(alone.values("excess"), scores.excess.double())
    for name in alone.names:
        close(padded.values(name).nan_to_num(-1), alone.values(name).nan_to_num(-1), atol=1e-4)
    close(padded.pairs.contribution.nan_to_num(-1), alone.pairs.contribution.nan_to_num(-1), atol=1e-5)


def test_rewritten_scores_are_profiled_as_they_are_attended(tiny):
    model = tiny("llama")
    with ph.extended_rope(model, "self_extend", group=4, window=8):
        profile = profile_heads(model, TOKENS, window=WINDOW, sinks=SINKS)
        pattern = torch.stack([model.run_with_cache(TOKENS)[1]["pattern", layer, "attn"] for layer in range(2)])
        mean = ph.contribution_profile(model, TOKENS, [(1, 3)])
    close(profile.values("mean_distance"), (pattern.double() * distances()).sum(-1).mean((1, 3)), atol=1e-5)
    low, high = profile.edges[-2:].tolist()
    counts = mean.pair_counts[0, low:high].double()
    expected = (mean.mean[0, :, low:high] * counts).sum(-1) / counts.sum()
    close(profile.pairs.contribution[1, 3, :, -1], expected, atol=1e-6)


def test_a_block_of_queries_is_summed_like_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores, tokens = torch.randn(2, 37, 37, generator=generator), torch.randint(5, (37,), generator=generator)

    def block(start, stop):
        return torch.nn.functional.pad(scores[:, start:stop, :stop], (stop - start, 0))

    whole = attention_sums(block, 2, TokenMatches(tokens), 9, 4)
    monkeypatch.setattr("positional_heads.core.attention_sums.BLOCK_ENTRIES", 1)  # blocks of the fewest queries
    for one, other in zip(whole, attention_sums(block, 2, TokenMatches(tokens), 9, 4), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_interrupted_profile_resumes_to_the_same_numbers(tiny, tmp_path, monkeypatch):
    model = tiny("llama")
    expected = profile_heads(model, TOKENS, batch_size=1, window=WINDOW)
    from positional_heads.scoring import counter

    real, calls = counter.capture_batch, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 5:  # the pilot takes three
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(counter, "capture_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile_heads(model, TOKENS, batch_size=1, window=WINDOW, checkpoint=tmp_path, checkpoint_seconds=0)
    monkeypatch.setattr(counter, "capture_batch", real)
    with pytest.raises(ValueError, match="different: profile window"):
        profile_heads(model, TOKENS, batch_size=1, window=8, checkpoint=tmp_path)
    resumed = profile_heads(model, TOKENS, batch_size=1, window=WINDOW, checkpoint=tmp_path)
    for name, tensor in expected._tensors().items():
        assert torch.equal(resumed._tensors()[name].nan_to_num(-9), tensor.nan_to_num(-9)), name


def test_a_short_text_has_no_distant_mass_and_no_moved_keys(tiny):
    profile = profile_heads(tiny("llama"), torch.tensor([[97, 98]]))
    assert bool(profile.values("distant_mass").isnan().all())
    assert bool(profile.values("semantic").isnan().all())
    assert bool(profile.values("previous_token").isfinite().all())


def test_groups_are_the_sequences_so_intervals_are_over_them(tiny):
    model = tiny("llama")
    profile = profile_heads(model, TOKENS, window=WINDOW)
    for number, sequence in enumerate(TOKENS):
        alone = profile_heads(model, sequence[None], window=WINDOW)
        for name in profile.sums:
            close(profile.sums[name][number], alone.sums[name][0], atol=1e-4)
            close(profile.weights[name][number], alone.weights[name][0], atol=1e-4)


def test_sums_of_an_earlier_version_are_refused_in_a_sentence():
    whole = ProfileSums.at_zero(1, 2, 1, 4, 2, 3).tensors
    with pytest.raises(ValueError, match="no attention factor: an earlier version wrote them"):
        ProfileSums({name: one for name, one in whole.items() if name != "attention_factor"})
