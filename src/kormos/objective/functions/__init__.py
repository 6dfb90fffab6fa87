"""Losses and residuals that functions of variables compute."""
