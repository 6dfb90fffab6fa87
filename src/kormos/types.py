"""Names of the types of arguments and results."""

from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# A float64 array of shape `(size,)`: a point, a gradient, a step.
Vector: TypeAlias = npt.NDArray[np.float64]
# A float64 array of shape `(rows, columns)`.
Matrix: TypeAlias = npt.NDArray[np.float64]
# A NumPy array of any shape and dtype.
Array: TypeAlias = npt.NDArray[Any]
# A tensor of the backend, of any shape and dtype: Keras has no type for it.
Tensor: TypeAlias = Any
# A number, which is a tensor of shape `()` inside a compiled function.
Scalar: TypeAlias = Any
# Arrays or tensors in dicts, lists and tuples: see `keras.tree`.
Structure: TypeAlias = Any
