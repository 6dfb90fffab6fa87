"""The data of the user, as arrays in memory or as a stream."""
