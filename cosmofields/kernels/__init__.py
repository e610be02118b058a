"""Numerical kernels on plain arrays: no labels, no units, no files."""
