"""Published files of other tools: unchanged, with their licences, read by the readers that read everybody's."""

import hashlib
import re

import pytest
import torch

import positional_heads as ph
from positional_heads.results.formats.published import FOLDER, PATTERNS

NOTICE = (FOLDER / "NOTICE.txt").read_text()


def test_every_file_is_listed_with_its_sha256_and_none_is_missing():
    listed = dict(reversed(line.split("  ")) for line in NOTICE.split("sha256 of each file:")[1].split("\n") if line)
    found = {file.relative_to(FOLDER).as_posix(): file for file in FOLDER.rglob("*") if file.is_file()}
    assert set(listed) == set(found) - {"NOTICE.txt"}
    for name, digest in listed.items():
        assert hashlib.sha256(found[name].read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in found.values()) < 350_000
    assert len(re.findall(r"commit [0-9a-f]{40}", NOTICE)) == 2
    assert "Copyright (c) 2024 MIT HAN Lab" in (FOLDER / "duo-attention" / "LICENSE.txt").read_text()
    assert "Apache License" in (FOLDER / "mha2mla" / "LICENSE.txt").read_text()


@pytest.mark.parametrize("name", [name for name in ph.formats.PUBLISHED if name.startswith("mha2mla/")])
def test_published_ranks_are_those_in_the_file(name):
    ranks = ph.formats.published(name)
    shape = {"SmolLM-135M": (30, 3, 32), "SmolLM-135M, query heads": (30, 9, 32), "Llama-2-7B": (32, 32, 64)}
    assert ranks.shape == shape.get(name.removeprefix("mha2mla/"), ranks.shape)
    assert bool((ranks.sort(-1).values == torch.arange(ranks.shape[-1])).all())


def test_the_first_published_head_has_the_ranks_that_its_file_shows():
    first = ph.formats.published("mha2mla/SmolLM-135M")[0, 0]
    assert first[:8].tolist() == [10, 17, 19, 13, 21, 15, 18, 12]


@pytest.mark.parametrize("model", PATTERNS)
def test_published_patterns_have_sinks_and_a_window(model):
    pattern = ph.formats.published(f"duo-attention/{model}")
    assert pattern.values.shape == (32, 32 if model.startswith("Llama-2") else 8)
    assert (pattern.sinks, pattern.window) == (128, 256)
    assert 0 < float(pattern.values.mean()) < 1


def test_other_names_are_refused_with_all_that_exist():
    for wrong in ("mha2mla/../../files", "duo-attention/", "x" * 500):
        with pytest.raises(ValueError, match="is not published here: choose one of duo-attention/Llama-2-7B-32K"):
            ph.formats.published(wrong)
