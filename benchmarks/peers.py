"""Quasi-Newton methods of other libraries, as `quasi_newton.py` runs them.

Each is a function `(evaluate, memory)` that returns `run(theta, most, target)`.
A run starts from a float64 vector and ends when the loss is at most the target,
or after a number of evaluations (or of iterations, for methods that run as one
compiled loop). Tolerances are off. A method is compiled as a whole if its
library can do that.
"""

import importlib.util
from typing import Any
from typing import NamedTuple

import keras
import scipy.optimize

from kormos import backend

FOREVER = 10**9


class Enough(Exception):
    """The run has reached its limit."""


class Evaluate:
    """A problem's loss, as a peer may call it.

    Args:
        problem: the `Problem`.
        note: function that is called with the loss of every evaluation, or
            `None`.
    """

    def __init__(self, problem, note=None):
        self.problem = problem
        self.is_counted = note is not None
        self._note = note

    def value(self, theta):
        """The loss inside a function that JAX or TensorFlow compiles."""
        loss = self.problem.objective.value(theta)
        if self.is_counted and keras.backend.backend() == "jax":
            import jax

            jax.debug.callback(self.note, loss, ordered=True)
        elif self.is_counted:
            import tensorflow as tf

            tf.py_function(self.note, [loss], [])
        return loss

    def value_and_grad(self, theta):
        """The loss and its gradient as a float and a NumPy array."""
        loss, grad = self.problem.objective.value_and_grad(theta)
        self.note(loss)
        return loss, grad

    def note(self, loss):
        if self.is_counted:
            self._note(float(loss))


def _scipy(method, evaluate, memory):
    options = {"maxiter": FOREVER, "gtol": 0}
    if method == "L-BFGS-B":
        options |= {"maxcor": memory, "maxfun": FOREVER, "ftol": 0}

    def run(theta, most, target):
        left = most

        def limited(theta):
            nonlocal left
            if left == 0:
                raise Enough
            loss, grad = evaluate.value_and_grad(theta)
            left = left - 1 if loss > target else 0
            return loss, grad

        try:
            scipy.optimize.minimize(
                limited, theta, jac=True, method=method, options=options
            )
        except Enough:
            pass

    return run


def lbfgsb(evaluate, memory):
    return _scipy("L-BFGS-B", evaluate, memory)


def bfgs(evaluate, memory):
    del memory
    return _scipy("BFGS", evaluate, None)


def torch_lbfgs(evaluate, memory):
    """PyTorch's, on a Keras model's own parameters, as its users train."""
    import torch

    def make(parameters):
        return torch.optim.LBFGS(
            parameters,
            max_iter=FOREVER,
            max_eval=FOREVER,
            tolerance_grad=0,
            tolerance_change=0,
            history_size=memory,
            line_search_fn="strong_wolfe",
        )

    return _torch_loop(evaluate, make, is_differentiated=False)


def torchmin_lbfgs(evaluate, memory):
    """`pytorch-minimize`, on the model's own parameters, too."""
    import torchmin

    # Its tests of convergence are never true.
    options = {"gtol": 0, "xtol": -1, "gtd_tol": 0, "history_size": memory}

    def make(parameters):
        return torchmin.Minimizer(
            parameters, method="l-bfgs", max_iter=FOREVER, options=options
        )

    return _torch_loop(evaluate, make, is_differentiated=True)


def _torch_loop(evaluate, make, is_differentiated):
    """A run of an optimizer that calls a closure.

    Args:
        evaluate: the `Evaluate`.
        make: function that makes the optimizer of a list of parameters.
        is_differentiated: whether the optimizer differentiates the closure's
            result.
    """
    problem = evaluate.problem
    parameters = [v.value for v in problem.variables]

    def run(theta, most, target):
        del theta  # The present parameters.
        optimizer = make(parameters)
        left = most

        def closure():
            nonlocal left
            if left == 0:
                raise Enough
            optimizer.zero_grad()
            loss = problem.loss()
            if not is_differentiated:
                loss.backward()
            evaluate.note(loss.item())
            left = left - 1 if loss.item() > target else 0
            return loss

        try:
            optimizer.step(closure)
        except Enough:
            pass

    return run


def _jax_loop(init, update, loss_of):
    """Compiles a loop of iterations, on the device until it ends."""
    import jax

    @jax.jit
    def loop(theta, most, target):
        def goes_on(carry):
            i, _, state = carry
            return (i < most) & ~(loss_of(state) <= target)

        def body(carry):
            i, theta, state = carry
            return i + 1, *update(theta, state)

        carry = 0, theta, init(theta)
        # The first iteration has no loss before it.
        return jax.lax.while_loop(goes_on, body, body(carry))

    def run(theta, most, target):
        with backend.float64():
            jax.block_until_ready(loop(jax.numpy.asarray(theta), most, target))
            jax.effects_barrier()

    return run


