"""The version of kormos. It is stated nowhere else."""

__version__ = "1.0.0.dev0"
