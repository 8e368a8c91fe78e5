"""Numbers from tensors: rotation, contributions, D, ranks and statistics. Knows no model."""
