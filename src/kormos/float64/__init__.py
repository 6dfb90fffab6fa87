"""The precision of an evaluation, and float64 for float32 models."""
