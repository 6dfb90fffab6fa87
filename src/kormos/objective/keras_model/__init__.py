"""The loss of a Keras model."""
