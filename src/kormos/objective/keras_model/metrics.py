"""Results of metrics."""

from collections.abc import Mapping
from typing import Any

import keras

from kormos.types import Tensor


def flattened(results: Mapping[str, Any]) -> dict[str, Tensor]:
    """Results by name, without the dicts of metrics with several results.

    It is called in the scope in which the metrics' variables have their values.

    Args:
        results: a dict of results, dicts and variables.
    """
    flat = {}
    for name, result in results.items():
        if isinstance(result, dict):
            flat.update(flattened(result))
        elif isinstance(result, keras.Variable):
            # Outside of the scope, it would have another value.
            flat[name] = result.value
        else:
            flat[name] = result
    return flat
