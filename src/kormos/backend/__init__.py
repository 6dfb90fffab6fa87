"""Differentiation and compilation, by the backend that Keras runs on.

Each module of this package defines the same few names, and no algorithms. In
all of them `fn(parts, *args)` is a function of a list of tensors, and
derivatives are taken with respect to this list.

Compilation and calls:

- `compile(fn, xla)`: `fn`, compiled on backends that compile.
- `once(fn)`: `fn` in the form that takes the least time for one or two calls,
  including the time to compile.
- `compile_loop(fn)`: `fn(state, *args) -> state`, compiled as one program if
  the backend can. A state is a list of arrays, whose memory may be reused, and
  vectors of numbers, which are NumPy arrays on an eager backend.
- `Graphs().recorded(fn)`: `fn`, which an eager backend calls without its Python
  code where that is possible. `clear()` forgets what was recorded.
- `eagerly()`: a scope in which such a function runs its own Python code.
- `attempt(fn, *args)`: `fn(*args)`, or tensors of the right shapes if the
  numerics fail.
- `dry_run(fn, *args)`: tensors of the shapes of `fn(*args)`, with any values.
  `fn` is called for its effects on Python objects.
- `is_numerical(error)`: whether an exception says that the numerics failed,
  for example on a matrix that is not positive definite.
- `keeps_traces(fn, *args)`: whether the backend may keep the trace of a
  function that `fn` calls, and with it the values of variables that it read.
- `own_trace()`: a scope in which the backend finds no earlier trace.

Tensors:

- `ops`: the functions of `keras.ops` that solvers call, without the overhead of
  Keras on an eager backend.
- `on_cpu()`: whether tensors are in the memory of the CPU.
- `chunk_numbers()`: the number of values that a layer should return at once.
- `narrow_from()`: the length from which products of a matrix with a vector take
  less time in float32, with the conversion to it.
- `scalar(tensor)`: a scalar tensor in the form that solvers use for decisions:
  a NumPy number on an eager backend.
- `to_numpy(value)`: a NumPy array of a tensor or a Keras variable, a copy on an
  eager backend. NumPy gives no warning.
- `view(tensor)`: a NumPy array to read, which shares the memory of a tensor on
  the CPU.
- `values(tensor)`: a NumPy array of a tensor; `None` if it has no values,
  because it is traced or mapped.
- `dot(a, b)`: the inner product of two vectors, as `scalar` returns it.
- `arctan(tensor)`: the arc tangent of every entry, in the dtype of the tensor.
- `set_row(matrix, index, row)`: the matrix, or an array with more dimensions,
  with another row. It may be the same array, changed.
- `set_column(matrix, index, column)`: the same for a column of a matrix.
- `add_outer(matrix, vector, factor)`: a symmetric matrix plus `factor` times
  the vector's outer product with itself, exactly symmetric. It may be the
  same array, changed.
- `held(tensor)`: what a variable's tensor holds now, also after the variable
  was assigned another, without a copy; `None` on an engine that assigns in
  place.
- `is_held(tensor, held)`: whether a variable's tensor is known to be the one
  held, without a look at its numbers.
- `copied(tensor, memory=None)`: a copy, in the memory of an earlier one if that
  is given.
- `equal(tensor, other)`: whether two tensors of the same shape hold the same
  numbers. NaN is the same as NaN.
- `float64()`: a scope in which float64 tensors keep their precision.
- `repeatable()`: a scope in which random draws without a seed are the same
  every time.

Parameters of PyTorch modules:

- `parameters_met()`: a scope that yields a dict, by `id`, of the PyTorch
  parameters that operations within it receive.
- `standing_in(pairs)`: a scope in which operations compute with the second
  tensor of a pair in place of the first.

Processes that fit a model together:

- `process_group(owner)`: the processes that fit a model, or a list of
  variables, in the backend's own form; `None` if there is only one.
- `place_in(group)`: the number of this process, and the number of processes.
- `add_up(group, vector)`: the sum of a float64 vector over the processes,
  bit-identical on all of them.
- `named_loss(group, error)`: an error of `add_up` in words, with the process
  that does not answer if the backend knows it.
- `local(tensor)`: a tensor that this process can compute with alone.
- `placed_like(array, tensor)`: an array that lies on devices as a tensor does.
- `unasked()`: a scope in which the backend does not check, when a process
  assigns a value, that the others assign the same.
- `alone()`: a scope in which this process makes variables only for itself.
- `unscaled()`: a scope in which Keras does not divide losses by the number of
  devices.
- `own_copies(model)`: a scope in which reading a metric of a model does not add
  up over the processes.

Derivatives:

- `value_and_grad(fn, has_others=False)`: `(parts, *args) -> (loss, gradients)`.
  With `has_others`, `fn` returns a pair of the loss and of other tensors, which
  are not differentiated, and so does the function, in place of the loss.
- `has_own_gradients(compiled)`: whether a compiled function may contain custom
  gradients, whose own derivatives may be wrong.
- `hvp(fn)`: `(parts, tangents, *args) -> Hessian times tangents`.
- `jacobian(fn)`: `(parts, *args) -> derivatives` of a vector-valued `fn`.
- `jvp(fn)`: `(parts, tangents, *args) -> (values, derivatives times tangents)`.
- `check_forward_mode(fn, parts, tangents)`: raises the error of an operation
  without forward-mode derivatives, if a call of `jvp` itself would not.
- `vjp(fn)`: `(parts, cotangents, *args) -> cotangents times derivatives`.
- `row_jacobian(fn, forward)`: `(parts, rows) -> (values, derivatives)` of a
  vector-valued `fn(parts, row)`, for every row of a structure of arrays.
- `map_rows(fn, rows)`: `fn(row)` for every row, stacked.

Several devices of one process, set by `keras.distribution`. Without it, and on
backends other than JAX, there is one:

- `devices()`: the number of devices.
- `row_devices()`: the number of devices over which rows are spread.
- `spread_rows(array, axis, put, is_divisible=False)`: a NumPy array on the
  devices, spread along an axis of any size. On one device it is `put(array)`.
  With `is_divisible`, each device may sum up its own rows of a chunk first.
- `sum_by_device(fn, stacked, total)`: `fn(stacked, total)`, which adds sums
  over the rows of stacked chunks to `total`. Where these are divisible, each
  device calls `fn` with its own rows, and the sums are exchanged once.
- `whole(structure)`: the structure without padding, as compiled functions and
  other code receive it.
- `spread_zeros(shape, dtype)`: zeros that are spread along the last axis, which
  is padded. On one device they are a NumPy array without padding.
- `keep_spread(tensor)`: in a compiled function, the tensor spread like these.
- `gather(tensor)`: in a compiled function, the tensor on every device.
- `laid_out(array, like)`: a NumPy array, padded and spread like a tensor that
  `spread_zeros` made.

Devices of this process that each receive whole chunks of rows, as in
TensorFlow's `MirroredStrategy`:

- `replicas(owner)`: the names of the devices that fit a model, or a list of
  variables. It is empty if there is only one.
- `on_device(name)`: a scope whose tensors and operations are on a device. The
  name `None` changes nothing.
"""

