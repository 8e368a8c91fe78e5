"""Whole studies: what is claimed of heads, against controls."""
