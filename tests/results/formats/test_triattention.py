"""TriAttention's statistics: their calibration written again in NumPy, heads that are not there, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from tests.support.synthetic_profile import synthetic_profile

TOKENS, HEADS, PAIRS = 13, 4, 4
FREQUENCIES = 10000 ** -(np.arange(PAIRS) / PAIRS)


def queries() -> np.ndarray:
    """Queries before rotation, of two layers: [layer, head, token, channel]."""
    return np.random.default_rng(3).normal(0.4, 1, size=(2, HEADS, TOKENS, 2 * PAIRS))


def calibrated(query: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of one head by `calibrate.py`: rotate as Hugging Face does, undo it, join the halves as complex."""
    angle = np.arange(TOKENS)[:, None] * np.concatenate([FREQUENCIES, FREQUENCIES])
    cos, sin = np.cos(angle), np.sin(angle)

    def rotate_half(x: np.ndarray) -> np.ndarray:
        return np.concatenate([-x[:, PAIRS:], x[:, :PAIRS]], axis=1)

    rotated = query * cos + rotate_half(query) * sin
    restored = rotated * cos - rotate_half(rotated) * sin
    joined = restored[:, :PAIRS] + 1j * restored[:, PAIRS:]
    return {
        "q_mean_real": joined.mean(0).real,
        "q_mean_imag": joined.mean(0).imag,
        "q_abs_mean": np.abs(joined).mean(0),
    }


def profile_of(query: np.ndarray) -> ph.HeadProfile:
    """A profile with the centres and norms of these queries, first channel of a pair first."""
    profile = synthetic_profile()
    planes = torch.from_numpy(np.stack([query[..., :PAIRS], query[..., PAIRS:]], -1))
    center, norm = profile.pairs.query_center.clone(), profile.pairs.query_norm.clone()
    center[:2], norm[:2] = planes.mean(2), planes.norm(dim=-1).mean(2)
    return replace(profile, pairs=replace(profile.pairs, query_center=center, query_norm=norm))


def test_the_file_holds_what_their_calibration_measures(tmp_path):
    query = queries()
    file = ph.formats.write_triattention(profile_of(query), tmp_path / "stats.pt")
    content = torch.load(file, weights_only=True)
    metadata = content["metadata"]
    assert metadata["sampled_heads"] == [[layer, head] for layer in range(2) for head in range(HEADS)]
    assert (metadata["head_dim"], metadata["rope_style"]) == (2 * PAIRS, "half")
    np.testing.assert_allclose(metadata["inv_freq"], FREQUENCIES)
    assert set(content["stats"]) == {f"layer{layer:02d}_head{head:02d}" for layer, head in metadata["sampled_heads"]}
    for layer, head in metadata["sampled_heads"]:
        found, expected = content["stats"][f"layer{layer:02d}_head{head:02d}"], calibrated(query[layer, head])
        assert {part: value.dtype for part, value in found.items()} == dict.fromkeys(expected, torch.float32)
        for part, value in expected.items():
            np.testing.assert_allclose(found[part], value, atol=1e-6, err_msg=part)  # float32