import keras

if keras.backend.backend() == "jax":
    from keras import ops as ops

    from kormos.backend.common import Graphs as Graphs
    from kormos.backend.common import add_outer as add_outer
    from kormos.backend.common import copied as copied
    from kormos.backend.common import eagerly as eagerly
    from kormos.backend.common import on_device as on_device
    from kormos.backend.common import own_copies as own_copies
    from kormos.backend.common import parameters_met as parameters_met
    from kormos.backend.common import replicas as replicas
    from kormos.backend.common import standing_in as standing_in
    from kormos.backend.common import to_numpy as to_numpy
    from kormos.backend.common import unscaled as unscaled
    from kormos.backend.jax import arctan as arctan
    from kormos.backend.jax import attempt as attempt
    from kormos.backend.jax import check_forward_mode as check_forward_mode
    from kormos.backend.jax import chunk_numbers as chunk_numbers
    from kormos.backend.jax import compile as compile
    from kormos.backend.jax import compile_loop as compile_loop
    from kormos.backend.jax import dot as dot
    from kormos.backend.jax import dry_run as dry_run
    from kormos.backend.jax import equal as equal
    from kormos.backend.jax import float64 as float64
    from kormos.backend.jax import has_own_gradients as has_own_gradients
    from kormos.backend.jax import held as held
    from kormos.backend.jax import hvp as hvp
    from kormos.backend.jax import is_held as is_held
    from kormos.backend.jax import is_numerical as is_numerical
    from kormos.backend.jax import jacobian as jacobian
    from kormos.backend.jax import jvp as jvp
    from kormos.backend.jax import keeps_traces as keeps_traces
    from kormos.backend.jax import map_rows as map_rows
    from kormos.backend.jax import narrow_from as narrow_from
    from kormos.backend.jax import on_cpu as on_cpu
    from kormos.backend.jax import once as once
    from kormos.backend.jax import own_trace as own_trace
    from kormos.backend.jax import repeatable as repeatable
    from kormos.backend.jax import row_jacobian as row_jacobian
    from kormos.backend.jax import scalar as scalar
    from kormos.backend.jax import set_column as set_column
    from kormos.backend.jax import set_row as set_row
    from kormos.backend.jax import value_and_grad as value_and_grad
    from kormos.backend.jax import values as values
    from kormos.backend.jax import view as view
    from kormos.backend.jax import vjp as vjp
    from kormos.backend.jax_devices import devices as devices
    from kormos.backend.jax_devices import gather as gather
    from kormos.backend.jax_devices import keep_spread as keep_spread
    from kormos.backend.jax_devices import laid_out as laid_out
    from kormos.backend.jax_devices import row_devices as row_devices
    from kormos.backend.jax_devices import spread_rows as spread_rows
    from kormos.backend.jax_devices import spread_zeros as spread_zeros
    from kormos.backend.jax_devices import sum_by_device as sum_by_device
    from kormos.backend.jax_devices import whole as whole
    from kormos.backend.jax_processes import add_up as add_up
    from kormos.backend.jax_processes import alone as alone
    from kormos.backend.jax_processes import local as local
    from kormos.backend.jax_processes import named_loss as named_loss
    from kormos.backend.jax_processes import place_in as place_in
    from kormos.backend.jax_processes import placed_like as placed_like
    from kormos.backend.jax_processes import process_group as process_group
    from kormos.backend.jax_processes import unasked as unasked
