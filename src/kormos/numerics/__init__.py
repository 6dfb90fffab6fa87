"""Pure functions and plain records that optimizers share."""
