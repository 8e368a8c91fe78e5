"""(e) Two Ray workers against one: `python -m benchmarks.workers`.

The same job with one worker of one core, then with two: wall time of everything, including the start of Ray and of the
workers, and a check that the results are equal.
"""

import time

import torch

import positional_heads as ph
from benchmarks.timing import markdown_table, setting, write_results

SETTINGS = {"null_repeats": 20, "null_pairs": "all", "batch_size": 1}


def main() -> None:
    """Time both."""
    torch.set_num_threads(1)
    model = ph.load_bundled_model()
    tokens = [piece for piece in ph.cut_text(model, ph.bundled_text()) if len(piece) == model.cfg.n_ctx]
    seconds, found = {}, {}
    for workers in (1, 2):
        started = time.perf_counter()
        found[workers] = ph.score_heads(model, tokens, executor=ph.RayExecutor(workers=workers), **SETTINGS)
        seconds[workers] = time.perf_counter() - started
    same = all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(found[1]._tensors().values(), found[2]._tensors().values(), strict=True)
    )
    ratio = seconds[1] / seconds[2]
    rows = [[str(workers), f"{taken:.0f}"] for workers, taken in seconds.items()]
    text = [
        f"# Ray workers\n\n{', '.join(f'{key} {value}' for key, value in setting().items())}. Bundled model, "
        f"{len(tokens)} sequences of 512 tokens, 20 exact shuffles.",
        markdown_table(["workers of one core", "seconds"], rows),
        f"Two are {ratio:.2f} times as fast as one; results {'are the same' if same else 'DIFFER'}, bit for bit.",
    ]
    write_results(
        "workers", "\n\n".join(text), {"setting": setting(), "seconds": seconds, "ratio": ratio, "same": same}
    )


if __name__ == "__main__":
    main()
