"""Scalars and vectors, as NumPy numbers or as tensors."""
