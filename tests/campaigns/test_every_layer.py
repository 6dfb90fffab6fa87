"""Every layer of Keras in a model: fits are right, or refused by name.

The classes are those of the installed Keras. A class whose arguments have
familiar names is tried on inputs of each rank. Others need a case, here or in
`audit`.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from audit import GROUPS
from audit.inputs import FILM
from audit.inputs import SEQUENCE
from audit.inputs import TOKENS
from audit.inputs import VOLUME
from audit.inputs import X
from audit.making import layer
from audit.making import listed
from audit.measuring import Case
from audit.measuring import undrawn
from conftest import BACKEND
from sweeping import ROWS
from sweeping import classes
from sweeping import draw_weights
from sweeping import fit
from sweeping import needs
from sweeping import refuses

# Of `Flatten`, at the end of every model here.
pytestmark = pytest.mark.filterwarnings("ignore:.*destroy the mask")

RGB = np.random.RandomState(1).uniform(0, 4, (ROWS, 4, 4, 3))
STRINGS = np.array([["a"], ["b"], ["a"], ["c"], ["d"], ["b"]])

LEFT_OUT = {
    "Layer": "abstract",
    "Wrapper": "abstract",
    "InputLayer": "in every model here",
    "TFSMLayer": "of a saved model",
    "FlaxLayer": "of a module of another package",
    "JaxLayer": "of a function of another package",
    "TorchModuleWrapper": "of a module of another package",
    "GRUCell": "called by RNN alone",
    "LSTMCell": "called by RNN alone",
    "SimpleRNNCell": "called by RNN alone",
    "StackedRNNCells": "called by RNN alone",
    "CutMix": "changes targets too: of data, not of a model",
    "MixUp": "changes targets too: of data, not of a model",
    "MaxNumBoundingBoxes": "takes boxes: of data, not of a model",
}


# Layers that Keras itself cannot evaluate on a backend.
NO_MODEL = {
    "jax": [
        "HashedCrossing",
        "Hashing",
        "IntegerLookup",
        "StringLookup",
        "TextVectorization",
    ],
    "torch": ["StringLookup", "TextVectorization"],
}


def plain(kind, *inputs, **kwargs):
    return layer(kind, None, *inputs, **kwargs)


CASES = {
    name.removesuffix(" at inference"): case
    for group in GROUPS.values()
    for name, case in group.items()
} | {
    "Activation": plain(layers.Activation, X, activation="tanh"),
    "ActivityRegularization": plain(layers.ActivityRegularization, X, l2=0.5),
    "CategoryEncoding": plain(layers.CategoryEncoding, TOKENS, num_tokens=5),
    "ConvLSTM3D": plain(
        layers.ConvLSTM3D,
        np.stack([VOLUME, VOLUME], 1),
        filters=1,
        kernel_size=2,
        padding="same",
    ),
    "Discretization": plain(
        layers.Discretization, X, bin_boundaries=[-1.0, 0.0, 1.0]
    ),
    "EinsumDense": plain(
        layers.EinsumDense,
        SEQUENCE,
        equation="abc,cde->abde",
        output_shape=(5, 2, 3),
        bias_axes="de",
    ),
    "HashedCrossing": plain(
        layers.HashedCrossing,
        TOKENS[:, 0],
        TOKENS[:, 1],
        num_bins=5,
        call=listed,
    ),
    "Hashing": plain(layers.Hashing, TOKENS, num_bins=5),
    "IntegerLookup": plain(layers.IntegerLookup, TOKENS, vocabulary=[1, 2, 3]),
    "MelSpectrogram": plain(
        layers.MelSpectrogram,
        np.random.RandomState(2).normal(size=(ROWS, 64)),
        fft_length=16,
        sequence_stride=8,
        num_mel_bins=4,
    ),
    "Pipeline": Case(
        lambda: layers.Pipeline([layers.Dense(2), layers.Dense(3)]), None, (X,)
    ),
    "RNN": Case(
        lambda: layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
        None,
        (SEQUENCE,),
    ),
    "SpectralNormalization": Case(
        lambda: layers.SpectralNormalization(layers.Dense(3)), None, (X,)
    ),
    "StringLookup": plain(
        layers.StringLookup, STRINGS, vocabulary=["a", "b", "c"]
    ),
    "TextVectorization": plain(
        layers.TextVectorization,
        STRINGS,
        vocabulary=["a", "b", "c"],
        output_sequence_length=2,
    ),
}

# Arguments for classes without a case, by their names.
ARGUMENTS = {
    "factor": 1,
    "height": 4,
    "width": 4,
    "height_factor": 0.2,
    "width_factor": 0.2,
    "units": 2,
    "filters": 2,
    "kernel_size": 2,
    "rate": 0.3,
}

# Gradients of what comes before them are zero.
FLAT = {
    "ContrastLimitedAdaptiveHistogramEqualization",
    "Discretization",
    "Equalization",
}

# XLA takes more than a minute to compile these together with other layers.
APART = {"AugMix", "RNN", "SimpleRNN"}

# Softmax does not see it.
WITHOUT_EFFECT = "key/bias"


def case_of(name):
    """The case of a class, or one made from its arguments' names by trial."""
    if name in CASES:
        return CASES[name]
    kind = getattr(layers, name)
    missing = set(needs(kind)) - set(ARGUMENTS)
    if missing:
        pytest.fail(f"Give {name} a case: no values are known of {missing}")
    is_of_images = issubclass(kind, layers.RandomFlip.__base__)
    kwargs = {argument: ARGUMENTS[argument] for argument in needs(kind)}
    errors = []
    for x in [RGB] if is_of_images else [X, SEQUENCE, RGB, VOLUME, FILM]:
        try:
            kind(**kwargs)(keras.KerasTensor(x.shape))
        except Exception as error:
            errors.append(f"{x.shape}: {error}")
        else:
            return plain(kind, x, **kwargs)
    pytest.fail(f"Give {name} a case: it takes none of\n" + "\n".join(errors))


