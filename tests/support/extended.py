"""Helpers for tests of length extrapolation: the same method in Hugging Face's model, and scores by any distance."""

import numpy as np
from transformers import AutoModelForCausalLM

import positional_heads as ph

TRAINED = 64
"""Tokens that the tiny models are taken to be trained on."""
PAIRS = {"llama": 8, "neox": 2}
SCALED = {
    "linear": ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": ({"factor": 4.0}, {"rope_type": "dynamic", "factor": 4.0}),
    "yarn": ({"factor": 4.0}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}),
    "llama3": (
        {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED,
        },
    ),
    "longrope": (
        {"factor": 4.0},
        {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": TRAINED},
    ),
}


def settings_for(family, method):
    ours, theirs = (dict(one) for one in SCALED[method])
    if method == "longrope":
        pairs = PAIRS[family]
        lists = {"short_factor": [1.0] * pairs, "long_factor": [1.0 + 0.5 * pair for pair in range(pairs)]}
        ours, theirs = ours | lists, theirs | lists
    return ours, theirs


def hugging_face(folder, theirs, length=TRAINED):
    """The same weights in Hugging Face's model, extended by its configuration."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    config = model.config
    plain = {
        key: config.rope_parameters[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in config.rope_parameters
    }
    config.rope_parameters = plain | theirs
    config.max_position_embeddings = 4 * length if theirs["rope_type"] == "longrope" else length
    if theirs["rope_type"] == "longrope":
        config.original_max_position_embeddings = length
    extended = type(model)(config).eval()
    extended.load_state_dict(model.state_dict())
    return extended


def contributions_by_distance(model, tokens, layer, distance_of):
    """Contributions [head query key pair] of one sequence, each pair turned by the distance that an entry is given.

    From the model's rotated queries and keys, rotated back, in float64.
    """
    query, key, turn = _unrotated(model, tokens, layer)
    distance = np.array([[distance_of(m, n) for n in range(len(query))] for m in range(len(query))])
    return np.einsum("mhp,nhp,mnp->hmnp", query, key.conj(), np.exp(1j * turn * distance[..., None])).real


def scores_by_distance(model, tokens, layer, distance_of):
    """Attention scores [head query key] of one sequence at these distances, without mask."""
    rotary = ph.resolve_layers(model).layers[layer]
    q, k = (x[..., rotary.rotary_dim :] for x in _rotated(model, tokens, layer))
    rest = np.einsum("mhd,nhd->hmn", q, k)
    return rotary.scale * (contributions_by_distance(model, tokens, layer, distance_of).sum(-1) + rest)


def dominant_dimension(contributions):
    """D from contributions [..., pair], at a temperature of 1."""
    weights = np.exp(contributions - contributions.max(-1, keepdims=True))
    return (weights * np.arange(weights.shape[-1])).sum(-1) / weights.sum(-1)


def _rotated(model, tokens, layer):
    """Rotated queries and keys [pos head d_head], every key head repeated for the query heads that share it."""
    with ph.live_rotary_hooks(model):
        _, cache = model.run_with_cache(tokens)
    q, k = (cache[f"blocks.{layer}.attn.hook_rot_{name}"][0].double().numpy() for name in "qk")
    return q, np.repeat(k, q.shape[1] // k.shape[1], axis=1)


def _unrotated(model, tokens, layer):
    """Queries and keys before rotation as complex pairs [pos head pair], and the frequencies."""
    rope = ph.plain_rope(model, layer)
    pairs = rope.rotary_dim // 2
    turn = rope.base ** (-2 * np.arange(pairs) / rope.rotary_dim)
    q, k = _rotated(model, tokens, layer)
    back = np.exp(-1j * turn * np.arange(len(q))[:, None, None])
    query, key = ((x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * back for x in (q, k))
    return query, key, turn
