"""Numbers from tensors: rotation, contributions, D, ranks and statistics. Needs no model."""
