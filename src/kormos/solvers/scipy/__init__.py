"""The methods of `scipy.optimize.minimize`."""
