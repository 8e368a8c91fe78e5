"""Models on several devices: layers on two GPUs that are pretended, weights on disk, and maps of one device."""

from pathlib import Path

import pytest
import torch

import positional_heads as ph
from positional_heads.bridge.provenance import model_provenance
from positional_heads.cli.common import load_named
from positional_heads.scoring.counter import EntryCounter
from positional_heads.scoring.score import prepared_counter
from positional_heads.scoring.sums import ScoreSums
from tests.support.pretended_devices import PretendedDevices, layers_apart
from tests.support.tiny_models import WRONG_BRIDGES, boot

GPUS = ("cuda:0", "cuda:1")
TOKENS = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(TOKENS)
PADDED[1, :7] = 0
ON_DISK = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "lm_head", "model.layers.0"), "cpu")
ON_DISK |= {"model.norm": "disk", "model.layers.1": "disk"}


def scored(model):
    return ph.score_heads(model, TOKENS, null_repeats=2).rho


def padded(model):
    return ph.score_heads(model, TOKENS, attention_mask=PADDED).rho


def sampled(model):
    return ph.score_heads(model, TOKENS.repeat(1, 3), pairs=2048, null_repeats=2).null.rho


def profiled(model):
    return ph.contribution_profile(model, TOKENS, ["L0H1", "L1H2"]).mean


def ablated(model):
    with ph.ablated_heads(model, ["L0H1", "L1H2"], mode="mean", reference=TOKENS):
        return model(TOKENS.to(model.cfg.device)).cpu()


def answered(model):
    result = ph.evaluate(model, "passkey", heads=["L0H1"], mode="zero", length=64, depths=1, examples=2)
    return result.measures["log_prob"]


def extended(model):
    with ph.extended_rope(model, "yarn", factor=2.0):
        return ph.score_heads(model, TOKENS).rho


def rewritten(model):
    with ph.extended_rope(model, "self_extend", factor=2.0):
        return ph.score_heads(model, TOKENS).rho


CASES = {
    "llama": (scored, padded, sampled, profiled, ablated, extended, rewritten),
    "gptj": (scored,),
    "gemma2": (scored,),
}


@pytest.mark.parametrize(("family", "case"), [(family, case) for family, cases in CASES.items() for case in cases])
def test_layers_on_two_devices_give_the_numbers_of_one(family, case, tiny_folder):
    model = boot(tiny_folder(family)).eval()
    expected = case(model)
    with layers_apart(model, GPUS) as devices:
        found = case(model)
        assert {str(devices.of(weight)) for weight in model.original_model.parameters()} == set(GPUS)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("homes", [GPUS, GPUS[:1]])
def test_a_run_on_gpus_is_resumed_from_its_file(homes, tiny_folder, tmp_path, monkeypatch):
    model, count = boot(tiny_folder("llama")).eval(), EntryCounter.count
    settings = {"batch_size": 1, "null_repeats": 2}
    expected = ph.score_heads(model, TOKENS, **settings).rho

    def interrupted(self, number, sums):
        if len(sums.done) > 1:
            raise ConnectionError
        count(self, number, sums)

    with layers_apart(model, homes):
        monkeypatch.setattr(EntryCounter, "count", interrupted)
        with pytest.raises(ConnectionError):
            ph.score_heads(model, TOKENS, checkpoint=tmp_path, checkpoint_seconds=0, **settings)
        monkeypatch.setattr(EntryCounter, "count", count)
        (kept,) = tmp_path.iterdir()
        assert len(ScoreSums.load(kept).done) < len(TOKENS)
        assert torch.equal(ph.score_heads(model, TOKENS, checkpoint=tmp_path, **settings).rho, expected)


def test_sums_of_workers_are_added_to_those_of_gpus(tiny_folder):
    model = boot(tiny_folder("llama")).eval()
    expected = ph.score_heads(model, TOKENS, batch_size=1).rho
    with layers_apart(model, GPUS):
        counter = prepared_counter(ph.score_heads, model, TOKENS, batch_size=1)
        sums = counter.begin(count_longest=False)
        for number in range(len(TOKENS)):
            part = ScoreSums.from_bytes(sums.empty().to_bytes())  # as a Ray worker gets and returns them
            counter.count(number, part)
            sums.absorb(ScoreSums.from_bytes(part.to_bytes()))
        assert torch.equal(sums.result().rho, expected)


