"""Model and text in, a record out."""
