"""Settings are one record: a function takes it whole, or its fields as keywords, with the same result."""

from dataclasses import asdict, fields
from inspect import get_annotations

import pytest
import torch

import positional_heads as ph
from positional_heads.scoring.settings import ScoringOptions
from tests.scoring.test_shards import same

TOKENS = torch.arange(24) * 7 % 256


def test_every_field_is_a_keyword_of_the_same_type():
    assert get_annotations(ScoringOptions) == {field.name: field.type for field in fields(ph.ScoringSettings)}


def test_a_record_and_its_fields_as_keywords_give_the_same_scores(tiny):
    chosen = {"temperature": 4.0, "skip_keys": 2, "null_repeats": 2, "bins": 64}
    record = ph.score_heads(tiny("llama"), TOKENS, settings=ph.ScoringSettings(**chosen))
    assert same(record, ph.score_heads(tiny("llama"), TOKENS, **chosen))


def test_a_keyword_takes_precedence_over_the_record(tiny):
    scores = ph.score_heads(tiny("llama"), TOKENS, settings=ph.ScoringSettings(bins=64, seed=3), seed=4)
    assert (scores.provenance["settings"]["bins"], scores.provenance["settings"]["seed"]) == (64, 4)


def test_a_shard_takes_what_score_heads_takes(tiny, tmp_path):
    chosen = {"settings": ph.ScoringSettings(null_repeats=2), "layers": [1], "batch_size": 1, "skip_keys": 1}
    ph.score_shard(tiny("llama"), TOKENS, "1/1", tmp_path, **chosen)
    assert same(ph.merge_shards(tmp_path), ph.score_heads(tiny("llama"), TOKENS, **chosen))


@pytest.mark.parametrize("name", ["layer", "null_repeat"])
def test_a_misspelt_keyword_is_refused_with_its_neighbour(name, tiny, tmp_path):
    with pytest.raises(TypeError, match=f"no setting {name}; .*did you mean {name}s"):
        ph.score_shard(tiny("llama"), TOKENS, "1/1", tmp_path, **{name: 2})


def test_plain_rope_has_no_attention_factor_to_divide_by(tiny):
    kept, divided = (ph.score_heads(tiny("llama"), TOKENS, divide_attention_factor=flag) for flag in (False, True))
    assert torch.equal(kept.rho, divided.rho)
    assert asdict(ph.ScoringSettings())["divide_attention_factor"]
