"""Frozen records: numbers with labels, tables, verdicts and files. Knows no model."""
