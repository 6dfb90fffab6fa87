"""The state of a native method at the end of a run, for a later run."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import MutableMapping
from typing import Any
from typing import TypeVar
from typing import cast

import numpy as np

from kormos import backend
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Vector
from kormos.warn import warn

# The names of a state's arrays in a file.
_PREFIX = "solver_"
_KEY = _PREFIX + "key"
_POSITION = _PREFIX + "position"
# The prefix of the arrays that a quasi-Newton method has in `State.store`.
_STORE = "store."
# Entries that every run starts afresh, so they are not kept.
_LEFT_OUT = ("rows", "status", "evaluations", "latest")


# A method's state, a named tuple.
_State = TypeVar("_State", bound=tuple[Any, ...])


class SolverState:
    """A solver's state, from a run or from a file.

    Args:
        key: the name of the method.
        state: the method's state, a named tuple of tensors and such tuples,
            or a dict of its arrays by name.
        position: the point in the variables, before these rounded it: float64
            array of shape `(size,)`, or `None`.
    """

    def __init__(
        self, key: str, state: Structure, position: Vector | None = None
    ):
        self.key = key
        self.position = position
        self._state = state
        self._is_stale = self.is_lost = False

    def lose(self) -> None:
        """Notes that the arrays are about to be overwritten."""
        self.is_lost = True

    def forget_loss(self) -> None:
        """Notes that the loss has changed."""
        self._is_stale = True

    @property
    def is_sound(self) -> bool:
        """Whether a run can continue from here."""
        return _is_sound(self.arrays(), self.left)

    def of_method(self, key: str, arrays: dict[str, Array]) -> "SolverState":
        """The state of another method at the same point.

        Args:
            key: the other method.
            arrays: its arrays.
        """
        return self._copied(key, arrays, self.position)

    def _copied(
        self, key: str, arrays: dict[str, Array], position: Vector | None
    ) -> "SolverState":
        other = SolverState(key, arrays, position)
        other._is_stale = self._is_stale
        return other

    def at(self, position: Vector) -> "SolverState":
        """The same state, with another point in the variables."""
        return self._copied(self.key, self.arrays(), position)

    def note(self, **arrays: Scalar) -> None:
        """Keeps additional arrays with the state."""
        self.arrays().update(arrays)

    def arrays(self) -> dict[str, Array]:
        """The state's arrays by name, in NumPy."""
        if not isinstance(self._state, dict):
            with backend.float64():
                arrays = {
                    name: np.array(backend.to_numpy(leaf))
                    for name, leaf in _leaves(self._state)
                    if name not in _LEFT_OUT
                }
            for name in arrays:
                if name.startswith(_STORE):
                    # The padding with zeros only serves to spread it over
                    # devices.
                    size = arrays["theta"].size
                    arrays[name] = arrays[name][..., :size]
            self._state = arrays
        return self._state

    def restored(
        self, key: str, template: _State, theta: Vector, storage_eps: float
    ) -> _State | None:
        """The state from which a run continues.

        Args:
            key: the method that is to continue.
            template: a state of that method before the first evaluation.
            theta: the variables as they are now, `(size,)`.
            storage_eps: the rounding of the variables.

        Returns:
            The state, or `None` if a run cannot continue from it.

        Raises:
            ValueError: if the state is of another method or of other shapes.
        """
        arrays = self.arrays()
        size = arrays["theta"].size if "theta" in arrays else 0
        if key != self.key or size != theta.size:
            raise ValueError(
                "The optimizer's state does not fit: it belongs to "
                f"'{self.key}' with {size:,} parameters. Fit with "
                "`resume=False`, or with the optimizer and the model that it "
                f"was saved from. Received: '{key}' with {theta.size:,} "
                "parameters"
            )
        if not self.is_sound:
            warn(
                "The optimizer's state has NaN or infinite values from an "
                "earlier fit: the fit continues from the weights only.",
            )
            return None
        state: Any = _filled(template, arrays)
        if not is_rounding(self.left, theta, storage_eps):
            state = state._replace(theta=theta, loss=np.float64(np.nan))
        if self._is_stale:
            state = state._replace(loss=np.float64(np.nan))
        return cast(_State, state)

    def point(self, theta: Vector, storage_eps: float) -> Vector:
        """The solver's own point, more precise than the variables.

        Args:
            theta: the variables as they are now.
            storage_eps: the rounding of the variables.

        Returns:
            The point, or `theta` if the variables are at another one.
        """
        own = self.arrays().get("theta", theta)
        is_same = own.shape == theta.shape and is_rounding(
            self.left, theta, storage_eps
        )
        return own if is_same else theta

    @property
    def left(self) -> Vector:
        """The point in the variables, before these rounded it."""
        if self.position is None:
            return self.arrays()["theta"]
        return self.position

    def save(self, store: MutableMapping[str, Any]) -> None:
        """Writes the state into a Keras store."""
        store[_KEY] = np.frombuffer(self.key.encode(), dtype="uint8")
        if self.position is not None:
            store[_POSITION] = self.position
        for name, array in self.arrays().items():
            store[_PREFIX + name] = array


def load(
    store: Mapping[str, Any],
) -> tuple[SolverState | None, dict[str, Array]]:
    """The `SolverState` in a Keras store, or `None`, and the store's rest."""
    entries = {name: np.array(store[name]) for name in store.keys()}
    mine = {
        name: entries.pop(name)
        for name in list(entries)
        if name.startswith(_PREFIX)
    }
    if _KEY not in mine:
        return None, entries
    key = mine.pop(_KEY).tobytes().decode()
    position = mine.pop(_POSITION, None)
    arrays = {name.removeprefix(_PREFIX): a for name, a in mine.items()}
    return SolverState(key, arrays, position), entries


def _named(state: tuple[Any, ...]) -> Iterator[tuple[str | int, Any]]:
    return zip(getattr(state, "_fields", range(len(state))), state, strict=True)


def _leaves(
    state: tuple[Any, ...], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in _named(state):
        if isinstance(value, tuple):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _filled(
    template: tuple[Any, ...], arrays: Mapping[str, Array], prefix: str = ""
) -> tuple[Any, ...]:
    """The template with the arrays of these names."""
    values = []
    for name, value in _named(template):
        path = f"{prefix}{name}"
        if isinstance(value, tuple):
            value = _filled(value, arrays, f"{path}.")
        elif name not in _LEFT_OUT:
            found = arrays.get(path)
            if found is not None:
                found = backend.laid_out(found.astype(value.dtype), value)
            if found is None or found.shape != value.shape:
                raise ValueError(
                    "The optimizer's state does not fit: its file is damaged. "
                    f"Fit with `resume=False`. Received: '{path}' of shape "
                    f"{None if found is None else found.shape}, not "
                    f"{value.shape}"
                )
            # A scalar stays a scalar.
            value = found[()] if isinstance(found, np.ndarray) else found
        values.append(value)
    if hasattr(template, "_fields"):
        return type(template)(*values)
    return tuple(values)


def _is_sound(arrays: Mapping[str, Array], position: Vector) -> bool:
    """Whether a run can continue from there.

    A line search may contain infinity, but nothing may contain NaN.
    """
    ends = [
        arrays[name] for name in ("theta", "loss", "grad") if name in arrays
    ]
    return all(np.isfinite(a).all() for a in [*ends, position]) and not any(
        np.isnan(a).any() for a in arrays.values()
    )


def is_rounding(exact: Vector, rounded: Vector, storage_eps: float) -> bool:
    """Whether a point differs from another one only by rounding."""
    return bool(np.all(np.abs(exact - rounded) <= storage_eps * np.abs(exact)))
