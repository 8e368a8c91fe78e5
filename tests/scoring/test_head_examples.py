"""Examples of heads equal the model's own attention and scores, and their means equal NumPy's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from positional_heads.core.heads import Head
from positional_heads.results.files import ResultFileError
from positional_heads.results.head_examples import HeadExamples
from positional_heads.scoring import head_examples as head_examples_module
from positional_heads.scoring import per_query
from positional_heads.scoring.head_examples import examples_from_cache, head_examples, token_strings, write_examples
from positional_heads.views import attention_view, contribution_view
from tests.support.synthetic import synthetic_scores
from tests.support.synthetic_examples import HOSTILE, synthetic_examples


def test_token_strings_are_what_the_tokenizer_decodes(bundled):
    shown = token_strings(bundled, torch.arange(258))
    for byte in range(ord("!"), ord("~") + 1):
        assert shown[byte] == bundled.tokenizer.decode([byte]) == chr(byte)
    assert shown[0x80:0x100] == [f"\\x{byte:02x}" for byte in range(0x80, 0x100)]
    assert (shown[0], shown[10], shown[32], shown[256]) == (r"\x00", "↵", "·", "<|bos|>")
    assert len(set(shown)) == 258


HEADS = [Head(3, 7), Head(0, 2), Head(3, 1)]


@pytest.fixture(scope="module")
def text_tokens(bundled):
    return ph.cut_text(bundled, ph.bundled_text(), 90)[0]


@pytest.fixture(scope="module")
def record(bundled, text_tokens):
    return head_examples(bundled, text_tokens, HEADS, detailed=40)


@pytest.fixture(scope="module")
def run(bundled, text_tokens):
    """The run's own cache, with dominant dimensions and contributions merged into it."""
    _, cache = bundled.run_with_cache(text_tokens[None])
    cache.cache_dict.update(ph.dominant_dimension_cache(bundled, text_tokens, contributions=True).cache_dict)
    return cache


def test_examples_equal_the_models_attention_and_scores(record, run):
    causal = np.tril(np.ones((40, 40), dtype=bool))
    for number, (layer, head) in enumerate(HEADS):
        pattern = run["pattern", layer][0, head].numpy()
        np.testing.assert_allclose(record.pattern[number], pattern[:40, :40], atol=1e-5)  # a plain run rounds otherwise
        scores = run["attn_scores", layer][0, head, :40, :40].numpy()
        added = record.contributions[number].sum(-1).numpy()  # every channel of this model is rotated: pairs are all
        np.testing.assert_allclose(added[causal], scores[causal], atol=1e-4)
        distance = np.subtract.outer(np.arange(90), np.arange(90))
        np.testing.assert_allclose(record.mean_distance[number], (pattern * distance).sum(-1), atol=1e-3)


def test_means_over_keys_equal_numpy_on_the_cached_dimensions(record, run):
    for number, (layer, head) in enumerate(HEADS):
        dominant = run["dominant_dim", layer, "attn"][0, head].double().numpy()
        pattern = run["pattern", layer][0, head].double().numpy()
        np.testing.assert_allclose(record.dominant[number], dominant[:40, :40], atol=1e-4)
        for query in range(90):
            seen, weights = dominant[query, : query + 1], pattern[query, : query + 1]
            assert record.weighted_dominant[number, query] == pytest.approx(np.average(seen, weights=weights), abs=1e-3)
            assert record.plain_dominant[number, query] == pytest.approx(seen.mean(), abs=1e-3)
            added = run["contributions", layer, "attn"][0, head, query, : query + 1].double().numpy()
            expected = np.average(added, axis=0, weights=weights)
            np.testing.assert_allclose(record.mean_contributions[number, query], expected, atol=1e-3)


