"""Frozen records of results: labels, tables, verdicts, files. They need no model."""
