"""Speed and memory of the library against baselines in the same run, e.g. `python -m benchmarks.kernel`."""