@pytest.fixture(scope="module")
def cut(bundled, text_tokens):
    """The same with few keys kept, in small blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(per_query, "KEPT_ENTRIES", 90 * 7)
        patch.setattr(per_query, "BLOCK_TERMS", 7 * 90 * 16)
        return head_examples(bundled, text_tokens, HEADS, detailed=40)


@pytest.mark.parametrize("kept", [90, 7])
def test_kept_keys_are_those_with_the_most_attention(record, cut, run, kept):
    found = record if kept == 90 else cut
    assert (found.n_kept, found.kept_keys.shape) == (kept, (3, 90, kept))
    for number, (layer, head) in enumerate(HEADS):
        pattern = run["pattern", layer][0, head].double().numpy()
        dominant = run["dominant_dim", layer, "attn"][0, head].numpy()
        for query in (0, 1, 5, 6, 7, 40, 89):
            seen = min(kept, query + 1)
            keys = found.kept_keys[number, query].numpy()
            assert (keys[seen:] == -1).all()
            assert len(set(keys[:seen].tolist())) == seen
            assert keys[:seen].max() <= query
            expected = np.sort(pattern[query, : query + 1])[::-1][:seen]
            np.testing.assert_allclose(found.kept_pattern[number, query, :seen], expected, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(pattern[query, keys[:seen]], expected, rtol=1e-4, atol=1e-6)
            assert not found.kept_pattern[number, query, seen:].any()
            own = found.kept_dominant[number, query]
            np.testing.assert_allclose(own[:seen], dominant[query, keys[:seen]], rtol=1e-3, atol=1e-5)
            assert own[seen:].isnan().all()
            assert found.kept_share[number, query] == pytest.approx(expected.sum(), abs=1e-3)


def test_a_hook_on_a_head_leads_to_the_models_own_pattern(bundled, text_tokens, record, monkeypatch):
    """Where something acts on a model no plain run is read, and the pattern is the model's own."""
    with ph.ablated_heads(bundled, ["L0H2"], "zero"):
        found = head_examples(bundled, text_tokens, HEADS, detailed=40)
        _, cache = bundled.run_with_cache(text_tokens[None])
    for number, (layer, head) in enumerate(HEADS):
        torch.testing.assert_close(found.pattern[number], cache["pattern", layer][0, head, :40, :40], atol=1e-5, rtol=0)
    assert not torch.allclose(found.pattern[0], record.pattern[0], atol=1e-2)
    monkeypatch.setattr(head_examples_module, "MOST_READ", 50)
    monkeypatch.setattr(head_examples_module, "MOST_TOKENS", 70)
    with ph.ablated_heads(bundled, ["L0H2"], "zero"):
        read = head_examples(bundled, text_tokens, HEADS, detailed=40)
    plain = head_examples(bundled, text_tokens, HEADS, detailed=40)
    assert [(len(one.tokens), one.notes) for one in (read, plain)] == [
        (50, ["The first 50 of 90 tokens were run."]),
        (70, ["The first 70 of 90 tokens were run."]),
    ]


def assert_same(one, other):
    for name in tensors_of_a_record():
        if name in {"kept_keys", "kept_dominant"}:  # of keys with equal attention, to rounding, either may come first
            continue
        tolerance = 1e-3 if name == "kept_pattern" else 1e-4  # three digits are kept
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), equal_nan=True, atol=tolerance, rtol=tolerance
        )
    assert (one.tokens, one.heads) == (other.tokens, other.heads)


def tensors_of_a_record():
    plain = {"tokens", "heads", "notes", "provenance"}
    return [name for name in HeadExamples.__dataclass_fields__ if name not in plain]


def test_a_runs_own_cache_gives_the_same_examples(bundled, record, run, text_tokens):
    pieces = bundled.tokenizer.convert_ids_to_tokens(text_tokens.tolist())
    assert_same(record, examples_from_cache(run, HEADS, pieces, detailed=40))


def test_queries_in_blocks_of_any_size_give_the_same(bundled, record, text_tokens, monkeypatch):
    monkeypatch.setattr(per_query, "BLOCK_TERMS", 7 * 90 * 16)
    assert_same(record, head_examples(bundled, text_tokens, HEADS, detailed=40))


