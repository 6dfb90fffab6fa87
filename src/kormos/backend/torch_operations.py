"""PyTorch's operations in the forms that have the derivatives wanted."""

import contextlib

import torch
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_RECOMPUTED = (
    "What PyTorch computes anew when it differentiates would take the "
    "variables as they are, not as they are tried: use `keras.remat`, which "
    "kormos knows, or none. Received: `torch.utils.checkpoint`, or other hooks "
    "of saved tensors"
)

_LAYOUTS = torch.channels_last, torch.channels_last_3d

# Keras hides from a query what it adds such a number to: its rounding
# leaves nothing of the score.
_HIDDEN = -1e30
# Of exponentials that are this small, the logarithm of a sum has lost the sum.
_SMALL = -1e3


def differentiable(fn, is_first=False):
    """`fn`, whose operations can be differentiated.

    A mode costs a small model a fifth of its time: after the first call it is
    entered where it is needed.
    """
    mode = _Differentiable(is_first)
    is_new = True

    def call(*args):
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
    """Has operations computed in a way that can be differentiated.

    Args:
        is_first: whether nothing is differentiated but once, in reverse.
    """

    def __init__(self, is_first=False):
        self._is_first = is_first
        # Whether there was such an operation.
        self.is_needed = False

    def __torch_function__(self, fn, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if fn is scaled_dot_product_attention:
            self.is_needed = True
            return _attend(self._is_first, *args, **kwargs)
        if kwargs.get("memory_format") in _LAYOUTS:
            # Layouts are for speed, and `torch.func` knows but one.
            self.is_needed = True
            kwargs = {**kwargs, "memory_format": torch.contiguous_format}
        return fn(*args, **kwargs)


def _attend(is_first, query, key, value, attn_mask=None, *args, **kwargs):
    """Attention by a kernel whose derivatives are right.

    The fast ones have no second derivatives, and wrong first ones for queries
    that may attend to nothing.
    """
    is_fast = is_first
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        is_fast = is_fast and bool(attn_mask.any(-1).all())
    elif attn_mask is not None:
        seen = attn_mask.amax(-1, keepdim=True)
        is_fast = is_fast and bool((seen > _SMALL).all())
        # Of these, scores are lost, and so must their derivatives be.
        query = torch.where(seen < _HIDDEN, torch.zeros_like(query), query)
    kernel = contextlib.nullcontext()
    if not is_fast:
        kernel = sdpa_kernel(SDPBackend.MATH)
    with kernel:
        return scaled_dot_product_attention(
            query, key, value, attn_mask, *args, **kwargs
        )
