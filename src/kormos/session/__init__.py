"""One call of the user, from its arguments to its result."""
