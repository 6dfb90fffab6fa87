"""The base class of all optimizers of kormos.

An optimizer works on a `Problem`, which is a set of functions of one flat
vector. It never sees a model, data or a callback. It passes every accepted
iterate to `report`, which answers whether to stop.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import NoReturn
from typing import Self

import keras
import numpy as np

from kormos.optimizers import predecessor
from kormos.optimizers.arrays import are_like
from kormos.optimizers.arrays import described
from kormos.optimizers.arrays import write
from kormos.optimizers.configs import by_path
from kormos.optimizers.configs import loaded
from kormos.optimizers.configs import saveable
from kormos.optimizers.names import check_names
from kormos.optimizers.stage import StageProgress
from kormos.solvers import solver_state

if TYPE_CHECKING:
    from kormos.optimizers.stage import Stage
    from kormos.solvers.solver_state import SolverState

DEFAULT_EPOCHS = 20
# The name of a chain's progress in a file.
_PROGRESS = "stage_progress"
# Attributes in which Keras does not look for variables.
_UNTRACKED = (
    "bounds",
    "optimizers",
    "results",
    "solver_state",
    "stage_progress",
)

# Whether a thread is saving the complete state of a fit.
_saving = threading.local()


@contextlib.contextmanager
def whole_states() -> Iterator[None]:
    """A scope in which optimizers write their solver's state into files."""
    before = getattr(_saving, "is_whole", False)
    _saving.is_whole = True
    try:
        yield
    finally:
        _saving.is_whole = before


