"""Vectorized derivatives of many values with TensorFlow."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import tensorflow as tf

from kormos.backend.tensorflow import ZERO
from kormos.backend.tensorflow import jvp
from kormos.backend.tensorflow import on_cpu
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

_Result = TypeVar("_Result")

# The most outputs of a row that are differentiated one by one. A larger value
# takes longer to trace. A smaller one leaves more to TensorFlow's vectorized
# `jacobian`, which cannot handle the loops of recurrent layers. This value is
# our choice.
_MOST_UNROLLED = 8

# The errors of TensorFlow for loops that it cannot vectorize, for example in
# recurrent layers.
_NOT_VECTORIZED = (TypeError, ValueError, NotImplementedError)


def jacobian(fn: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    def wrapped(parts: list[Tensor], *args: Structure) -> list[Tensor]:
        return _Values(lambda inner: fn(inner, *args), parts).jacobian()

    return _in_a_graph(wrapped)


def _in_a_graph(fn: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function that traces `fn` if it is called eagerly."""

    def wrapped(*args: Any) -> Any:
        if tf.executing_eagerly():
            return tf.function(fn, autograph=False)(*args)
        return fn(*args)

    return wrapped


class _Values:
    """Values of a function in a graph, and derivatives in reverse mode.

    A tape would compute wrong derivatives of a `jvp` of a `jvp`.

    Args:
        fn: function of the parts that returns a vector.
        parts: the tensors to differentiate by.

    Attributes:
        values: the values.
    """

    def __init__(
        self, fn: Callable[[list[Tensor]], Tensor], parts: list[Tensor]
    ):
        self._inner = [tf.identity(part) for part in parts]
        self.values = fn(self._inner)

    def one_by_one(self) -> list[Tensor]:
        """The derivatives, an entry of the values at a time."""
        entries = tf.unstack(self.values)
        columns = zip(*map(self._gradients, entries), strict=True)
        return [tf.stack(column) for column in columns]

    def jacobian(self) -> list[Tensor]:
        """The derivatives, vectorized unless the results would be wrong."""
        try:
            with _quiet():
                return _sound(self.at_once)
        except (_BrokenProduct, *_NOT_VECTORIZED):
            return tf.map_fn(
                lambda unit: self._gradients(self.values, unit),
                self._units(),
                fn_output_signature=[part.dtype for part in self._inner],
            )

    def at_once(self) -> list[Tensor]:
        """The derivatives of all entries together."""
        return tf.vectorized_map(
            lambda unit: self._gradients(self.values, unit),
            self._units(),
            fallback_to_while_loop=False,
        )

    def _units(self) -> Tensor:
        count = self.values.shape[0] or tf.size(self.values)
        return tf.eye(count, dtype=self.values.dtype)

    def _gradients(
        self, values: Tensor, cotangents: Tensor | None = None
    ) -> list[Tensor]:
        found = tf.gradients(
            values, self._inner, cotangents, unconnected_gradients=ZERO
        )
        # The gradients of gathers (in embeddings) are `IndexedSlices`.
        return [tf.convert_to_tensor(g) for g in found]


