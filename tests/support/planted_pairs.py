"""A Llama that recalls by one pair of one head, set by hand; and studies of manipulated pairs whose truth is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from positional_heads.core.head_sets import distinct_sets
from positional_heads.core.heads import Head
from positional_heads.results.manipulation import ManipulationStudy
from positional_heads.studies.manipulated_sets import manipulated_sets
from positional_heads.studies.tasks.task import AnswerTask, Example
from positional_heads.zoo.architecture import byte_tokenizer

HEADS, D_HEAD, PAIRS, WIDTH = 24, 64, 32, 96
RECALLS, VALUES, ASKS = 5, range(100, 110), 200
"""The head that recalls, the tokens that it finds, and the token that asks for them."""


def save_recalling_model(folder: Path) -> Path:
    """Write a model of one layer that, asked, repeats the one value it was told, in `transformers` format.

    Head 5 finds it: a mark of values in its keys meets a mark of questions in its queries, in its slowest pair alone,
    which hardly turns. All other heads see noise.
    """
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        marks = torch.zeros(258, 23)
        marks[list(VALUES), 1], marks[ASKS, 2] = 3, 3
        for number, value in enumerate(VALUES):
            marks[value, 3 + number] = 3
        noise = torch.nn.functional.normalize(torch.randn(258, WIDTH - 23), dim=-1)
        rest = (WIDTH - marks.pow(2).sum(-1, keepdim=True)).sqrt()  # a mean square of 1, which norms keep
        model.model.embed_tokens.weight.copy_(torch.cat([marks, rest * noise], -1))
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        query, key, value = (one.weight.normal_(0, 0.02).view(HEADS, D_HEAD, WIDTH) for one in projections)
        query[RECALLS], key[RECALLS], value[RECALLS] = 0, 0, 0
        query[RECALLS, PAIRS - 1, 2], key[RECALLS, PAIRS - 1, 1] = 4, 4  # a score of 12 * 12 / 8
        out = attention.o_proj.weight.normal_(0, 0.02).view(WIDTH, HEADS, D_HEAD)
        out[:, RECALLS] = 0
        model.lm_head.weight.zero_()
        for number, token in enumerate(VALUES):
            value[RECALLS, number, 3 + number], out[13 + number, RECALLS, number] = 1, 2
            model.lm_head.weight[token, 13 + number] = 5
        model.model.layers[0].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def recall_task(examples: int = 8, length: int = 48, seed: int = 0) -> AnswerTask:
    """A value far from the question, or near, in other examples of the same unit."""
    rng = np.random.default_rng(seed)

    def example(unit: int, distance: int) -> Example:
        tokens = rng.integers(0, 90, length)
        tokens[-2:] = ASKS, rng.choice(VALUES)
        tokens[-2 - distance] = tokens[-1]
        reach = "long" if distance > length // 2 else "short"
        return Example(torch.tensor(tokens), ((length - 1, length),), unit, reach)

    made = [example(unit, distance) for unit in range(examples + 2) for distance in (length - 6, 4)]
    settings, chance = {"lengths": [length], "seed": seed}, {"log_prob": -np.log(len(VALUES)), "exact": 0.1}
    return AnswerTask("recall", tuple(made[:-4]), tuple(made[-4:]), chance, settings)


def planted_manipulation(
    cost: Callable[[Head, int], tuple[float, float]],
    *,
    top: int = 2,
    heads: int = 24,
    n_pairs: int = 16,
    counts: tuple[int, ...] = (4, 8),
    units: int = 12,
    noise: float = 0.01,
    n_random: int = 20,
    baseline: float = -0.1,
    short: bool = True,
    name: str = "planted",
    seed: int = 0,
) -> ManipulationStudy:
    """A study in which a pair of a head costs so much at long and at short range, and costs add up.

    The head L0H0 ranks highest, then L1H0, L0H1 and so on; pair 0 is the fastest, and the dominant pairs are those of
    the highest odd numbers.
    """
    ranking = [Head(number % 2, number // 2) for number in range(heads)]
    orders = {head: list(range(n_pairs))[::-1] for head in ranking}
    dominant = {head: sorted(range(n_pairs), key=lambda pair: (-(pair % 2), -pair)) for head in ranking[:top]}
    cells, moved = manipulated_sets(
        ranking, top, orders, dominant, counts, n_random=n_random, n_permuted=n_random, seed=seed
    )
    rng = np.random.default_rng(seed)
    reaches = ("long", "short") if short else ("long",)
    rows = [{"unit": unit, "reach": reach} for unit in range(units) for reach in reaches]
    difficulty = rng.normal(baseline, 0.02, len(rows))
    values = []
    for one in distinct_sets(cells):
        total = np.array([cost(head, pair) for head, pairs in moved[one].items() for pair in pairs] or [(0.0, 0.0)])
        changes = -np.tile(total.sum(0)[: len(reaches)], units)
        values.append(difficulty + changes + (rng.normal(0, noise, len(rows)) if one else 0))
    return ManipulationStudy(
        task="planted",
        rows=rows,
        cells=cells,
        values={"log_prob": torch.tensor(np.array(values))},
        heads=ranking[:top],
        frequencies=10.0 ** -torch.arange(n_pairs).double().expand(top, n_pairs),
        sizes=-torch.tensor([[order.index(pair) for pair in range(n_pairs)] for order in dominant.values()]).double(),
        how="freeze",
        factor=None,
        chance={"log_prob": -2.0},
        notes=[],
        provenance={
            "model": {"name": name},
            "task": {"name": "planted"},
            "manipulation": {"how": "freeze", "factor": None, "shared": "split"},
            "scores": {"significant": None, "rank_by": "rho"},
            "settings": {"n_random": n_random, "n_permuted": n_random, "seed": seed},
        },
    )
