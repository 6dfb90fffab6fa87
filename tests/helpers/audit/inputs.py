"""Inputs of the cases: small arrays, drawn once."""

import numpy as np

_random = np.random.RandomState(0)
X = _random.normal(0.0, 2.0, (4, 6))
X2 = _random.normal(0.0, 2.0, (4, 6))
POSITIVE = _random.uniform(0.2, 3.0, (4, 6))
POSITIVE2 = _random.uniform(0.2, 3.0, (4, 6))
UNIT = _random.uniform(0.05, 0.95, (4, 6))
SIMPLEX = UNIT / UNIT.sum(axis=1, keepdims=True)
CLASSES = np.array([2, 0, 5, 3])
ONE_HOT = np.eye(6)[CLASSES]
BINARY = _random.randint(0, 2, (4, 6)).astype(float)
WEIGHTS = _random.uniform(0.1, 2.0, 4)
SEQUENCE = _random.normal(size=(2, 5, 3))
SEQUENCE2 = _random.normal(size=(2, 4, 3))
IMAGE = _random.normal(size=(2, 5, 6, 2))
VOLUME = _random.normal(size=(1, 3, 4, 3, 2))
FILM = _random.normal(size=(1, 3, 3, 4, 2))
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
TOKENS = np.array([[1, 2, 2], [3, 1, 0]])
LOGITS = _random.normal(size=(2, 6, 4))
