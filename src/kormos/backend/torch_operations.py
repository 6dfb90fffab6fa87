"""Versions of PyTorch operations that have the derivatives needed here."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import torch
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from kormos.types import Tensor

_Result = TypeVar("_Result")

_RECOMPUTED = (
    "When PyTorch recomputes a function to differentiate it, it would use "
    "the present values of the variables, not those that a method tries. Use "
    "`keras.remat`, which kormos supports, or no rematerialization. "
    "Received: `torch.utils.checkpoint`, or other hooks of saved tensors"
)

_LAYOUTS = torch.channels_last, torch.channels_last_3d

# To hide a key from a query, Keras adds a number below this to the score.
# Rounding leaves nothing of the score in the sum.
_HIDDEN = -1e30
# If all numbers added to the scores of a query are below this, the fast kernels
# compute wrong derivatives. They keep only the logarithm of the sum of the
# exponentials, whose rounding is larger than the differences between scores.
_SMALL = -1e3


def differentiable(
    fn: Callable[..., _Result], is_first: bool = False
) -> Callable[..., _Result]:
    """`fn`, computed by operations that can be differentiated.

    Args:
        fn: a function of tensors.
        is_first: whether only first derivatives are taken, in reverse mode.
    """
    # A mode takes a fifth of the time of a small model. After the first call
    # it is entered only if it has changed an operation.
    mode = _Differentiable(is_first)
    is_new = True

    def call(*args: Any) -> _Result:
        nonlocal is_new
        scope = mode if is_new or mode.is_needed else contextlib.nullcontext()
        try:
            with scope, disable_saved_tensors_hooks(_RECOMPUTED):
                values = fn(*args)
        except RuntimeError as error:
            if _RECOMPUTED in str(error):
                raise ValueError(_RECOMPUTED) from error
            raise
        is_new = False
        return values

    return call


class _Differentiable(TorchFunctionMode):
    """Replaces operations by versions that can be differentiated.

    Args:
        is_first: whether only first derivatives are taken, in reverse mode.

    Attributes:
        is_needed: whether it has replaced an operation.
    """

    def __init__(self, is_first: bool = False) -> None:
        self._is_first = is_first
        self.is_needed = False

    def __torch_function__(
        self,
        fn: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if fn is scaled_dot_product_attention:
            self.is_needed = True
            return _attend(self._is_first, *args, **kwargs)
        if not self._is_first and kwargs.get("memory_format") in _LAYOUTS:
            # Layouts only affect speed, and `torch.func` supports only one.
            self.is_needed = True
            kwargs = {**kwargs, "memory_format": torch.contiguous_format}
        return fn(*args, **kwargs)


def _attend(
    is_first: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Attention by a kernel whose derivatives are right.

    The fast kernels have no second derivatives. Their first derivatives are
    wrong for queries that may attend to no key at all.
    """
    is_fast = is_first
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        is_fast = is_fast and bool(attn_mask.any(-1).all())
    elif attn_mask is not None:
        seen = attn_mask.amax(-1, keepdim=True)
        is_fast = is_fast and bool((seen > _SMALL).all())
        # The scores of these queries have no effect, so their derivatives must
        # be zero.
        query = torch.where(seen < _HIDDEN, torch.zeros_like(query), query)
    kernel: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if not is_fast:
        kernel = sdpa_kernel(SDPBackend.MATH)
    with kernel:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, *args, **kwargs
        )
