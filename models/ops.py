"""Attention as `torch.library` ops: opaque to torch.compile, with gradients, vmap and autocast.

An op is two functions of plain tensor code,

    forward(q, k, v, *rest) -> (out, lse)
    backward(grad_out, grad_lse, q, k, v, out, lse, *rest) -> (dq, dk, dv)

q, out: (B, N, H, D), k, v: (B, N, Hkv, D), lse: (B, H, N). `rest` is the same for both and starts
with the key padding mask or None. grad_lse may be None. Results are new memory, contiguous.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch.autograd import forward_ad

from models.errors import UnsupportedBackend

# Arguments whose first dimension is the batch, into which vmap's dimension is folded.
_OF_TOKENS = (
    *("grad_out", "grad_lse", "q", "k", "v", "out", "lse"),
    *("key_padding_mask", "document_ids"),
)


def empty_results(q: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised results.

    Args:
        q: (B, N, H, D).
        _: the other arguments of an op, not used.

    Returns:
        out (B, N, H, D) in q's dtype, and LSE (B, H, N), float32 (float64 for float64).
    """
    batch, n, heads, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    return packed_like(q), torch.empty((batch, heads, n), dtype=dtype, device=q.device)


def packed_like(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised memory.

    Args:
        x: of any strides.

    Returns:
        Contiguous, of x's shape, dtype and device.
    """
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


class AttentionOp:
    """The op `long_context::{name}`, called as `forward` is, and `{name}_backward` for gradients.

    Args:
        name: of the op.
        forward: a function as above, annotated for `torch.library.infer_schema`; autocast is off
            inside.
        backward: a function as above, whose annotations follow from those of `forward`.
        results: (arguments of `forward`) -> uninitialised tensors like its results.

    Raises:
        UnsupportedBackend: in a call, where a forward-mode or a second derivative is needed.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., tuple[torch.Tensor, torch.Tensor]],
        backward: Callable[..., tuple[torch.Tensor, ...]],
        results: Callable[..., tuple[torch.Tensor, torch.Tensor]] = empty_results,
    ):
        self.name = name
        self.forward = _define(name, forward, results)
        backward.__signature__ = _of_backward(inspect.signature(forward))
        self.backward = _define(f"{name}_backward", backward, _empty_gradients)
        gradients = functools.partial(_gradients, self.backward)
        torch.library.register_autograd(self.forward, gradients, setup_context=_keep, lib=_LIBRARY)
        torch.library.register_autograd(self.backward, self._refuse, lib=_LIBRARY)
        # torch.func does not see gradients registered for an op: there it calls these instead.
        self._derivative = _function(f"{name}_derivative", self.backward, self._refuse)
        backward = functools.partial(_gradients, self._derivative.apply)
        self._transformed = _function(name, self.forward, backward)

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The op: differentiable, and under vmap and torch.func too.

        Args:
            arguments: of `forward`.

        Returns:
            out (B, N, H, D) and LSE (B, H, N).
        """
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return self._transformed.apply(*arguments)
        if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
            # Autograd would drop the tangents silently.
            tensors = (x for x in arguments if isinstance(x, torch.Tensor))
            if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
                _refuse_forward_mode(self.name)
        return self.forward(*arguments)

    def _refuse(self, *_):
        raise UnsupportedBackend(
            f"long_context::{self.name} has only first derivatives, in reverse mode; the "
            "backends 'gather' (dilated) and 'eager' (dense) have all derivatives"
        )


def under_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast as `F.scaled_dot_product_attention` casts under autocast.

    Args:
        tensors: on one device.

    Returns:
        The tensors, in autocast's dtype where it is on for their device; float64 stays.
    """
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors
    )


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Switch autocast off.

    Args:
        device: for whose kind.

    Returns:
        A context manager.
    """
    is_known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type if is_known else "cpu", enabled=False)


_LIBRARY = torch.library.Library("long_context", "FRAGMENT")


def _define(name, function, results):
    """The op, registered piece by piece: `custom_op` would load torch.compile's modules at the
    first call, seconds and megabytes that a process without torch.compile does not need."""
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))

    def plain(*arguments):
        with without_autocast(arguments[0].device):
            return function(*arguments)

    _LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    op = getattr(torch.ops.long_context, name).default
    torch.library.register_fake(op, results, lib=_LIBRARY)
    names = list(inspect.signature(function).parameters)
    torch.library.register_vmap(op, functools.partial(_fold, op, names), lib=_LIBRARY)
    return op


def _of_backward(forward: inspect.Signature) -> inspect.Signature:
    """The signature of the backward pass, by that of the forward pass."""
    q, k, v, *rest = forward.parameters.values()
    grad_out, out, lse = (q.replace(name=name) for name in ("grad_out", "out", "lse"))
    grad_lse = q.replace(name="grad_lse", annotation=torch.Tensor | None)
    return forward.replace(
        parameters=(grad_out, grad_lse, q, k, v, out, lse, *rest),
        return_annotation=tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    )


def _empty_gradients(grad_out, grad_lse, q, k, v, *_):
    return tuple(packed_like(x) for x in (q, k, v))


def _keep(ctx, inputs, output):
    """Save all tensors for `_gradients`, the results first."""
    ctx.set_materialize_grads(False)
    is_tensor = [isinstance(x, torch.Tensor) for x in inputs]
    pairs = list(zip(inputs, is_tensor, strict=True))
    ctx.save_for_backward(*output, *(x for x, flag in pairs if flag))
    ctx.kept = SimpleNamespace(
        is_tensor=is_tensor, others=[None if flag else x for x, flag in pairs], outs=len(output)
    )


def _gradients(backward, ctx, grad_out, grad_lse):
    out, lse, *tensors = ctx.saved_tensors
    tensors = iter(tensors)
    kept = zip(ctx.kept.is_tensor, ctx.kept.others, strict=True)
    q, k, v, *rest = (next(tensors) if flag else x for flag, x in kept)
    nothing = (None,) * len(rest)
    if grad_out is None and grad_lse is None:
        return (None,) * 3 + nothing
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    if rest[0] is not None and lse.shape[-1]:
        # Rows without keys, of which padding makes many, ignore their cotangents, even NaN.
        is_empty = lse.isneginf()
        grad_out = grad_out.masked_fill(is_empty.mT[..., None], 0.0)
        grad_lse = None if grad_lse is None else grad_lse.masked_fill(is_empty, 0.0)
    return *backward(grad_out, grad_lse, q, k, v, out, lse, *rest), *nothing


def _function(name, forward, backward):
    """An autograd.Function that torch.func can transform."""

    members = {
        "generate_vmap_rule": False,
        "forward": staticmethod(lambda *arguments: forward(*arguments)),
        "setup_context": staticmethod(_keep),
        "backward": staticmethod(backward),
        "jvp": staticmethod(lambda *_: _refuse_forward_mode(name)),
    }
    function = type(name, (torch.autograd.Function,), members)
    names = [argument.name for argument in forward._schema.arguments]
    function.vmap = staticmethod(functools.partial(_fold, function.apply, names))
    return function


def _refuse_forward_mode(name: str):
    raise UnsupportedBackend(
        f"long_context::{name} has no forward-mode derivative; the backends 'gather' "
        "(dilated) and 'eager' (dense) have one"
    )


def _fold(op, names: list[str], info, in_dims, *arguments):
    """The vmap rule: the mapped dimension is folded into the batch."""
    size, folded = info.batch_size, []
    for name, x, dim in zip(names, arguments, in_dims, strict=True):
        if isinstance(x, torch.Tensor) and name in _OF_TOKENS:
            x = (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        elif isinstance(x, torch.Tensor) and dim is not None:
            raise UnsupportedBackend(f"vmap over {name}: only tensors of tokens can be mapped")
        folded.append(x)
    results = op(*folded)
    return tuple(x.unflatten(0, (size, -1)) for x in results), (0,) * len(results)
