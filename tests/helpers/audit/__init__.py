"""Functions of Keras and the same in NumPy: cases of a float64 audit.

A case makes a layer or function of Keras, and has a formula in NumPy of the
same inputs and weights. No formula calls Keras, and all of them take complex
numbers: their gradients are complex steps, `f(x + ih).imag / h`, which are
exact except for rounding. `>`, `np.where`, `np.maximum`, `np.clip` and the like
use the real parts; `np.abs` and `np.linalg.norm` would not. `python
tests/helpers/audit` prints the deviations on the backend in use.
"""

from audit.activations import ACTIVATIONS
from audit.attention import ATTENTION
from audit.convolutions import CONVOLUTIONS
from audit.core import CORE
from audit.losses import LOSSES
from audit.merging import MERGING
from audit.metrics import METRICS
from audit.normalization import NORMALIZATION
from audit.operations import OPERATIONS
from audit.pooling import POOLING
from audit.preprocessing import PREPROCESSING
from audit.recurrent import RECURRENT
from audit.regularizers import REGULARIZERS

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
