"""Convolutions in the one layout that XLA computes fast within a loop.

On a CPU, XLA brings convolutions into the layout of its fast kernels at the
top level of a program alone: within a loop, those that differentiation makes,
of transposed operands, take some ten times as long. So they are brought into
that layout before: rows, positions, channels.
"""

import functools

import jax
from jax.extend import core

_CONVOLUTION = "conv_general_dilated"


def canonical(fn):
    """`fn`, traced, its convolutions in the layout of XLA's fast kernels."""
    if jax.default_backend() != "cpu":
        return fn

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            # An eager run shows its values to those who look for a fault.
            return fn(*args)
        closed, shapes = jax.make_jaxpr(
            lambda *leaves: fn(*jax.tree.unflatten(structure, leaves)),
            return_shape=True,
        )(*leaves)
        jaxpr = _rewritten(closed.jaxpr)
        results = jax.core.eval_jaxpr(jaxpr, closed.consts, *leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _rewritten(jaxpr):
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr.replace(jaxpr=_rewritten(jaxpr.jaxpr))
    if not _convolves(jaxpr):
        return jaxpr
    equations = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == _CONVOLUTION:
            equations += _equations(equation)
        else:
            params = {k: _inner(v) for k, v in equation.params.items()}
            equations.append(equation.replace(params=params))
    return jaxpr.replace(eqns=equations)


def _convolves(jaxpr):
    return any(
        equation.primitive.name == _CONVOLUTION
        or any(map(_convolves, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation):
    """The bodies of an equation that is a loop, a branch or a call."""
    for value in equation.params.values():
        for entry in value if type(value) in (tuple, list) else [value]:
            if isinstance(entry, core.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, core.Jaxpr):
                yield entry


def _inner(value):
    """The value of an equation's parameter: loops and branches are such."""
    if type(value) in (tuple, list):
        return type(value)(map(_inner, value))
    is_jaxpr = isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    return _rewritten(value) if is_jaxpr else value


def _equations(convolution):
    """A convolution's equation as those of transposes and of another one."""
    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
        for v in convolution.invars
    ]
    convolve = functools.partial(_convolve, **convolution.params)
    inner = jax.make_jaxpr(convolve)(*shapes).jaxpr
    names = dict(zip(inner.invars, convolution.invars, strict=True))
    names |= dict(zip(inner.outvars, convolution.outvars, strict=True))

    def renamed(variables):
        return [
            v if isinstance(v, core.Literal) else names.get(v, v)
            for v in variables
        ]

    return [
        e.replace(invars=renamed(e.invars), outvars=renamed(e.outvars))
        for e in inner.eqns
    ]


def _convolve(inputs, kernel, *, dimension_numbers, **params):
    rows, channels, *positions = dimension_numbers.lhs_spec
    outputs, features, *offsets = dimension_numbers.rhs_spec
    last = len(positions) + 1
    rows_first = (0, last, *range(1, last))
    found = jax.lax.conv_general_dilated_p.bind(
        jax.lax.transpose(inputs, (rows, *positions, channels)),
        jax.lax.transpose(kernel, (*offsets, features, outputs)),
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            rows_first, (last, last - 1, *range(last - 1)), rows_first
        ),
        **params,
    )
    places = dict(zip(dimension_numbers.out_spec, rows_first, strict=True))
    return jax.lax.transpose(found, [places[i] for i in range(last + 1)])
