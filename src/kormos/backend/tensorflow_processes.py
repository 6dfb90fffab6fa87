"""Workers that TensorFlow's `MultiWorkerMirroredStrategy` connects."""

import contextlib
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib

from kormos.types import Tensor
from kormos.types import Vector

# How long a worker waits for the others in an exchange. Our choice: TensorFlow
# waits for ever unless it is given a time, and a worker may be slower by some
# minutes.
_OPTIONS = tf.distribute.experimental.CommunicationOptions(timeout_seconds=600)


def process_group(owner: Any) -> Any:
    strategy = _strategy_of(owner)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    return strategy if place_in(strategy)[1] > 1 else None


def _strategy_of(owner: Any) -> tf.distribute.Strategy | None:
    """The strategy in whose scope a model, or a variable, was made."""
    if isinstance(owner, keras.Model):
        return owner.distribute_strategy
    values = [v.value for v in owner if isinstance(v, keras.Variable)]
    found = [getattr(v, "distribute_strategy", None) for v in values]
    return next((s for s in found if s is not None), None)


def place_in(group: tf.distribute.Strategy) -> tuple[int, int]:
    resolver = group.cluster_resolver
    spec = resolver.cluster_spec()
    chiefs, workers = (
        spec.num_tasks(job) if job in spec.jobs else 0
        for job in ("chief", "worker")
    )
    if not chiefs + workers:
        return 0, 1
    before = chiefs if resolver.task_type == "worker" else 0
    return before + resolver.task_id, chiefs + workers


def add_up(group: tf.distribute.Strategy, vector: Vector) -> Vector:
    return np.array(_summed(group)(tf.constant(vector, "float64")))


@functools.lru_cache(maxsize=1)
def _summed(group: tf.distribute.Strategy) -> Callable[[Tensor], Tensor]:
    devices = group.num_replicas_in_sync // place_in(group)[1]

    def each(vector: Tensor) -> Tensor:
        context = tf.distribute.get_replica_context()
        # All devices of a worker take part, and the first has the vector. An
        # argument has no device in a graph, which the engine asks for.
        is_first = context.replica_id_in_sync_group % devices == 0
        own = tf.where(is_first, vector, tf.zeros_like(vector))
        return context.all_reduce("SUM", own, _OPTIONS)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def summed(vector: Tensor) -> Tensor:
        return group.experimental_local_results(group.run(each, (vector,)))[0]

    return summed


def named_loss(group: tf.distribute.Strategy, error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def local(tensor: Any) -> Any:
    if isinstance(tensor, tf.distribute.DistributedValues):
        # Reading the others may be an exchange.
        return tensor.values[0]
    return tensor


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Leaves the scope of a strategy."""
    stack = tf.compat.v1.get_default_graph()._distribution_strategy_stack
    stack.append(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        stack.pop()


# Keras does so in the scope of a strategy.
unscaled = alone
