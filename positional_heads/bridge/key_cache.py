"""What each layer of a model keeps in its key cache: how many key heads, of how many tokens, or another layer's."""

from collections.abc import Mapping
from typing import Any

from positional_heads.bridge.model import TransformerLensModel
from positional_heads.bridge.model_size import WINDOWED, layer_kinds


def layer_caches(model: TransformerLensModel, without_keys: Mapping[int, Any]) -> list[dict[str, int | None]]:
    """Which keys each layer reads, and how many it holds, as JSON, from the configuration of the model.

    `keys_of` is the layer whose keys it reads: mostly itself, another in models whose last layers hold no keys of their
    own (Gemma-3n, Gemma-4), None without attention. `key_heads` is how many it holds itself; None where the
    configuration does not say. `window` is its sliding window in tokens, or chunk; None without one.

    Args:
        model: A TransformerBridge.
        without_keys: Layers without attention.
    """
    text = model.original_model.config.get_text_config()
    count = int(model.cfg.n_layers)
    kinds, window = layer_kinds(text)
    kinds = [*kinds, *["attention"] * (count - len(kinds))]
    first_sharing = count - int(getattr(text, "num_kv_shared_layers", None) or 0)
    each = getattr(text, "per_layer_config", None) or [text] * count
    caches: list[dict[str, int | None]] = []
    for layer, kind in enumerate(kinds[:count]):
        holder: int | None = None if layer in without_keys else layer
        if holder is not None and layer >= first_sharing:  # those read the last layer of their kind before them
            holder = max((one for one in range(first_sharing) if kinds[one] == kind), default=None)
        held = getattr(each[layer], "num_key_value_heads", None) if holder == layer else 0
        caches.append(
            {
                "layer": layer,
                "keys_of": holder,
                "key_heads": held if held is None else int(held),
                "window": int(window) if window and kind in WINDOWED else None,
            }
        )
    return caches
