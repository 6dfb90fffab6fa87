"""The Gauss-Newton matrix of a loss."""
