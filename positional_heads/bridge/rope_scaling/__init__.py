"""Length extrapolation: what each method does to positions, on any supported model."""
