"""The bundled model: what it is, how it was trained, how to load it."""
