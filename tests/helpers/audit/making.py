"""Functions that make cases of layers and functions, and call layers."""

from keras import ops

from audit.inputs import MASK
from audit.inputs import X
from audit.measuring import Case


def of_x(fn, formula, x=X, **kwargs):
    return Case(lambda: lambda x: fn(x, **kwargs), formula, (x,))


def layer(kind, formula, *inputs, call=None, keep=False, **kwargs):
    call = call or Case._field_defaults["call"]
    return Case(lambda: kind(**kwargs), formula, inputs, call, keep)


def listed(made, *inputs):
    return made(list(inputs))


def masked(made, *inputs):
    return made(*inputs, mask=ops.convert_to_tensor(MASK))
