"""Algorithms on one flat vector; they know no model and no data."""