FIRST_HEADS_PAIRS = {layer: torch.arange(8)[:, None].expand(8, 16) < 4 for layer in range(4)}
REWRITING = {
    "self_extend": {"group": 4, "window": 16},
    "dpe": {"pair_groups": [4] * 16, "window": 16, "key_pairs": FIRST_HEADS_PAIRS},  # heads 4 to 7 stay as they are
}


@pytest.mark.parametrize("method", REWRITING)
def test_rewritten_scores_are_shown_as_they_are_used(bundled, text_tokens, method):
    with ph.extended_rope(bundled, method, **REWRITING[method]):
        cache = ph.dominant_dimension_cache(bundled, text_tokens, layers=[3], contributions=True)
        found = head_examples(bundled, text_tokens, [Head(3, 7)], detailed=90)
        pattern = bundled.run_with_cache(text_tokens[None])[1]["pattern", 3][0, 7]
    dominant, added = cache["dominant_dim", 3, "attn"][0, 7], cache["contributions", 3, "attn"][0, 7]
    torch.testing.assert_close(found.dominant[0], dominant, equal_nan=True, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.contributions[0], added, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.pattern[0], pattern, atol=1e-5, rtol=1e-4)
    assert found.provenance["extension"]["method"] == method


def test_keys_outside_a_window_are_masked(tiny):
    model = tiny("mistral")
    window = int(model.original_model.config.sliding_window)
    length = 2 * window + 3
    tokens = torch.arange(5, 5 + length) % 50
    found = head_examples(model, tokens, [Head(0, 0)])
    last = length - 1
    assert found.dominant[0, last].isnan().sum() == length - window
    assert not found.pattern[0, last, : length - window].any()
    assert float(found.mean_distance[0].max()) < window
    page = contribution_view(found, Head(0, 0), last).html
    assert page.count('class="masked"') == (length - window) * found.n_pairs
    assert "sliding window hides" in attention_view(found).html


def test_long_texts_and_many_heads_are_cut_with_a_note(bundled):
    heads = [Head(layer, head) for layer in range(4) for head in range(8)]
    found = head_examples(bundled, ph.bundled_text()[:2000], heads, detailed=8)
    assert (len(found.tokens), found.heads, found.n_detailed) == (512, heads[:8], 8)
    assert found.notes == ["The first 8 of 32 heads are kept.", "The first 512 of 2001 tokens were run."]


def test_temperature_attention_is_the_layers_scale(bundled, text_tokens):
    softer = head_examples(bundled, text_tokens, [Head(3, 7)], temperature="attention")
    same = head_examples(bundled, text_tokens, [Head(3, 7)], temperature=32**0.5)
    assert bundled.cfg.d_head == 32
    torch.testing.assert_close(softer.dominant, same.dominant, equal_nan=True)


@pytest.mark.parametrize(
    ("heads", "settings", "message"),
    [
        ([Head(4, 0)], {}, "L4H0 does not exist: layers go from 0 to 3, heads to 7"),
        ([Head(0, -1)], {}, "L0H-1 does not exist"),
        ([], {}, "no head given: name at least one"),
        ([Head(0, 0)], {"detailed": 129}, "detailed 129 must be at most 128"),
        ([Head(0, 0)], {"detailed": 0}, "detailed 0 must be at least 1"),
    ],
)
def test_heads_and_lengths_that_do_not_exist_are_refused(bundled, text_tokens, heads, settings, message):
    with pytest.raises(ValueError, match=message):
        head_examples(bundled, text_tokens, heads, **settings)


def test_a_cache_that_lacks_an_entry_is_refused(bundled, run, text_tokens):
    pieces = bundled.tokenizer.convert_ids_to_tokens(text_tokens.tolist())
    with pytest.raises(ValueError, match="89 tokens, but the cache is of a run over 90"):
        examples_from_cache(run, HEADS, pieces[1:])
    partial = ph.dominant_dimension_cache(bundled, text_tokens, layers=[2])
    partial.cache_dict["blocks.2.attn.hook_pattern"] = run["pattern", 2]
    with pytest.raises(ValueError, match=r"the cache has no blocks\.2\.attn\.hook_contributions"):
        examples_from_cache(partial, [Head(2, 0)], pieces)
    with pytest.raises(ValueError, match="no head 8 of sequence 0"):
        examples_from_cache(run, [Head(2, 8)], pieces)


