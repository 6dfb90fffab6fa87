"""Connects a child script to the others. It must be imported before Keras."""

from joined import join

INDEX, COUNT = join()
