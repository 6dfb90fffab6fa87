"""The version of kormos, which nothing else states."""

__version__ = "1.0.0.dev0"