def test_examples_survive_on_disk_with_hostile_tokens(tmp_path):
    record = synthetic_examples(HOSTILE, name=HOSTILE[0])
    file = record.save(tmp_path)
    loaded = HeadExamples.load(tmp_path)
    assert_same(loaded, record)
    assert torch.equal(loaded.kept_keys, record.kept_keys)
    assert torch.equal(loaded.kept_dominant.nan_to_num(-1), record.kept_dominant.nan_to_num(-1))
    assert HeadExamples.load(file).provenance == record.provenance
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ResultFileError, match="does not match its checksum"):
        HeadExamples.load(file)
    with pytest.raises(FileNotFoundError, match="no such result file"):
        HeadExamples.load(tmp_path / "elsewhere")


def test_write_examples_writes_the_top_heads(bundled, text_tokens, tmp_path):
    scores = ph.score_heads(bundled, [text_tokens], temperature="attention")
    assert write_examples(bundled, text_tokens, scores, tmp_path) == tmp_path / "examples.safetensors"
    found = HeadExamples.load(tmp_path)
    assert (found.heads, len(found.tokens), found.n_detailed) == (scores.top(5), 90, 48)
    assert found.provenance["settings"]["temperature"] == "attention"
    assert found.provenance["model"]["weights"] == scores.provenance["model"]["weights"]


def test_records_refuse_tokens_and_heads_that_do_not_fit():
    record = synthetic_examples()
    fields = {name: getattr(record, name) for name in HeadExamples.__dataclass_fields__}
    with pytest.raises(ValueError, match="5 tokens do not fit numbers of 6"):
        HeadExamples(**fields | {"tokens": record.tokens[:5]})
    with pytest.raises(ValueError, match="1 heads do not fit numbers of 2"):
        HeadExamples(**fields | {"heads": record.heads[:1]})
    with pytest.raises(ValueError, match="do not fit 2 heads on 6 tokens"):
        HeadExamples(**fields | {"kept_pattern": None})
    with pytest.raises(ValueError, match="kept keys go from -1 to 6: give positions of 6 tokens, or -1 for none"):
        HeadExamples(**fields | {"kept_keys": record.kept_keys.masked_fill(record.kept_keys == 5, 6)})


def test_records_of_older_versions_load_without_kept_keys(tmp_path):
    record = synthetic_examples()
    older = replace(record, kept_keys=None, kept_pattern=None, kept_dominant=None)
    loaded = HeadExamples.load(older.save(tmp_path))
    assert (loaded.kept_keys, loaded.n_kept) == (None, 0)
    assert loaded.kept_share.isnan().all()
    assert "keys of every query" not in loaded.description
    assert "6 keys of every query" in record.description
    assert "kept_share" not in loaded.to_frame()
    np.testing.assert_allclose(record.to_frame()["kept_share"], 1, atol=1e-3)


def test_no_examples_are_written_if_no_head_has_a_score(bundled, text_tokens, tmp_path):
    nothing = synthetic_scores(null=False)
    nothing = replace(nothing, rho=torch.full_like(nothing.rho, torch.nan))
    assert write_examples(bundled, text_tokens, nothing, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_heads_shown_of_scores_begin_with_the_largest_excess():
    scores = synthetic_scores()
    known = [head for head in scores.heads if not scores.rho[head].isnan()]
    ranked = sorted(known, key=lambda head: -float(scores.excess[head]))
    (notable,) = scores.notable(5)  # no other head beats its null
    assert notable == ranked[0]
    assert head_examples_module.shown_heads(scores) == ranked[:5]
    higher = scores.rho + torch.arange(12).view(3, 4)  # the last head now has the highest rho
    without = replace(scores, rho=higher, null=None)
    assert head_examples_module.shown_heads(without) == without.top(5)
