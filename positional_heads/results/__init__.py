"""Frozen records of what was found: labels, tables, verdicts, files. Knows no model."""
