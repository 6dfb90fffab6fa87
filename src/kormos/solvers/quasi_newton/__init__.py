"""Quasi-Newton methods, compiled on the device."""
