"""Whole studies, which test claims about heads against controls."""