elif keras.backend.backend() == "tensorflow":
    from keras import ops as ops

    from kormos.backend.common import Graphs as Graphs
    from kormos.backend.common import add_outer as add_outer
    from kormos.backend.common import alone as alone
    from kormos.backend.common import check_forward_mode as check_forward_mode
    from kormos.backend.common import copied as copied
    from kormos.backend.common import devices as devices
    from kormos.backend.common import eagerly as eagerly
    from kormos.backend.common import gather as gather
    from kormos.backend.common import keep_spread as keep_spread
    from kormos.backend.common import laid_out as laid_out
    from kormos.backend.common import once as once
    from kormos.backend.common import parameters_met as parameters_met
    from kormos.backend.common import placed_like as placed_like
    from kormos.backend.common import row_devices as row_devices
    from kormos.backend.common import spread_rows as spread_rows
    from kormos.backend.common import spread_zeros as spread_zeros
    from kormos.backend.common import standing_in as standing_in
    from kormos.backend.common import sum_by_device as sum_by_device
    from kormos.backend.common import whole as whole
    from kormos.backend.tensorflow import arctan as arctan
    from kormos.backend.tensorflow import attempt as attempt
    from kormos.backend.tensorflow import chunk_numbers as chunk_numbers
    from kormos.backend.tensorflow import compile as compile
    from kormos.backend.tensorflow import compile_loop as compile_loop
    from kormos.backend.tensorflow import dot as dot
    from kormos.backend.tensorflow import dry_run as dry_run
    from kormos.backend.tensorflow import equal as equal
    from kormos.backend.tensorflow import float64 as float64
    from kormos.backend.tensorflow import has_own_gradients as has_own_gradients
    from kormos.backend.tensorflow import held as held
    from kormos.backend.tensorflow import hvp as hvp
    from kormos.backend.tensorflow import is_held as is_held
    from kormos.backend.tensorflow import is_numerical as is_numerical
    from kormos.backend.tensorflow import jvp as jvp
    from kormos.backend.tensorflow import keeps_traces as keeps_traces
    from kormos.backend.tensorflow import narrow_from as narrow_from
    from kormos.backend.tensorflow import on_cpu as on_cpu
    from kormos.backend.tensorflow import own_trace as own_trace
    from kormos.backend.tensorflow import repeatable as repeatable
    from kormos.backend.tensorflow import scalar as scalar
    from kormos.backend.tensorflow import set_column as set_column
    from kormos.backend.tensorflow import set_row as set_row
    from kormos.backend.tensorflow import to_numpy as to_numpy
    from kormos.backend.tensorflow import value_and_grad as value_and_grad
    from kormos.backend.tensorflow import values as values
    from kormos.backend.tensorflow import view as view
    from kormos.backend.tensorflow import vjp as vjp
    from kormos.backend.tensorflow_processes import add_up as add_up
    from kormos.backend.tensorflow_processes import local as local
    from kormos.backend.tensorflow_processes import named_loss as named_loss
    from kormos.backend.tensorflow_processes import on_device as on_device
    from kormos.backend.tensorflow_processes import own_copies as own_copies
    from kormos.backend.tensorflow_processes import place_in as place_in
    from kormos.backend.tensorflow_processes import (
        process_group as process_group,
    )
    from kormos.backend.tensorflow_processes import replicas as replicas
    from kormos.backend.tensorflow_processes import unasked as unasked
    from kormos.backend.tensorflow_processes import unscaled as unscaled
    from kormos.backend.tensorflow_rows import jacobian as jacobian
    from kormos.backend.tensorflow_rows import map_rows as map_rows
    from kormos.backend.tensorflow_rows import row_jacobian as row_jacobian
