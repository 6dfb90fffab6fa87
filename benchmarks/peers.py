"""L-BFGS of other libraries, as `evaluations.py` runs it.

Each takes a `Counter` and a start, of float64, and runs without tolerances
until the counter says that it is enough, or until it gives up itself.
"""

import importlib.util
import time

import keras
import numpy as np
import scipy.optimize

from kormos import backend

FOREVER = 10**9


class Enough(Exception):
    """The run has all that it may."""


class Counter:
    """Counts evaluations of a loss and its gradient, and notes the loss.

    Args:
        objective: the loss as a function of a flat vector.
        evaluations: the most of them.
        target: the loss at which to end.
    """

    def __init__(self, objective, evaluations, target):
        self.objective = objective
        self.losses = []
        self.seconds = []
        self._most = evaluations
        self._target = target

    def __call__(self, theta):
        if self.is_enough():
            raise Enough
        loss, grad = self.objective.value_and_grad(theta)
        self.note(loss)
        return loss, grad

    def traced(self, theta):
        """The loss inside a function that JAX compiles and differentiates."""
        import jax

        loss = self.objective.value(theta)
        jax.debug.callback(self.note, loss, ordered=True)
        return loss

    def note(self, loss):
        self.losses.append(float(loss))
        self.seconds.append(time.perf_counter())

    def is_enough(self):
        if len(self.losses) >= self._most:
            return True
        return bool(self.losses) and not self.losses[-1] > self._target


def scipy_(counter, theta, memory):
    scipy.optimize.minimize(
        counter,
        theta,
        jac=True,
        method="L-BFGS-B",
        options={
            "maxcor": memory,
            "maxiter": FOREVER,
            "maxfun": FOREVER,
            "ftol": 0,
            "gtol": 0,
        },
    )


def torch_(counter, theta, memory):
    import torch

    parameter = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    optimizer = torch.optim.LBFGS(
        [parameter],
        max_iter=FOREVER,
        max_eval=FOREVER,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=memory,
        line_search_fn="strong_wolfe",
    )

    def closure():
        loss, grad = counter(parameter.detach().numpy().copy())
        parameter.grad = torch.tensor(grad)
        return torch.tensor(loss, dtype=torch.float64)

    optimizer.step(closure)


def optax_(counter, theta, memory):
    import jax
    import optax

    solver = optax.lbfgs(memory_size=memory)
    value_and_grad = optax.value_and_grad_from_state(counter.traced)

    @jax.jit
    def update(theta, state):
        value, grad = value_and_grad(theta, state=state)
        change, state = solver.update(
            grad,
            state,
            theta,
            value=value,
            grad=grad,
            value_fn=counter.traced,
        )
        return optax.apply_updates(theta, change), state

    with backend.wide():
        theta = jax.numpy.asarray(theta)
        state = solver.init(theta)
        while not counter.is_enough():
            theta, state = update(theta, state)
            jax.effects_barrier()


def jaxopt_(counter, theta, memory):
    import jax
    import jaxopt

    solver = jaxopt.LBFGS(
        counter.traced,
        history_size=memory,
        tol=0,
        stepsize=0.0,
        maxiter=FOREVER,
    )
    with backend.wide():
        theta = jax.numpy.asarray(theta)
        state = solver.init_state(theta)
        update = jax.jit(solver.update)
        while not counter.is_enough():
            theta, state = update(theta, state)
            jax.effects_barrier()


def tfp_(counter, theta, memory):
    import tensorflow as tf
    import tensorflow_probability as tfp

    def value_and_grad(theta):
        loss, grad = counter(theta.numpy())
        return tf.constant(loss, tf.float64), tf.constant(grad)

    tfp.optimizer.lbfgs_minimize(
        value_and_grad,
        theta,
        num_correction_pairs=memory,
        tolerance=0,
        x_tolerance=0,
        max_iterations=10**6,
    )


SOLVERS = {
    # name: function, module, backend that it needs, memories
    "SciPy L-BFGS-B": (scipy_, "scipy", None, (10, 20, 50, 100)),
    "torch.optim.LBFGS": (torch_, "torch", None, (10, 100)),
    "optax.lbfgs": (optax_, "optax", "jax", (10, 50)),
    "jaxopt.LBFGS": (jaxopt_, "jaxopt", "jax", (10, 50)),
    "TFP lbfgs_minimize": (
        tfp_,
        "tensorflow_probability",
        "tensorflow",
        (10, 50),
    ),
}


def available():
    """Dict from a name to a function `(counter, theta)`; names left out."""
    peers, missing = {}, []
    for name, (solve, module, needed, memories) in SOLVERS.items():
        if needed not in (None, keras.backend.backend()):
            continue
        if importlib.util.find_spec(module) is None:
            missing.append(name)
            continue
        for memory in memories:
            peers[f"{name}, {memory} pairs"] = (solve, memory)
    return peers, missing


def run(solve, memory, counter, theta):
    """Runs a peer; what it raises for being stopped is dropped."""
    begin = time.perf_counter()
    try:
        solve(counter, np.array(theta), memory)
    except Enough:
        pass
    return time.perf_counter() - begin
