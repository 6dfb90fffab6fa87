"""Results of metrics."""

import keras


def flattened(results):
    """Values by name, where Keras has a dict for a metric with several.

    Args:
        results: a dict of results, in the scope of their variables.
    """
    flat = {}
    for name, result in results.items():
        if isinstance(result, dict):
            flat.update(flattened(result))
        elif isinstance(result, keras.Variable):
            # Its value is that of the scope within it alone.
            flat[name] = result.value
        else:
            flat[name] = result
    return flat