elif keras.backend.backend() == "torch":
    from kormos.backend import torch_ops

    ops = torch_ops
    from kormos.backend.common import alone as alone
    from kormos.backend.common import check_forward_mode as check_forward_mode
    from kormos.backend.common import devices as devices
    from kormos.backend.common import gather as gather
    from kormos.backend.common import keep_spread as keep_spread
    from kormos.backend.common import laid_out as laid_out
    from kormos.backend.common import local as local
    from kormos.backend.common import on_device as on_device
    from kormos.backend.common import once as once
    from kormos.backend.common import own_copies as own_copies
    from kormos.backend.common import placed_like as placed_like
    from kormos.backend.common import replicas as replicas
    from kormos.backend.common import row_devices as row_devices
    from kormos.backend.common import spread_rows as spread_rows
    from kormos.backend.common import spread_zeros as spread_zeros
    from kormos.backend.common import sum_by_device as sum_by_device
    from kormos.backend.common import unasked as unasked
    from kormos.backend.common import unscaled as unscaled
    from kormos.backend.common import whole as whole
    from kormos.backend.torch import add_outer as add_outer
    from kormos.backend.torch import arctan as arctan
    from kormos.backend.torch import attempt as attempt
    from kormos.backend.torch import chunk_numbers as chunk_numbers
    from kormos.backend.torch import compile as compile
    from kormos.backend.torch import compile_loop as compile_loop
    from kormos.backend.torch import copied as copied
    from kormos.backend.torch import dot as dot
    from kormos.backend.torch import dry_run as dry_run
    from kormos.backend.torch import equal as equal
    from kormos.backend.torch import float64 as float64
    from kormos.backend.torch import has_own_gradients as has_own_gradients
    from kormos.backend.torch import held as held
    from kormos.backend.torch import is_held as is_held
    from kormos.backend.torch import is_numerical as is_numerical
    from kormos.backend.torch import keeps_traces as keeps_traces
    from kormos.backend.torch import narrow_from as narrow_from
    from kormos.backend.torch import on_cpu as on_cpu
    from kormos.backend.torch import own_trace as own_trace
    from kormos.backend.torch import parameters_met as parameters_met
    from kormos.backend.torch import repeatable as repeatable
    from kormos.backend.torch import scalar as scalar
    from kormos.backend.torch import set_column as set_column
    from kormos.backend.torch import set_row as set_row
    from kormos.backend.torch import standing_in as standing_in
    from kormos.backend.torch import to_numpy as to_numpy
    from kormos.backend.torch import values as values
    from kormos.backend.torch import view as view
    from kormos.backend.torch_derivatives import hvp as hvp
    from kormos.backend.torch_derivatives import jacobian as jacobian
    from kormos.backend.torch_derivatives import jvp as jvp
    from kormos.backend.torch_derivatives import map_rows as map_rows
    from kormos.backend.torch_derivatives import row_jacobian as row_jacobian
    from kormos.backend.torch_derivatives import (
        value_and_grad as value_and_grad,
    )
    from kormos.backend.torch_derivatives import vjp as vjp
    from kormos.backend.torch_graphs import Graphs as Graphs  # type: ignore[assignment]
    from kormos.backend.torch_graphs import eagerly as eagerly
    from kormos.backend.torch_processes import add_up as add_up
    from kormos.backend.torch_processes import named_loss as named_loss
    from kormos.backend.torch_processes import place_in as place_in
    from kormos.backend.torch_processes import process_group as process_group
else:
    raise ImportError(
        "kormos runs on the Keras backends 'tensorflow', 'jax' and 'torch'. "
        "Set `KERAS_BACKEND` to one of them before Keras is imported. "
        f"Received: backend={keras.backend.backend()}"
    )
