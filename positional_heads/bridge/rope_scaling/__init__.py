"""Methods of length extrapolation, on any supported model."""
