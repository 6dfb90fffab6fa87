"""Scalars and vectors, eager or traced."""
