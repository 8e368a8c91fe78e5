"""What the library costs, against baselines in the same run: `python -m benchmarks.kernel` and its neighbours."""
