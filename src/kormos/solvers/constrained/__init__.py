"""Constraints for kormos' own methods: an augmented Lagrangian."""
