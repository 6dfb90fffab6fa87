"""What Keras computes, next to the same in NumPy: cases of a float64 audit.

A case holds what makes a layer or function of Keras, and a formula in NumPy of
the same inputs and weights. No formula calls Keras, and all of them take
complex numbers: their gradients are complex steps, `f(x + ih).imag / h`, which
are exact but for rounding. `>`, `np.where`, `np.maximum`, `np.clip` and the
like go by the real parts; `np.abs` and `np.linalg.norm` would not.

`python tests/float64` prints what deviates on the backend in use.
"""

from float64.activations import ACTIVATIONS
from float64.attention import ATTENTION
from float64.convolutions import CONVOLUTIONS
from float64.core import CORE
from float64.losses import LOSSES
from float64.merging import MERGING
from float64.metrics import METRICS
from float64.normalization import NORMALIZATION
from float64.operations import OPERATIONS
from float64.pooling import POOLING
from float64.preprocessing import PREPROCESSING
from float64.recurrent import RECURRENT
from float64.regularizers import REGULARIZERS

GROUPS = {
    "activations": ACTIVATIONS,
    "losses": LOSSES,
    "metrics": METRICS,
    "core": CORE | PREPROCESSING,
    "convolutions": CONVOLUTIONS,
    "pooling": POOLING,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
    "normalization": NORMALIZATION,
    "merging": MERGING,
    "regularizers": REGULARIZERS,
    "operations": OPERATIONS,
}
