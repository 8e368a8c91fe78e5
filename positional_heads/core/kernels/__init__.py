"""Kernels that compute D for all query-key pairs and add it up: C++, compiled GPU, plain PyTorch."""
