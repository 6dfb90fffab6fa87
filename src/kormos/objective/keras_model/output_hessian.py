"""The Hessian of a loss in a model's outputs, probed at a few points."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kormos import backend
from kormos.data.memory import leaves
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import leading_size
from kormos.objective.units import largest
from kormos.types import Array
from kormos.types import Tensor
from kormos.types import Vector

# The distances from the targets, as parts of their size, at which the curvature
# of a loss is probed. The first two points are always probed, and the others
# only as long as no curvature is found. Both are our choices: a robust loss
# only has curvature for residuals below its threshold.
_DISTANCES = (1e-1, 1e-3, 1e-5)
_FEWEST_POINTS = 2
# The part of the largest entry by which a Hessian may differ from a diagonal
# one. Our choice: about a thousand roundings of float32.
_DIAGONAL = 1e-4


class OutputHessian(NamedTuple):
    """Properties of the Hessian of a loss in the outputs, at some outputs.

    Attributes:
        is_curved: whether it is not zero.
        mixes_rows: whether it has entries between rows.
        is_diagonal: whether it has no entries between the outputs of a row.
    """

    is_curved: bool
    mixes_rows: bool
    is_diagonal: bool


def probe(
    product: Callable[..., Tensor],
    points: Iterable[Array],
    term_factors: Vector,
    chunk: Chunk,
) -> OutputHessian:
    """Probes the Hessian of the loss at several outputs of a chunk.

    Args:
        product: compiled function `(values, vector, term_factors, chunk)` that
            returns the Hessian of the loss in the outputs times a vector.
        points: the outputs.
        term_factors: the factors of the terms.
        chunk: the chunk.
    """
    found: list[OutputHessian] = []
    for values in points:
        found.append(_probe_at(product, values, term_factors, chunk))
        if len(found) >= _FEWEST_POINTS and any(
            hessian.is_curved for hessian in found
        ):
            break
    curved, mixed, diagonal = zip(*found, strict=True)
    return OutputHessian(any(curved), any(mixed), all(diagonal))


def points_to_probe(chunk: Chunk, width: int, dtype: str) -> Iterator[Array]:
    """Yields random outputs, and then some nearer and nearer to the targets.

    A robust loss has curvature only near the targets.

    Args:
        chunk: tensors `(x, y, weights)`.
        width: the number of outputs of a row.
        dtype: their dtype.
    """
    rng, rows = np.random.default_rng(0), leading_size(chunk)
    noise = rng.uniform(0.1, 0.9, size=(rows, width))
    yield noise.astype(dtype)
    targets = [backend.to_numpy(a) for a in leaves(chunk[1])]
    if sum(a.size for a in targets) == noise.size:
        flat = [a.reshape(rows, -1) for a in targets]
        size = largest(flat) or 1.0
        for distance in _DISTANCES:
            point = np.concatenate(flat, axis=1) + distance * size * noise
            yield point.astype(dtype)


def _probe_at(
    product: Callable[..., Tensor],
    values: Array,
    term_factors: Vector,
    chunk: Chunk,
) -> OutputHessian:
    """Probes the Hessian at one point, by three Hessian products.

    Args:
        product: see `probe`.
        values: the outputs.
        term_factors: the factors of the terms.
        chunk: the chunk.
    """

    def product_with(vector: Array) -> Array:
        result = backend.to_numpy(product(values, vector, term_factors, chunk))
        # Products that are not finite give no information.
        return np.nan_to_num(result, posinf=0.0, neginf=0.0)

    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=values.shape)
    signs = signs.astype(values.dtype)
    sums, signed = product_with(np.ones_like(values)), product_with(signs)
    sizes = np.max(np.abs(sums) + np.abs(signed), axis=1)
    row = np.argmax(sizes)
    ones_in_row = np.zeros_like(values)
    ones_in_row[row] = 1
    other_rows = np.delete(product_with(ones_in_row), row, axis=0)
    size = sizes[row]
    off = np.max(np.abs(signed - sums * signs))
    return OutputHessian(
        is_curved=bool(size > 0),
        mixes_rows=bool(other_rows.any()),
        is_diagonal=bool(off <= _DIAGONAL * size),
    )
