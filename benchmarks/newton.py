"""Newton's method where L-BFGS has become slow.

`"lbfgs"`, `"newton"` and `"gauss-newton"` continue from the point that 1,000
iterations of `"lbfgs"` reach. All have one thread, float64, and the same
processor time, so that other work on the machine does not matter. The time
begins at the first iterate, without compiling. `"lbfgs"` keeps its memory.

`surface`: the gallery's, network 2-64-64-1, mean squared error on 121 points.
`digits`: every fourth of scikit-learn's, network 64-64-10, mean squared error
of ones and zeros, which it can fit. (With a cross-entropy, `"lbfgs"` converges
in 42 iterations.)
`burgers`: the equation of `pinns.py`, a network of three layers of 20, on 2,000
points that stay the same.
"""

import one_thread  # noqa: F401

# isort: split
import time

import keras
import numpy as np
import recording
from burgers import Burgers

import kormos

# The clock is checked after this many iterations of L-BFGS, which run in one
# call.
STRIDE = 10
METHODS = ("lbfgs", "newton", "gauss-newton")
TITLES = ["problem", "method", "seconds", "iterations", "loss", "of lbfgs'"]


class Watch(keras.callbacks.Callback):
    """Ends a run a number of seconds after a mark, which it remembers.

    Args:
        variables: the variables that are fitted.
        seconds: the seconds of the processor after the mark.
        mark: the number of iterations after which the seconds begin.
        stride: iterations of an epoch.
    """

    def __init__(self, variables, seconds, mark, stride=1):
        super().__init__()
        self._variables, self._seconds = variables, seconds
        self._mark, self._stride = mark, stride
        self.begun = self.at_mark = None
        self.spent, self.loss, self.iterations = 0.0, float("nan"), 0

    def on_epoch_end(self, epoch, logs=None):
        done = (epoch + 1) * self._stride
        self.model.stop_training = self(done, logs)

    def __call__(self, iteration, logs):
        now = time.process_time()
        if self.begun is None and iteration >= self._mark:
            self.begun = now
            values = [keras.ops.convert_to_numpy(v) for v in self._variables]
            self.at_mark = [np.array(v) for v in values], logs["loss"]
        if self.begun is None:
            return False
        if now - self.begun > self._seconds:
            return True
        self.spent, self.loss = now - self.begun, logs["loss"]
        self.iterations = iteration - self._mark
        return False


class OfModel:
    """A network's fit.

    Args:
        model: the network, compiled with its loss.
        x, y: the data.
    """

    def __init__(self, model, x, y):
        self.variables = model.trainable_variables
        self._model, self._x, self._y = model, x, y

    def run(self, method, watch):
        stride = STRIDE if method == "lbfgs" else 1
        return kormos.fit(
            self._model,
            self._x,
            self._y,
            optimizer=method,
            batch_size=len(self._y),
            epochs=10**6,
            steps_per_epoch=stride,
            callbacks=[watch],
            verbose=0,
        ).result


class OfResiduals:
    """The fit of an equation's residuals on points that stay the same.

    Args:
        problem: the equation.
        points: the number of points.
    """

    def __init__(self, problem, points):
        self._problem = problem
        self._points = problem.data(points)
        self.variables = problem.net.trainable_variables

    def run(self, method, watch):
        return kormos.least_squares(
            self._problem.misfits,
            self.variables,
            method,
            data=self._points,
            max_iterations=10**6,
            callbacks=[watch],
        )


def network(*widths):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(w, "tanh") for w in widths[1:-1]]
    return keras.Sequential(
        [
            keras.Input(widths[:1]),
            *layers,
            keras.layers.Dense(widths[-1]),
        ]
    )


def surface():
    side = np.linspace(-1, 1, 11)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    model = network(2, 64, 64, 1)
    model.compile(loss="mse")
    return OfModel(model, x, (x**2).sum(axis=1, keepdims=True))


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    model = network(64, 64, 10)
    model.compile(loss="mse")
    return OfModel(model, x[::4] / 16, np.eye(10)[y[::4]])


def burgers():
    keras.utils.set_random_seed(0)
    return OfResiduals(Burgers("float64"), 2_000)


# The seconds for each problem.
PROBLEMS = {surface: 20, digits: 20, burgers: 60}


def rows(make, seconds, mark):
    """A row for each method."""
    problem = make()
    start = None
    for method in METHODS:
        stride = STRIDE if method == "lbfgs" else 1
        watch = Watch(problem.variables, seconds, mark, stride)
        if start is not None:
            for variable, value in zip(problem.variables, start, strict=True):
                variable.assign(value)
            watch = Watch(problem.variables, seconds, 1)
        result = problem.run(method, watch)
        if watch.at_mark is None:
            yield [make.__name__, result.message, "–", "–", result.loss, "–"]
            return
        if start is None:
            (start, loss), least = watch.at_mark, watch.loss
            yield [make.__name__, "start", 0.0, mark, loss, "–"]
        spent = f"{watch.spent:.0f}"
        if result.status != "stopped by callback":
            spent += f", {result.status}"
        part = watch.loss / least
        counts = watch.iterations, watch.loss
        yield [make.__name__, method, spent, *counts, part]


def main():
    parser = recording.parser(__doc__)
    names = [make.__name__ for make in PROBLEMS]
    parser.add_argument("--problem", choices=names, nargs="+", default=names)
    args = parser.parse_args()
    kormos.enable_float64()
    record = recording.Record("newton", __doc__, args)
    found, mark = [], 100 if args.quick else 1_000
    for make, seconds in PROBLEMS.items():
        if make.__name__ in args.problem:
            for row in rows(make, 2 if args.quick else seconds, mark):
                print(*row, flush=True)
                found.append(row)
    record.table(f"After {mark:,} iterations of lbfgs", TITLES, found)


if __name__ == "__main__":
    main()
