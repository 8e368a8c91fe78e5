"""The bundled model and its text, with the code that trained it."""
