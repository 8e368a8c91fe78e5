"""The plan for kvpress: its content, and, where kvpress is installed, that its press hides exactly these keys."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

import positional_heads as ph
from positional_heads.results.formats import kvpress as module

STREAMING = torch.tensor([[True, False], [False, False], [True, True]])


def test_the_plan_is_read_back_and_is_plain_json(tmp_path):
    file = ph.formats.write_kvpress(STREAMING, tmp_path / "new" / "kvpress.json", sinks=2, window=5)
    plan = json.loads(file.read_text())
    assert np.array_equal(np.array(plan["full_attention_heads"]) == 0, STREAMING.numpy())
    assert (plan["sink_size"], plan["recent_size"], plan["head_compression_ratio"]) == (2, 5, 0.5)
    read = ph.formats.read_kvpress(file)
    assert torch.equal(read.values, (~STREAMING).double())
    assert (read.sinks, read.window) == (2, 5)
    assert torch.equal(read.streaming(0.5), STREAMING)
    ph.formats.write_kvpress(~STREAMING[:1], file, sinks=0, window=1)
    assert torch.equal(ph.formats.read_kvpress(file).values, STREAMING[:1].double())


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "other"},
        {"heads": 3},
        {"version": 2},
        {"version": True},
        {"full_attention_heads": [[0, 1], [2, 0]]},
        {"full_attention_heads": [[0, 1], [None, 0]]},
        {"full_attention_heads": [0, 1]},
        {"head_compression_ratio": 0.4},
        {"sink_size": -1},
        {"sink_size": True},
        {"recent_size": 0},
        {"recent_size": None},
    ],
)
def test_a_changed_plan_is_refused(changed, tmp_path):
    file = ph.formats.write_kvpress(STREAMING, tmp_path / "kvpress.json", sinks=2, window=5)
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(ph.ResultFileError, match=r"kvpress\.json: "):
        ph.formats.read_kvpress(file)
    with pytest.raises(ph.ResultFileError, match="exists already and is not a plan for kvpress"):
        ph.formats.write_kvpress(STREAMING, file, sinks=2, window=5)


def press_of(file: Path):
    """The press, made by the lines that the module's docstring shows."""
    shown = module.__doc__.split("```python\n")[1].split("```")[0]
    names = {"open": lambda _: file.open()}
    exec(shown, names)
    return names["press"]


@pytest.mark.filterwarnings("ignore")
def test_kvpress_hides_the_keys_of_exactly_the_streaming_heads(tmp_path):
    pytest.importorskip("kvpress", reason="kvpress is not installed: only the format was tested")
    if Version(version("transformers")) >= Version("5.3"):
        pytest.skip("kvpress 0.5.5 needs transformers below 5.3: only the format was tested")
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    sinks, window, length = 2, 5, 24
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    press = press_of(ph.formats.write_kvpress(STREAMING, tmp_path / "kvpress.json", sinks=sinks, window=window))
    ids = torch.randint(64, (1, length + 1))

    def next_token(cache: DynamicCache) -> torch.Tensor:
        return model(ids[:, length:], past_key_values=cache).logits[0, -1]

    def prompt() -> DynamicCache:
        cache = DynamicCache()
        model(ids[:, :length], past_key_values=cache)
        return cache

    with torch.no_grad():
        plain = next_token(prompt())
        with press(model):
            cache = prompt()
        assert torch.equal(press.streaming_mask, STREAMING)
        for layer, block in enumerate(model.model.layers):
            _, heads, positions = block.self_attn.masked_key_indices
            hidden = torch.zeros(2, length, dtype=torch.bool)
            hidden[heads, positions] = True
            expected = torch.zeros(2, length, dtype=torch.bool)
            expected[STREAMING[layer], sinks : length - window] = True
            assert torch.equal(hidden, expected)
        pressed = next_token(cache)
        # as if the hidden keys were not there: a very negative score is what their fake keys give
        for block in model.model.layers:
            block.self_attn.masked_key_indices = None
        direct = prompt()
        inner = torch.nn.functional.scaled_dot_product_attention
        layers = iter(range(3))

        def masked(query, key, value, attn_mask=None, **kwargs):
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
            seen = torch.ones(query.shape[1], 1, key.shape[2], dtype=torch.bool)
            seen[STREAMING[next(layers)].repeat_interleave(2), :, sinks : length - window] = False
            return inner(query, key, value, attn_mask=seen[None], scale=kwargs.get("scale"))

        torch.nn.functional.scaled_dot_product_attention = masked
        try:
            expected_logits = next_token(direct)
        finally:
            torch.nn.functional.scaled_dot_product_attention = inner
    torch.testing.assert_close(pressed, expected_logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(pressed, plain, atol=1e-4)