def test_what_was_written_is_read_back_and_absent_heads_are_unknown(tmp_path):
    profile = profile_of(queries())
    file = ph.formats.write_triattention(profile, tmp_path / "stats.pt")
    named = replace(profile, provenance=profile.provenance | {"model": {"name": "\ud800\0</b>"}})  # no text at all
    file = ph.formats.write_triattention(named, file)
    read = ph.formats.read_triattention(file)
    torch.testing.assert_close(read.query_center, profile.pairs.query_center[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(read.query_norm, profile.pairs.query_norm[:2], atol=1e-6, rtol=0)
    content = torch.load(file, weights_only=True)
    del content["stats"]["layer00_head02"]
    torch.save(content, file)
    with pytest.raises(ph.ResultFileError, match=r"its statistics differ in 1 heads, e\.g\. \(0, 2\)"):
        ph.formats.read_triattention(file)
    content["metadata"]["sampled_heads"].remove([0, 2])
    torch.save(content, file)
    read = ph.formats.read_triattention(file)
    assert bool(read.query_norm[0, 2].isnan().all())
    assert not bool(read.query_norm[0, [0, 1, 3]].isnan().any())


def test_frequencies_that_differ_between_layers_are_left_out_and_the_adjacent_layout_has_their_name(tmp_path):
    profile = profile_of(queries())
    frequencies = profile.pairs.frequencies.clone()
    frequencies[1] /= 2
    layer = {"layout": "adjacent", "rotary_dim": 8, "d_head": 8}
    local = replace(
        profile,
        pairs=replace(profile.pairs, frequencies=frequencies),
        provenance=profile.provenance | {"rotary": [layer, layer]},
    )
    metadata = ph.formats.read_triattention(ph.formats.write_triattention(local, tmp_path / "stats.pt")).metadata
    assert "inv_freq" not in metadata
    assert metadata["rope_style"] == "interleaved"
    partial = replace(local, provenance=local.provenance | {"rotary": [layer | {"rotary_dim": 4}]})
    with pytest.raises(ValueError, match="TriAttention rotates every channel"):
        ph.formats.write_triattention(partial, tmp_path / "none.pt")


GOOD = {part: torch.ones(4) for part in ("q_mean_real", "q_abs_mean")} | {"q_mean_imag": torch.zeros(4)}
WRONG = {
    "tensor": torch.ones(3),
    "empty": {"metadata": {}, "stats": {}},
    "key": {"metadata": {}, "stats": {"layer0_head0": GOOD}},
    "number": {"metadata": {}, "stats": {0: GOOD}},
    "part": {"metadata": {}, "stats": {"layer00_head00": {"q_abs_mean": torch.ones(4)}}},
    "value": {"metadata": {}, "stats": {"layer00_head00": GOOD | {"q_mean_imag": 1.0}}},
    "shape": {"metadata": {}, "stats": {"layer00_head00": GOOD | {"q_mean_imag": torch.zeros(3)}}},
    "pairs": {"metadata": {"head_dim": 6}, "stats": {"layer00_head00": GOOD}},
    "heads": {"metadata": {}, "stats": {"layer00_head00": GOOD, "layer00_head01": {k: v[:2] for k, v in GOOD.items()}}},
    "NaN": {"metadata": {}, "stats": {"layer00_head00": GOOD | {"q_mean_imag": torch.full((4,), torch.nan)}}},
    "swapped": {"metadata": {}, "stats": {"layer00_head00": GOOD | {"q_abs_mean": torch.full((4,), 0.9)}}},
    "more parts": {"metadata": {}, "stats": {"layer00_head00": GOOD | {"k_mean": torch.zeros(4)}}},
    "more": {"metadata": {}, "stats": {"layer00_head00": GOOD}, "keys": {}},
    "no pairs": {"metadata": {}, "stats": {"layer00_head00": {k: v[:0] for k, v in GOOD.items()}}},
    "no heads": {"metadata": {"sampled_heads": []}, "stats": {"layer00_head00": GOOD}},
    "deep": {"metadata": {"sampled_heads": [[0, [0]]]}, "stats": {"layer00_head00": GOOD}},
    "far away": {"metadata": {}, "stats": {"layer9999_head9999": GOOD}},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_statistics_is_refused(case, tmp_path):
    file = tmp_path / "stats.pt"
    torch.save({"metadata": {"head_dim": 8}, "stats": {"layer00_head00": GOOD}}, file)
    ph.formats.read_triattention(file)
    torch.save(WRONG[case], file)
    with pytest.raises(ph.ResultFileError, match=r"stats\.pt: "):
        ph.formats.read_triattention(file)
    before = file.read_bytes()
    with pytest.raises(ph.ResultFileError, match="exists already and is not a file of TriAttention's statistics"):
        ph.formats.write_triattention(synthetic_profile(), file)
    assert file.read_bytes() == before
