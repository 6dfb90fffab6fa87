"""Whether code of the user has assigned other values to variables.

Callbacks may do so after every iteration. What a backend knows without a look
at the numbers is asked first, because a model may have very many of them.
"""

from collections.abc import Sequence

import keras

from kormos import backend
from kormos.data.variables import is_seed
from kormos.data.variables import values_of
from kormos.types import Tensor


class Watched:
    """Variables, and what they held at some time.

    Args:
        variables: the variables.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = variables
        self._held: list[Tensor | None] = []
        # Copies of those that a backend cannot hold.
        self._copies: dict[int, Tensor] = {}

    def note(self) -> None:
        """Notes what the variables hold now."""
        values = values_of(self._variables)
        self._held = list(map(backend.held, values))
        for i, held in enumerate(self._held):
            if held is None:
                self._copies[i] = backend.copied(values[i], self._copies.get(i))

    def may_have_changed(self) -> bool:
        """Whether they may hold other values than at the latest `note`."""
        values = values_of(self._variables)
        return not all(
            backend.is_held(now, held)
            or backend.equal(now, self._copies[i] if held is None else held)
            for i, (now, held) in enumerate(
                zip(values, self._held, strict=True)
            )
        )


class Copies:
    """Whether variables differ from copies of them."""

    def __init__(self) -> None:
        # What a variable held when a copy was the same, and the copy.
        self._known: dict[int, tuple[Tensor | None, Tensor]] = {}

    def differ(
        self, variables: Sequence[keras.Variable], copies: Sequence[Tensor]
    ) -> bool:
        """Whether a variable differs from its copy.

        Args:
            variables: the variables.
            copies: a tensor for each of them.
        """
        return not all(
            # Every call of a layer with random draws changes its seed state.
            is_seed(variable) or self._is_same(variable, copy)
            for variable, copy in zip(variables, copies, strict=True)
        )

    def _is_same(self, variable: keras.Variable, copy: Tensor) -> bool:
        [now] = values_of([variable])
        held, known = self._known.get(id(variable), (None, None))
        if known is copy and backend.is_held(now, held):
            return True
        if not backend.equal(now, copy):
            return False
        self._known[id(variable)] = backend.held(now), copy
        return True
