"""Reports and plots of fits."""