def test_pretended_devices_refuse_what_real_ones_would():
    with PretendedDevices() as devices:
        here, there = torch.ones(2).to("cuda:0"), torch.ones(2, device="cuda:1")
        assert here.device != there.device == torch.zeros_like(there).device
        assert devices.of(here + 1) == torch.device("cuda:0")
        assert (here + torch.tensor(1.0))[torch.tensor([0])].is_cuda
        for mixed in (lambda: here + there, lambda: here @ torch.ones(2), lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            here.numpy()
        assert here.cpu().numpy().sum() == 2


ALL_ON_DISK = {"": "disk"}


@pytest.mark.skipif(bool(WRONG_BRIDGES), reason="this TransformerLens refuses weights on disk itself")
@pytest.mark.parametrize("tied", [False, True])
def test_a_whole_model_on_disk_gives_the_numbers_of_memory(tied, tiny_folder, tmp_path):
    folder = tiny_folder("llama", tie_word_embeddings=tied)
    plain, offloaded = ph.load_model(folder), ph.load_model(folder, device_map=ALL_ON_DISK, offload_folder=tmp_path)
    assert {str(weight.device) for weight in offloaded.original_model.parameters()} == {"meta"}
    assert all(rotary.plain for rotary in ph.resolve_layers(offloaded).layers.values())
    with torch.no_grad():
        assert torch.equal(offloaded(TOKENS), plain(TOKENS))
    assert torch.equal(answered(offloaded), answered(plain))
    assert model_provenance(offloaded) == model_provenance(plain)


@pytest.mark.skipif(bool(WRONG_BRIDGES), reason="this TransformerLens refuses weights on disk itself")
def test_weights_on_disk_give_the_numbers_of_weights_in_memory(tiny_folder, tmp_path):
    folder = tiny_folder("llama")
    plain, offloaded = ph.load_model(folder), ph.load_model(folder, device_map=ON_DISK)
    assert {str(weight.device) for weight in offloaded.original_model.parameters()} == {"cpu", "meta"}
    for case in (scored, profiled, ablated, extended):
        assert torch.equal(case(offloaded).nan_to_num(), case(plain).nan_to_num())
    files = [
        ph.score_shard(model, TOKENS, (1, 2), tmp_path / str(number)) for number, model in enumerate((plain, offloaded))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_map_of_one_device_gives_the_numbers_of_the_device(device_map, tiny_folder):
    folder = tiny_folder("llama")
    assert torch.equal(scored(ph.load_model(folder, device_map=device_map)), scored(ph.load_model(folder)))


def test_device_and_device_map_exclude_each_other(tiny_folder):
    with pytest.raises(ValueError, match="device 'cpu' and device_map 'auto' are both given"):
        ph.load_model(tiny_folder("llama"), device="cpu", device_map="auto")


@pytest.mark.parametrize(
    ("device", "device_map", "expected"),
    [
        ("auto", None, (None, "auto")),
        ("cuda", None, ("cuda", None)),
        (None, None, (None, None)),
        (None, "balanced", (None, "balanced")),
        (None, '{"": "disk", "lm_head": 1}', (None, {"": "disk", "lm_head": 1})),
        ("cpu", "auto", ("cpu", "auto")),  # which load_model refuses
    ],
)
def test_the_command_line_spreads_a_model(device, device_map, expected, tiny_folder, monkeypatch):
    asked = {}
    monkeypatch.setattr("positional_heads.zoo.bundled.load_model", lambda name, **given: asked.update(given))
    folders = {"adapter": Path("lora"), "offload_folder": Path("disk")}
    load_named(str(tiny_folder("llama")), device, None, False, device_map=device_map, **folders)
    assert (asked["device"], asked["device_map"]) == expected
    assert folders.items() <= asked.items()


@pytest.mark.parametrize("device_map", [{}, ""])
def test_an_empty_device_map_is_refused(device_map, tiny_folder):
    with pytest.raises(ValueError, match=f"device_map {device_map!r} is empty: give 'auto', or a table from names of"):
        ph.load_model(tiny_folder("llama"), device_map=device_map)


@pytest.mark.parametrize("device_map", ["all", "[1]", '{"": null}', '{"": true}', "{"])
def test_a_device_map_that_is_no_map_is_refused(device_map):
    with pytest.raises(ValueError, match=r"--device-map .* give auto, balanced, sequential, or a table in JSON"):
        load_named("bundled", None, None, False, device_map=device_map)
