"""Workers and devices that a strategy of TensorFlow connects."""

import contextlib
import functools
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.eager import context

from kormos.types import Tensor
from kormos.types import Vector

# Seconds for which a worker waits for the others in an exchange. Our choice: a
# worker may take a few minutes longer than another to compile. TensorFlow
# itself detects within seconds that a process has ended. For each exchange with
# its own limit, it starts a thread that lives until the limit is reached.
_PATIENCE = 600.0


def process_group(owner: Any) -> Any:
    strategy = _strategy_of(owner)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    return strategy if place_in(strategy)[1] > 1 else None


def _strategy_of(owner: Any) -> tf.distribute.Strategy | None:
    """The strategy in whose scope a model, or a variable, was made."""
    if isinstance(owner, keras.Model):
        return owner.distribute_strategy
    # Other code raises an error if it is not a list of variables.
    listed = owner if isinstance(owner, (list, tuple)) else ()
    values = [v.value for v in listed if isinstance(v, keras.Variable)]
    found = [getattr(v, "distribute_strategy", None) for v in values]
    return next((s for s in found if s is not None), None)


def replicas(owner: Any) -> tuple[str, ...]:
    strategy = _strategy_of(owner)
    if not isinstance(strategy, tf.distribute.MirroredStrategy):
        return ()
    devices = tuple(strategy.extended.worker_devices)
    return devices if len(devices) > 1 else ()


def on_device(name: str | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if name is None else tf.device(name)


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
    timer = threading.Timer(_PATIENCE, _abort)
    timer.daemon = True
    timer.start()
    try:
        return np.array(_summed(group)(tf.constant(vector, "float64")))
    finally:
        timer.cancel()


def _abort() -> None:
    """Aborts the present exchange, and all later ones."""
    said = f"no answer within {_PATIENCE:g} seconds"
    context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, said)


@functools.lru_cache(maxsize=1)
def _summed(group: tf.distribute.Strategy) -> Callable[[Tensor], Tensor]:
    devices = group.num_replicas_in_sync // place_in(group)[1]

    def each(vector: Tensor) -> Tensor:
        replica = tf.distribute.get_replica_context()
        # All devices of a worker take part, and the first has the vector. In a
        # graph, an argument has no device, but TensorFlow requires one.
        is_first = replica.replica_id_in_sync_group % devices == 0
        own = tf.where(is_first, vector, tf.zeros_like(vector))
        return replica.all_reduce("SUM", own)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float64)])
    def summed(vector: Tensor) -> Tensor:
        return group.experimental_local_results(group.run(each, (vector,)))[0]

    return summed


def named_loss(group: tf.distribute.Strategy, error: Exception) -> str:
    # The call that defined the operation comes before.
    _, _, said = str(error).rpartition("aborted by:")
    return " ".join(said.split())[:300]


def local(tensor: Any) -> Any:
    if isinstance(tensor, tf.distribute.DistributedValues):
        # Reading other variables may need an exchange.
        return tensor.values[0]
    return tensor


@contextlib.contextmanager
def unscaled() -> Iterator[None]:
    # This leaves the scope of the strategy, in which Keras scales losses. In
    # it, TensorFlow also gives a variable the same value on all workers.
    graph: Any = tf.compat.v1.get_default_graph()
    creators = graph._variable_creator_stack
    graph._variable_creator_stack = []
    graph._distribution_strategy_stack.append(
        distribute_lib._get_default_replica_mode()
    )
    try:
        yield
    finally:
        graph._distribution_strategy_stack.pop()
        graph._variable_creator_stack = creators


unasked = unscaled


@contextlib.contextmanager
def own_copies(model: keras.Model) -> Iterator[None]:
    group = process_group(model)
    if group is None:
        yield
        return
    index, count = place_in(group)
    devices = group.num_replicas_in_sync // count
    # In the context of a replica, TensorFlow reads the copy of that replica.
    with unscaled(), tf.distribute.ReplicaContext(group, index * devices):
        yield
