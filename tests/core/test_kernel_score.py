"""The kernel score against whole kernels and their singular values in NumPy, and where it is known."""

import numpy as np
import pytest
import torch

from positional_heads.core.kernel_score import kernel_scores


@pytest.mark.parametrize("layout", ["half", "adjacent"])
def test_it_is_that_of_the_whole_kernels(layout):
    generator = torch.Generator().manual_seed(3)
    queries, keys = (torch.randn(heads, 24, 10, generator=generator) for heads in (4, 2))
    slow = torch.tensor([False, True, False, True])
    channels = [(i, i + 4) if layout == "half" else (2 * i, 2 * i + 1) for i in range(4)]
    expected = []
    for head in range(4):
        q, k = queries[head].double().numpy(), keys[head // 2].double().numpy()
        kernels = [np.outer(q[:, a] + 1j * q[:, b], (k[:, a] + 1j * k[:, b]).conj()) for a, b in channels]
        energy = np.array([np.linalg.norm(kernel) ** 2 for kernel in kernels])
        shares = np.linalg.svd(q @ k.T, compute_uv=False)
        shares = shares[shares > 1e-9] / shares.sum()
        rank = np.exp(-(shares * np.log(shares)).sum())
        expected.append(energy[slow.numpy()].sum() / energy.sum() * (1 - (rank - 1) / 9))
    assert kernel_scores(queries, keys, layout, 8, slow).tolist() == pytest.approx(expected, rel=1e-9)


def test_one_slow_direction_scores_one_and_a_fast_one_zero():
    query = torch.zeros(1, 6, 4)
    query[0, 0, 1] = query[0, 2, 3] = 1.0  # pair 1 of the half layout
    rank_one = query.clone()
    rank_one[0, 2, 3] = 0.0
    assert float(kernel_scores(rank_one, rank_one, "half", 4, torch.tensor([False, True]))) == pytest.approx(1)
    assert float(kernel_scores(rank_one, rank_one, "half", 4, torch.tensor([True, False]))) == 0
    assert float(kernel_scores(query, query, "half", 4, torch.tensor([False, True]))) == pytest.approx(2 / 3)