class Branch:
    """A layer between weights: its inputs, and an output of one column."""

    def __init__(self, name):
        case = case_of(name)
        self.name, self.made = name, case.make()
        self.arrays = [_rows(a) for a in case.inputs]
        self.inputs, fronts = [], []
        for array in self.arrays:
            kind = keras.backend.standardize_dtype(array.dtype)
            x = keras.Input(array.shape[1:], dtype=kind)
            self.inputs.append(x)
            if kind == keras.config.floatx() and name not in FLAT:
                front = layers.Dense(x.shape[-1], use_bias=False)
                x = front(x)
            fronts.append(x)
        outputs = keras.tree.flatten(case.call(self.made, *fronts))
        floatx = keras.config.floatx()
        flat = [layers.Flatten(dtype=floatx)(o) for o in outputs]
        self.output = layers.Dense(1)(
            flat[0] if len(flat) == 1 else layers.Concatenate()(flat)
        )


def _rows(array):
    """An array, with the common number of rows."""
    array = np.resize(array, (ROWS, *array.shape[1:]))
    if array.dtype.kind == "U":
        return ops.convert_to_tensor(array, "string")
    floatx = keras.config.floatx()
    return array.astype(floatx if array.dtype.kind == "f" else "int32")


def sum_of(names):
    """A model of the sum of all layers' outputs, and its branches."""
    with undrawn():
        branches = [Branch(name) for name in names]
        inputs = [x for branch in branches for x in branch.inputs]
        outputs = [branch.output for branch in branches]
        output = layers.Add()(outputs) if len(names) > 1 else outputs[0]
        return keras.Model(inputs, output), branches


def fit_all(names, method):
    """A fit of the sum of all layers, each of which learns."""
    model, branches = sum_of(names)
    draw_weights(model)
    model.compile(loss="mse")
    x = [a for branch in branches for a in branch.arrays]
    y = np.random.RandomState(0).normal(size=(ROWS, 1)).astype("float32")
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    fit(model, x, y, method)
    still = [
        v.path
        for v, old in zip(model.trainable_variables, before, strict=True)
        if np.array_equal(ops.convert_to_numpy(v), old)
        and not v.path.endswith(WITHOUT_EFFECT)
    ]
    assert not still, f"{still} do not learn"


def fits_or_refuses(name, method):
    """Whether there was a fit."""
    try:
        fit_all([name], method)
    except Exception as error:
        if refuses(error, name):
            return False
        error.add_note(f"Of {name}, by `{method}`")
        raise
    return True


FOUND = classes(layers, layers.Layer)
NAMES = [
    name
    for name in FOUND
    if name not in LEFT_OUT and name not in NO_MODEL.get(BACKEND, ())
]


def together():
    """Groups of a dozen layers, because each group compiles one solver."""
    others = [name for name in NAMES if name not in APART]
    dozens = [others[i : i + 12] for i in range(0, len(others), 12)]
    groups = [*dozens, *([name] for name in NAMES if name in APART)]
    return [(names, method) for method in ["lbfgs", "lm"] for names in groups]


@pytest.mark.parametrize("names, method", together())
def test_layers(names, method):
    try:
        fit_all(names, method)
    except Exception:
        # One that is refused by name, or fails alone, too?
        if all([fits_or_refuses(name, method) for name in names]):
            raise


@pytest.mark.own_cases
@pytest.mark.parametrize("name", NO_MODEL.get(BACKEND, ()))
def test_what_keras_cannot_evaluate_either(name):
    with pytest.raises(Exception, match="string|build the model|dtype"):
        fit_all([name], "lbfgs")


def test_tables_name_layers():
    assert {*LEFT_OUT, *FLAT, *APART} <= set(FOUND)
