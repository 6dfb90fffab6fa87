"""CUTEst problems without constraints, or with bounds, from sif2jax.

On JAX, kormos differentiates and compiles the problems itself. On PyTorch,
where it runs eagerly, JAX evaluates a problem, compiled once for all methods,
and passes the gradients and Hessian products on to PyTorch's automatic
differentiation. `lm` needs derivatives of residuals. It has them only on JAX,
for the problems that sif2jax also has as nonlinear equations.
"""

import torch  # After JAX, it may crash.

# isort: split
import csv
import functools
import pathlib

import jax
import jax.numpy as jnp
import keras
import numpy as np
import sif2jax
from claim_cases import FunctionCase

BACKEND = keras.backend.backend()
DATA = pathlib.Path(__file__).parent / "data"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", True)


def cases(kind="unconstrained"):
    """The problems of a table, `"unconstrained"` or `"bounded"`, in order."""
    lines = (DATA / f"cutest_{kind}.tsv").read_text().splitlines()
    table = csv.DictReader(
        (line for line in lines if not line.startswith("#")), delimiter="\t"
    )
    return [Case(**row) for row in table]


class Case(FunctionCase):
    """A problem of sif2jax.

    Args:
        problem, size, best, equations, others: a line of the table.
    """

    def __init__(self, problem, size, best, equations, **others):
        del others
        self._problem = _made(f"{problem} {size}")
        self._equations = _made(equations) if equations else None
        super().__init__(problem, None, self._problem.y0, float(best))
        if getattr(self._problem, "bounds", None) is not None:
            lower, upper = map(np.array, self._problem.bounds)
            bounds = list(zip(lower.tolist(), upper.tolist(), strict=True))
            # Some problems without bounds have infinite ones.
            if np.isfinite(bounds).any():
                self.limits = {"bounds": bounds, "max_evals": 5000}
        self.has_residuals = bool(equations) and BACKEND == "jax"

    def _objective(self, theta):
        return self._problem.objective(theta, self._problem.args)

    def _residuals(self, theta):
        blocks = jax.tree.leaves(self._equations.constraint(theta)[0])
        return jnp.concatenate([jnp.ravel(block) for block in blocks])

    @functools.cached_property
    def _value_and_grad(self):
        return jax.jit(jax.value_and_grad(self._objective))

    @functools.cached_property
    def _product(self):
        gradient = jax.grad(self._objective)
        return jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])

    def value_and_grad(self, theta):
        loss, grad = self._value_and_grad(theta)
        return float(loss), np.array(grad)

    def product(self, theta, vector):
        return np.array(self._product(theta, vector))

    def value(self, theta):
        return self.value_and_grad(theta)[0]

    def _loss(self, theta):
        if BACKEND == "jax":
            return self._objective(theta)
        return _Loss.apply(theta, self)


def _made(text):
    """A problem of sif2jax, from its name and some `field=value`."""
    name, *sizes = text.split()
    pairs = [size.split("=") for size in sizes]
    fields = {field: int(value) for field, value in pairs}
    return getattr(sif2jax.cutest, name)(**fields)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, theta, case):
        loss, grad = case.value_and_grad(theta.detach().numpy())
        ctx.save_for_backward(theta)
        ctx.case, ctx.grad = case, grad
        return torch.tensor(loss, dtype=torch.float64)

    @staticmethod
    def backward(ctx, factor):
        (theta,) = ctx.saved_tensors
        return factor * _Gradient.apply(theta, ctx.case, ctx.grad), None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, theta, case, grad):
        ctx.save_for_backward(theta)
        ctx.case = case
        return torch.from_numpy(grad)

    @staticmethod
    def backward(ctx, vector):
        (theta,) = ctx.saved_tensors
        product = ctx.case.product(theta.detach().numpy(), vector.numpy())
        return torch.from_numpy(product), None, None
