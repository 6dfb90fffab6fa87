"""A trust-region Newton method, compiled on the device."""