def row_jacobian(
    fn: Callable[..., Tensor], forward: bool
) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    def one(
        parts: list[Tensor], row: Structure, is_alone: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        return _jacobian_of_row(fn, parts, row, is_alone)

    def wrapped(
        parts: list[Tensor], rows: Structure
    ) -> tuple[Tensor, list[Tensor]]:
        if forward:
            try:
                return _sound(lambda: _forward_jacobian(fn, parts, rows))
            except _BrokenProduct:
                pass
        return _map_rows(one, parts, rows)

    return _in_a_graph(wrapped)


def _jacobian_of_row(
    fn: Callable[..., Tensor],
    parts: list[Tensor],
    row: Structure,
    is_alone: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The values of `fn(parts, row)`, and their derivatives in reverse mode.

    Args:
        fn: function that returns a vector.
        parts: the tensors to differentiate by.
        row: a row.
        is_alone: whether the row is computed separately, rather than vectorized
            with all others.
    """
    found = _Values(lambda inner: fn(inner, row), parts)
    if found.values.shape[0] <= _MOST_UNROLLED:
        return found.values, found.one_by_one()
    return found.values, found.jacobian() if is_alone else found.at_once()


def _forward_jacobian(
    fn: Callable[..., Tensor], parts: list[Tensor], rows: Structure
) -> tuple[Tensor, list[Tensor]]:
    """The column of each number in `parts`, for all rows at once."""
    values = tf.vectorized_map(lambda row: fn(parts, row), rows)
    jacobian = []
    for i, part in enumerate(parts):
        size = tf.size(part)

        def column(
            index: Scalar, i: int = i, part: Tensor = part, size: Scalar = size
        ) -> Tensor:
            unit = tf.reshape(
                tf.one_hot(index, size, dtype=part.dtype), part.shape
            )
            tangents = [tf.zeros_like(p) for p in parts]
            tangents[i] = unit
            product = jvp(
                lambda p: tf.vectorized_map(lambda row: fn(p, row), rows)
            )
            return product(parts, tangents)[1]

        columns = tf.map_fn(
            column, tf.range(size), fn_output_signature=values.dtype
        )
        columns = tf.transpose(columns, (1, 2, 0))
        jacobian.append(tf.reshape(columns, (*values.shape, *part.shape)))
    return values, jacobian


def map_rows(
    fn: Callable[[Structure], Structure], rows: Structure
) -> Structure:
    def one(_: list[Tensor], row: Structure, is_alone: bool = False) -> Any:
        return fn(row)

    return _in_a_graph(lambda r: _map_rows(one, [], r))(rows)


def _map_rows(
    fn: Callable[..., Any], parts: list[Tensor], rows: Structure
) -> Any:
    """`fn(parts, row)` for every row, stacked.

    Args:
        fn: function `(parts, row, is_alone=False)`, where `is_alone` says that
            rows are computed one by one, because they cannot be vectorized.
        parts: tensors.
        rows: structure of tensors with a row for each call.
    """

    def together() -> Any:
        return tf.vectorized_map(
            lambda row: fn(parts, row), rows, fallback_to_while_loop=False
        )

    def with_own_parts() -> Any:
        # Each row has a copy of the parts, so that the vectorized products
        # have rows on both sides and no operand is broadcast.
        count = tf.nest.flatten(rows)[0].shape[0]
        own = [tf.broadcast_to(p, (count, *p.shape)) for p in parts]
        return tf.vectorized_map(
            lambda pair: fn(*pair), (own, rows), fallback_to_while_loop=False
        )

    try:
        for mapped in (together, with_own_parts):
            with _quiet(), contextlib.suppress(_BrokenProduct):
                return _sound(mapped)
    except _NOT_VECTORIZED:
        pass
    first = fn(parts, tf.nest.map_structure(lambda r: r[0], rows), True)
    return tf.map_fn(
        lambda row: fn(parts, row, True),
        rows,
        fn_output_signature=tf.nest.map_structure(
            tf.type_spec_from_value, first
        ),
    )


class _BrokenProduct(Exception):
    """A product that makes TensorFlow crash or return wrong values."""


def _sound(build: Callable[[], _Result]) -> _Result:
    """Returns `build()`, which adds operations to the present graph.

    Raises:
        _BrokenProduct: if one of them is a product that TensorFlow gets wrong.
    """
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    values = build()
    if on_cpu() and any(map(_is_broken, graph.get_operations()[before:])):
        raise _BrokenProduct
    return values


def _is_broken(operation: tf.Operation) -> bool:
    """Whether oneDNN, in TensorFlow 2.21, would write past its own memory.

    It does so when it broadcasts one matrix to many, in four dimensions of
    which the second is one. The vectorized product of a row has this form.
    """
    if not operation.type.startswith("BatchMatMul"):
        return False
    a, b = (tensor.shape for tensor in operation.inputs)
    if operation.inputs[0].dtype == tf.float64 or operation.get_attr("adj_x"):
        return False
    if a.rank is None or b.rank is None:
        return True
    broadcasts = a.rank == 4 and all(n in (1, None) for n in b[:-2])
    return broadcasts and a[0] != 1 and a[1] in (1, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A scope in which TensorFlow does not log graphs before it raises."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)
