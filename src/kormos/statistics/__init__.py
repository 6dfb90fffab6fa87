"""The uncertainty of an estimate: standard errors, intervals, comparisons."""
