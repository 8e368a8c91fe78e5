"""FASA's agreements: axes, rankings, channels by layout, their files once converted, and pickles that stay shut."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

import positional_heads as ph
from tests.support.synthetic_profile import synthetic_profile


def test_axes_ranking_and_channels_are_those_stated(tmp_path):
    profile = synthetic_profile()
    agreement = profile.pairs.agreement.clone()
    agreement[1, :, 3] = torch.nan  # a layer with three pairs
    layer = {"layout": "half", "rotary_dim": 8, "d_head": 8}
    profile = replace(
        profile,
        pairs=replace(profile.pairs, agreement=agreement),
        provenance=profile.provenance | {"rotary": [layer, layer]},
    )
    file = ph.formats.write_fasa_agreement(profile, tmp_path / "agreement.json")
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["agreement"][0][2][1] == float(agreement[0, 1, 2])
    assert content["agreement"][2] == [[None] * 4] * 4
    assert content["ranking"][0][1] == np.argsort(-agreement[0, 1].numpy()).tolist()
    assert set(content["ranking"][1][0]) == {0, 1, 2}
    assert content["ranking"][2] == [None] * 4
    assert content["channels"] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    torch.testing.assert_close(ph.formats.read_fasa_agreement(file), agreement, rtol=0, atol=0, equal_nan=True)
    other = replace(profile, provenance=profile.provenance | {"rotary": [layer | {"layout": "adjacent"}]})
    content = json.loads(ph.formats.write_fasa_agreement(other, file).read_text())
    assert content["channels"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(ValueError, match="has one number of top keys: leave budget 256 out"):
        ph.formats.read_fasa_agreement(file, budget=256)


def test_their_file_is_read_once_it_is_a_torch_file(tmp_path):
    theirs = torch.rand(6, 3, 5, 2, generator=torch.Generator().manual_seed(0))  # budget layer chunk head
    torch.save(theirs, tmp_path / "agreement.pt")
    read = ph.formats.read_fasa_agreement(tmp_path / "agreement.pt", budget=256)
    assert read.shape == (3, 2, 5)
    assert float(read[2, 1, 4]) == float(theirs[1, 2, 4, 1])
    with pytest.raises(ValueError, match="budget None must be one of 128, 256"):
        ph.formats.read_fasa_agreement(tmp_path / "agreement.pt")
    for wrong in (theirs + 1, theirs[0], (theirs * 2).long(), theirs[:5]):
        torch.save(wrong, tmp_path / "agreement.pt")
        with pytest.raises(ph.ResultFileError, match=r"between 0 and 1|must be numbers"):
            ph.formats.read_fasa_agreement(tmp_path / "agreement.pt", budget=256)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_with_the_way_out(protocol, tmp_path):
    file = tmp_path / "qasper_agreement.pkl"
    file.write_bytes(pickle.dumps(torch.zeros(6, 1, 1, 1), protocol=protocol))
    with pytest.raises(ph.ResultFileError, match=r"pickles are not opened.*torch\.save"):
        ph.formats.read_fasa_agreement(file, budget=256)
    with pytest.raises(ph.ResultFileError, match="exists already"):
        ph.formats.write_fasa_agreement(synthetic_profile(), file)


LABEL = {"format": "positional_heads.ContextualAgreement", "version": 1}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        json.dumps(LABEL),
        json.dumps(LABEL | {"version": 2, "agreement": [[[0.5]]]}),
        json.dumps(LABEL | {"agreement": [[[0.5], [0.5, 0.1]]]}),
        json.dumps(LABEL | {"agreement": [[[1.5]]]}),
        json.dumps(LABEL | {"agreement": [[[True]]]}),
        json.dumps(LABEL | {"agreement": [[["0.5"]]]}),
        json.dumps(LABEL | {"agreement": [[10**400]]}),
        json.dumps(LABEL | {"agreement": []}),
        '{"a":' * 10**5,
    ],
)
def test_what_is_no_agreement_is_refused(content, tmp_path):
    (tmp_path / "agreement.json").write_text(content)
    with pytest.raises(ph.ResultFileError, match=r"agreement\.json: "):
        ph.formats.read_fasa_agreement(tmp_path / "agreement.json")
