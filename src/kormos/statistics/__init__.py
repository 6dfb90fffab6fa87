"""How sure an estimate is: standard errors, intervals and comparisons."""
