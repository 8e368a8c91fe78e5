"""Score the heads of a model on a text; the result is a record."""
