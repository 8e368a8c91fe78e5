"""Tasks to measure a model on, with heads ablated or beyond the training length."""
