"""The retrieval score equals counts by hand, and one from Hugging Face's own attention."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from positional_heads.bridge.model import UnsupportedModelError
from positional_heads.bridge.retrieval import retrieval_scores
from positional_heads.studies.tasks.recall import passkey
from positional_heads.zoo.bundled import MODEL_FOLDER

PROMPT = [5, 6, 7, 8, 9]
"""The needle is at 1 to 3 (tokens 6, 7, 8), the model is made to say what is planned."""


class PlannedModel:
    """One layer of three heads that generates planned tokens, each head attending to a planned key at each step."""

    cfg = SimpleNamespace(n_layers=1, n_heads=3, device="cpu")

    def __init__(self, says, attends, names=("blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern")):
        self.says, self.attends, self.hook_dict = says, attends, dict.fromkeys(names)

    def __call__(self, tokens):
        logits = torch.zeros(1, tokens.shape[1], 20)
        for step in range(tokens.shape[1] - len(PROMPT) + 1):
            logits[0, len(PROMPT) - 1 + step, self.says[step]] = 1
        return logits

    def run_with_hooks(self, tokens, return_type, fwd_hooks):
        pattern = torch.zeros(1, 3, tokens.shape[1], tokens.shape[1])
        for head, keys in enumerate(self.attends):
            for step, key in enumerate(keys):
                pattern[0, head, len(PROMPT) - 1 + step, key] = 1
        if "blocks.0.attn.hook_pattern" in self.hook_dict:
            for _, function in fwd_hooks:
                function(pattern, None)


def score(says, attends, answer):
    return retrieval_scores(PlannedModel(says, attends), [torch.tensor(PROMPT)], [(1, 4)], [torch.tensor(answer)])


def test_scores_equal_counts_by_hand():
    found = score(
        says=[6, 7, 8],
        attends=[
            [1, 2, 3],  # fetches all three
            [1, 3, 3],  # looks at 8 while 7 is said: two of three
            [0, 4, 0],  # never looks at the needle
        ],
        answer=[6, 7, 8],
    )
    assert torch.allclose(found[0], torch.tensor([1, 2 / 3, 0], dtype=torch.float64))


def test_attending_to_the_same_token_outside_of_the_needle_does_not_count():
    found = score(says=[6, 6, 8], attends=[[1, 5, 3], [1, 1, 3], [0, 0, 0]], answer=[6, 7, 8])
    # key 5 holds the 6 just said; key 1 holds it in the needle
    assert torch.allclose(found[0], torch.tensor([2 / 3, 1, 0], dtype=torch.float64))


def test_trials_that_the_model_fails_do_not_count():
    assert score([9, 9, 8], [[1, 2, 3]] * 3, [6, 7, 8]).isnan().all()


def test_a_model_without_a_pattern_hook_is_refused():
    model = PlannedModel([6, 7, 8], [[1, 2, 3]] * 3, names=["blocks.0.attn.hook_attn_scores"])
    with pytest.raises(UnsupportedModelError, match="hook_pattern does not fire"):
        retrieval_scores(model, [torch.tensor(PROMPT)], [(1, 4)], [torch.tensor([6, 7, 8])])


@torch.no_grad()
def test_the_bundled_models_scores_follow_from_hugging_faces_attention(bundled):
    reference = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, attn_implementation="eager").eval()
    asked = [example for example in passkey(bundled, length=300, depths=3, examples=2).examples if example.depth < 1]
    starts = [example.answers[0][0] for example in asked]
    found = retrieval_scores(
        bundled,
        [example.tokens[:start] for example, start in zip(asked, starts, strict=True)],
        [example.needle for example in asked],
        [example.tokens[start:] for example, start in zip(asked, starts, strict=True)],
    )
    expected = torch.zeros(4, 8)
    for example, start in zip(asked, starts, strict=True):
        output = reference(example.tokens[None], output_attentions=True)
        said = output.logits[0, start - 1 : -1].argmax(-1)
        assert torch.equal(said, example.tokens[start:])  # so that decoding freely says the same
        first, last = example.needle
        for layer, attention in enumerate(output.attentions):
            for head in range(8):
                for step in range(len(said)):
                    key = int(attention[0, head, start - 1 + step].argmax())
                    if first <= key < last and example.tokens[key] == said[step]:
                        expected[layer, head] += 1 / (last - first) / len(asked)
    assert torch.allclose(found.float(), expected, atol=1e-6)
    assert float(found.max()) > 0.5