def optax_lbfgs(evaluate, memory):
    import optax

    solver = optax.lbfgs(memory_size=memory)
    value_and_grad = optax.value_and_grad_from_state(evaluate.value)

    def update(theta, state):
        value, grad = value_and_grad(theta, state=state)
        change, state = solver.update(
            grad,
            state,
            theta,
            value=value,
            grad=grad,
            value_fn=evaluate.value,
        )
        return optax.apply_updates(theta, change), state

    return _jax_loop(
        solver.init, update, lambda state: optax.tree.get(state, "value")
    )


def jaxopt_lbfgs(evaluate, memory):
    import jaxopt

    solver = jaxopt.LBFGS(
        evaluate.value,
        history_size=memory,
        tol=0,
        stepsize=0.0,
        maxiter=FOREVER,
    )
    return _jax_loop(solver.init_state, solver.update, lambda s: s.value)


def _optimistix(solver, evaluate):
    import equinox
    import jax

    # Parts of its state are not arrays.
    static = None

    def fn(theta, args):
        return evaluate.value(theta), None

    def init(theta):
        nonlocal static
        shapes = jax.eval_shape(fn, theta, None)
        state = solver.init(fn, theta, None, {}, *shapes, frozenset())
        arrays, static = equinox.partition(state, equinox.is_array)
        return arrays

    def update(theta, arrays):
        state = equinox.combine(arrays, static)
        theta, state, _ = solver.step(fn, theta, None, {}, state, frozenset())
        return theta, equinox.filter(state, equinox.is_array)

    return _jax_loop(init, update, lambda state: state.f_info.f)


def optimistix_lbfgs(evaluate, memory):
    import optimistix

    return _optimistix(
        optimistix.LBFGS(rtol=0, atol=0, history_length=memory), evaluate
    )


def optimistix_bfgs(evaluate, memory):
    import optimistix

    del memory
    return _optimistix(optimistix.BFGS(rtol=0, atol=0), evaluate)


def tfp_lbfgs(evaluate, memory):
    import tensorflow as tf
    import tensorflow_probability as tfp

    # XLA cannot compile the callback that counts.
    xla = evaluate.problem.is_fast_in_xla and not evaluate.is_counted

    @tf.function(jit_compile=xla)
    def loop(theta, most, target):
        def value_and_grad(theta):
            loss, grad = tfp.math.value_and_gradient(evaluate.value, theta)
            # It has no target, but a gradient of zero ends it.
            return loss, tf.where(loss <= target, tf.zeros_like(grad), grad)

        return tfp.optimizer.lbfgs_minimize(
            value_and_grad,
            theta,
            num_correction_pairs=memory,
            tolerance=0,
            x_tolerance=0,
            max_iterations=most,
        ).num_objective_evaluations

    def run(theta, most, target):
        loop(
            tf.constant(theta),
            tf.constant(most),
            tf.constant(target, tf.float64),
        ).numpy()

    return run


class Peer(NamedTuple):
    """A method of another library.

    Attributes:
        make: the function `(evaluate, memory)`.
        module: the module that it needs.
        backend: the backend on which it takes part, or `None` for all.
        memories: the numbers of pairs that are tried.
        most_parameters: the most parameters for which its matrix is sensible.
    """

    make: Any
    module: str
    backend: str | None
    memories: tuple
    most_parameters: float = float("inf")


PEERS = {
    "SciPy L-BFGS-B": Peer(lbfgsb, "scipy", None, (10, 50)),
    "SciPy BFGS": Peer(bfgs, "scipy", None, (None,), 100),
    "torch.optim.LBFGS": Peer(torch_lbfgs, "torch", "torch", (10, 100)),
    "pytorch-minimize": Peer(torchmin_lbfgs, "torchmin", "torch", (10, 100)),
    "optax.lbfgs": Peer(optax_lbfgs, "optax", "jax", (10, 50)),
    "jaxopt.LBFGS": Peer(jaxopt_lbfgs, "jaxopt", "jax", (10, 50)),
    "optimistix.LBFGS": Peer(optimistix_lbfgs, "optimistix", "jax", (10, 50)),
    "optimistix.BFGS": Peer(optimistix_bfgs, "optimistix", "jax", (None,), 100),
    "TFP lbfgs_minimize": Peer(
        tfp_lbfgs, "tensorflow_probability", "tensorflow", (10, 50)
    ),
}


def available(parameters):
    """A dict from a name to a function `(evaluate)`; and the missing names."""
    found, missing = {}, []
    for name, peer in PEERS.items():
        if peer.backend not in (None, keras.backend.backend()):
            continue
        if parameters > peer.most_parameters:
            continue
        if importlib.util.find_spec(peer.module) is None:
            missing.append(name)
            continue
        for memory in peer.memories:
            label = name if memory is None else f"{name}, {memory} pairs"
            found[label] = lambda evaluate, peer=peer, memory=memory: peer.make(
                evaluate, memory
            )
    return found, missing
