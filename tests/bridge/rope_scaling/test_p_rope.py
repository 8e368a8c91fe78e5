"""p-RoPE stops the slowest pairs."""

import torch

from positional_heads.bridge.rope_scaling.methods import rope_method
from positional_heads.bridge.rope_scaling.plain_rope import plain_rope


def test_p_rope_stops_the_slowest_pairs(bundled):
    table = rope_method("p_rope", keep=0.75).table(plain_rope(bundled), 512)
    plain = rope_method("none").table(plain_rope(bundled), 512)
    assert torch.equal(table.inv_freq[:12], plain.inv_freq[:12])
    assert torch.equal(table.inv_freq[12:], torch.zeros(4))