class BatchOptimizer(keras.optimizers.Optimizer):
    """Base class of all optimizers of kormos.

    A model that is compiled with one is trained on all of its data at once:
    `fit` runs the optimizer's whole algorithm, with one iteration per epoch.
    Subclasses implement `stages`.

    Args:
        name: String, the name of the optimizer.
        epochs: Integer, the number of epochs of a `fit` without `epochs`.
            Defaults to 20.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time in a `fit` without `batch_size`.
        pretrain_fn: Function of the model that is called before the
            optimization starts, for example to freeze layers.
        bounds: Dict that maps the path of a variable, or a regular expression
            for paths, to `(low, high)`, where `None` means no bound; or a list
            of pairs `(variable, (low, high))`.
        constraints: A dict `{"type": "eq" or "ineq", "fun": fn}`, or a list of
            these. `fn` is a function of no arguments that reads the variables.
            Its values are kept at zero (`"eq"`), or at zero or above
            (`"ineq"`).
        keep_state: Where the state of the solver, such as its curvature, is
            kept for `resume=True`. `None` keeps it in memory and in the backups
            of `BackupAndRestore`. `True` keeps it in saved models too, where it
            can be far larger than the weights. `False` keeps it nowhere.
            Defaults to `None`.
        **others: Not accepted. The error says what replaces arguments of
            kormos 0.1.

    Raises:
        TypeError: If an argument is unknown.
        ValueError: If an argument cannot be used.
    """

    # Whether a later fit can continue with the curvature of an earlier one.
    keeps_state = False
    # Whether it chooses its method at the start of each fit.
    chooses = False

    def __init__(
        self,
        name: str = "batchoptimizer",
        epochs: Any = None,
        batch_size: int | None = None,
        pretrain_fn: Any = None,
        bounds: Any = None,
        constraints: Any = None,
        keep_state: bool | None = None,
        **others: Any,
    ) -> None:
        if others:
            raise TypeError(
                f"{type(self).__name__} got unexpected arguments."
                f"{predecessor.advice(others, predecessor.ARGUMENTS)} "
                f"Received: {', '.join(others)}"
            )
        # Keras requires a learning rate, and saves it; nothing reads it.
        super().__init__(learning_rate=1.0, name=name)
        self.epochs = epochs
        self.batch_size = batch_size
        self.pretrain_fn = pretrain_fn
        self.bounds = bounds
        self.constraints = constraints
        if keep_state not in (None, True, False):
            raise ValueError(
                "Argument `keep_state` must be None, True or False. "
                f"Received: keep_state={keep_state!r}"
            )
        self.keep_state = keep_state
        # The results and counts of the latest fit.
        self.results: list[Any] = []
        self.fg_evals = 0
        self.hessp_evals = 0
        self.jacobians = 0
        # The state from which a later fit can continue: a `SolverState`, or
        # `None`.
        self.solver_state: SolverState | None = None
        # For an optimizer that chooses: what was chosen for the latest fit, and
        # why.
        self.choice = ""
        # The progress of a chain of stages, or `None`.
        self.stage_progress: StageProgress | None = None
        # The number of times that the optimizer was read from a file.
        self.loads = 0

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Python's own error would not name the arguments that the class takes.
        if cls.__module__.startswith("kormos."):
            check_names(cls, kwargs)
        return super().__new__(cls)

    def stages(self, epochs: Any = None, **overrides: Any) -> list[Stage]:
        """Returns the runs that a fit consists of.

        Args:
            epochs: Integer or list, the `epochs` of `fit`, or `None`.
            **overrides: Arguments of the constructor to replace for this fit.

        Returns:
            A list of `kormos.optimizers.stage.Stage`s.
        """
        raise NotImplementedError(
            "An optimizer of kormos must implement `stages`, which returns "
            "the `Stage`s of a fit, functions of a `Problem`. Its method "
            "`minimize`, as in kormos 0.1, is not called. Received: "
            f"{type(self).__name__}"
        )

    def build(self, variables: Any, *others: Any) -> None:
        if others or isinstance(variables, keras.Model):
            raise TypeError(
                "Optimizers are built by `fit`, from variables, and know "
                "neither models nor data. Use `kormos.fit(model, x, y, "
                "optimizer=...)`, or `kormos.Objective(model, x, y)` for "
                f"losses and gradients of a vector. Received: {variables!r} "
                f"and {len(others)} more"
            )
        if not self.built:
            super().build(variables)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{type(self).__name__!r} has no attribute {name!r}."
            + predecessor.advice([name], predecessor.ATTRIBUTES)
        )

    def get_config(self) -> dict[str, Any]:
        return keras.saving.serialize_keras_object(
            {
                "name": self.name,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "pretrain_fn": saveable(self.pretrain_fn, "pretrain_fn"),
                "bounds": by_path(self.bounds),
                "constraints": saveable(self.constraints, "constraints"),
                "keep_state": self.keep_state,
            }
        )

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        return cls(
            **{
                name: loaded(value, name, custom_objects)
                for name, value in config.items()
            }
        )

    def keep(self, state: SolverState | None) -> None:
        """Stores a `SolverState`, or `None`, for a later fit."""
        self.solver_state = None if self.keep_state is False else state

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.keep_state or getattr(_saving, "is_whole", False):
            self._save_solver(store)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(self._load_solver(store))
        self.loads += 1

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Writes the state from which `resume=True` continues to a file.

        The optimizer of a model is saved with the model. Use this function for
        `kormos.minimize`, `kormos.least_squares` and `kormos.solve`, whose
        variables belong to no model.

        Args:
            path: Path of the file, a NumPy archive. The file gets this name
                only when it is complete.

        Raises:
            ValueError: If there is no state: before a run, after a run of a
                method that keeps none, or with `keep_state=False`.

        Example:

        ```python
        v = keras.Variable([1.0, 2.0])

        def loss_fn():
            return keras.ops.sum((v - 3.0) ** 4)

        optimizer = kormos.optimizers.LBFGS()
        kormos.minimize(loss_fn, [v], optimizer, max_iterations=5)
        optimizer.save_state("run.npz")
        # In another process:
        optimizer = kormos.optimizers.LBFGS()
        optimizer.load_state("run.npz", [v])
        kormos.minimize(loss_fn, [v], optimizer, resume=True)
        ```
        """
        if self.solver_state is None:
            raise ValueError(
                f"Optimizer '{self.name}' has no state to save: run it "
                "first. There is none for SciPy's methods, or with "
                "`keep_state=False`. Received: an optimizer without a state"
            )
        store: dict[str, Any] = {}
        self._save_solver(store)
        path = pathlib.Path(path)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, **store)
        part.replace(path)

    def load_state(
        self,
        path: str | os.PathLike[str],
        variables: Sequence[keras.Variable] = (),
    ) -> None:
        """Reads a file that `save_state` has written.

        Args:
            path: Path of the file.
            variables: List of the variables of the run, in the same order. They
                are set to the point in the file.

        Raises:
            ValueError: If the file belongs to other variables.
        """
        with np.load(path) as archive:
            self._load_solver(dict(archive))
        if variables and self.solver_state is not None:
            write(self.solver_state.left, variables)

    def _save_solver(self, store: Any) -> None:
        if self.solver_state is not None:
            self.solver_state.save(store)
        if self.stage_progress is not None:
            store[_PROGRESS] = np.array(self.stage_progress)

    def _load_solver(self, store: Any) -> dict[str, Any]:
        """Takes the solver's state from a store; returns the rest of it."""
        self.solver_state, rest = solver_state.load(store)
        progress = rest.pop(_PROGRESS, None)
        self.stage_progress = (
            None if progress is None else StageProgress.of(progress)
        )
        return rest

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _UNTRACKED:
            # Keras would save the variables in bounds as state of the
            # optimizer, and make SciPy's results into plain dicts. Progress is
            # set in every iteration, so that must be cheap.
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def set_weights(self, weights: Any) -> None:
        """Sets the optimizer's own variables, its counters, as Keras does.

        Args:
            weights: List of arrays, such as `[v.numpy() for v in variables]`.

        Raises:
            ValueError: If the arrays are anything else, for example the weights
                of a model.
        """
        if not are_like(weights, self.variables):
            raise ValueError(
                f"`set_weights` of optimizer '{self.name}' takes a list of "
                f"its own {len(self.variables)} variables, which count its "
                "iterations, and changes no model. To write a vector of "
                "parameters into the model, call `kormos.Objective(model, x, "
                f"y).assign(theta)`. Received: {described(weights)}"
            )
        super().set_weights(weights)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"Optimizer '{self.name}' works on all of the data at once, "
            "through `model.fit` or `kormos.fit`, and cannot apply the "
            "gradients of a single batch. Nothing was changed. Compile with "
            "a stochastic optimizer, such as 'adam', for `train_on_batch` and "
            "custom training loops."
        )

    update_step = apply = apply_gradients = stateless_apply = _refuse


def check_epochs(value: Any) -> None:
    """Raises a `ValueError` unless `value` is a valid number of iterations."""
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(
            "A number of iterations (`epochs`, `max_iterations` or the "
            "option 'maxiter') must be an integer, zero or more. "
            f"Received: {value!r}"
        )
