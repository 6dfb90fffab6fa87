"""Faults on purpose: whatever happens, a fit loses no weights."""
