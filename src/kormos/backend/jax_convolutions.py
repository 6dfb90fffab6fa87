"""Convolutions in the layout that XLA computes fast within a loop.

On a CPU, XLA has fast kernels for convolutions of one layout: rows, positions,
channels. It brings other layouts into this one only at the top level of a
program. Within a loop, the convolutions of a gradient, whose operands are
transposed, take about ten times as long. So this module changes their layout
before XLA compiles them.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import jax
from jax.extend import core

from kormos.types import Structure
from kormos.types import Tensor

_Result = TypeVar("_Result")

_CONVOLUTION = "conv_general_dilated"


def canonical(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    """`fn`, with its convolutions in the layout of XLA's fast kernels."""
    if jax.default_backend() != "cpu":
        return fn

    def call(*args: Structure) -> _Result:
        leaves, structure = jax.tree.flatten(args)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            # For debugging, a user may run eagerly and needs the values, which
            # a traced run does not have.
            return fn(*args)
        closed, shapes = jax.make_jaxpr(
            lambda *leaves: fn(*jax.tree.unflatten(structure, leaves)),
            return_shape=True,
        )(*leaves)
        jaxpr = _rewritten(closed.jaxpr)
        results = jax.core.eval_jaxpr(jaxpr, closed.consts, *leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return call


def _rewritten(
    jaxpr: core.Jaxpr | core.ClosedJaxpr,
) -> core.Jaxpr | core.ClosedJaxpr:
    """The same program, with its convolutions in the fast layout."""
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


def _convolves(jaxpr: core.Jaxpr) -> bool:
    """Whether there is a convolution in a program."""
    return any(
        equation.primitive.name == _CONVOLUTION
        or any(map(_convolves, inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The bodies of an equation that is a loop, a branch or a call."""
    for value in equation.params.values():
        for entry in value if type(value) in (tuple, list) else [value]:
            if isinstance(entry, core.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, core.Jaxpr):
                yield entry


def _inner(value: Any) -> Any:
    """The value of a parameter of an equation, with its programs rewritten.

    Such values are the bodies of loops and branches.
    """
    if type(value) in (tuple, list):
        return type(value)(map(_inner, value))
    is_jaxpr = isinstance(value, core.Jaxpr | core.ClosedJaxpr)
    return _rewritten(value) if is_jaxpr else value


def _equations(convolution: core.JaxprEqn) -> list[core.JaxprEqn]:
    """The equations of transposes and a convolution in the fast layout."""
    shapes = [
        jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
        for v in convolution.invars
    ]
    convolve = functools.partial(_convolve, **convolution.params)
    inner = jax.make_jaxpr(convolve)(*shapes).jaxpr
    names = dict(zip(inner.invars, convolution.invars, strict=True))
    names |= dict(zip(inner.outvars, convolution.outvars, strict=True))

    def renamed(variables: Sequence[Any]) -> list[Any]:
        return [
            v if isinstance(v, core.Literal) else names.get(v, v)
            for v in variables
        ]

    return [
        e.replace(invars=renamed(e.invars), outvars=renamed(e.outvars))
        for e in inner.eqns
    ]


def _convolve(
    inputs: Tensor, kernel: Tensor, *, dimension_numbers: Any, **params: Any
) -> Tensor:
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
