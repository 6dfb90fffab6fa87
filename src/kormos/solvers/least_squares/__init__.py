"""Levenberg and Marquardt's method."""
