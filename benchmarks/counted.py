"""Kernels, host waits and memory of a step, counted without a GPU.

The real step runs on PyTorch's meta device, which has shapes, dtypes and kernels, and no numbers. Every allocation is
followed from the operation that makes it to the end of its storage. What this cannot count: cuDNN's workspace, the
allocator's fragmentation, the CUDA context (0.3 to 0.6 GB), and kernels inside one of PyTorch's operations.
"""

from __future__ import annotations

import argparse
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

BLOCK = 512  # bytes: the unit of PyTorch's CUDA allocator
VIEWS = {"view", "expand", "t", "transpose", "permute", "slice", "select", "unsqueeze", "squeeze", "detach", "alias",
         "_unsafe_view", "split", "chunk", "as_strided", "lift_fresh", "empty", "empty_like", "empty_strided",
         "_reshape_alias", "unbind", "new_empty", "new_empty_strided", "split_with_sizes", "diagonal"}  # fmt: skip


class Counted(TorchDispatchMode):
    """Kernels on the meta device, and copies that the host waits for (`waits`) or doesn't (`copies`), by operation;
    bytes of the meta device's storages, now (`allocated`) and at most (`peak`).

    A number that the host reads is 0.5, a tensor that it reads is zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.storages: dict[int, int] = {}
        self.allocated = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if "meta" in devices and name == "_local_scalar_dense":
            self.waits[name] += 1
            return 0.5 if args[0].is_floating_point() else 1
        target = kwargs.get("device") if name == "_to_copy" else args[0].device if name == "copy_" else None
        source = args[1 if name == "copy_" else 0].device if target is not None else None
        if target is not None and "meta" in (target.type, source.type) and target.type != source.type:
            late = kwargs.get("non_blocking", len(args) > 2 and args[2])
            (self.copies if late else self.waits)[f"{source.type} to {target.type}"] += 1
            if source.type == "meta":
                if name == "copy_":
                    return args[0]
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "_fused_adamw_" and "meta" in devices:
            self.kernels[name] += 1
            return None
        if torch.is_inference_mode_enabled():  # where operations that are made of others arrive whole
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.device.type == "meta"]
        for output in outputs:
            self.hold(output)
        if outputs and name not in VIEWS:
            self.kernels[name] += 1
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count the tensor's storage until it ends."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if key not in self.storages:
            self.storages[key] = size
            weakref.finalize(storage, self.release, key).atexit = False
            self.allocated += size
            self.peak = max(self.peak, self.allocated)

    def release(self, key: int) -> None:
        self.allocated -= self.storages.pop(key)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention by the kernels that a GPU has; on the meta device PyTorch takes matrix products.
    Flash attention in half precision without a mask, else the memory-efficient one.
    """
    qkv = query, key, value
    if query.device.type != "meta":
        return _attention(*qkv, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if query.dtype in (torch.float16, torch.bfloat16) and attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(*qkv, dropout_p, is_causal, scale=scale)[0]
    saved = torch.is_grad_enabled()
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        *qkv, attn_mask, saved, dropout_p, is_causal, scale=scale
    )[0]


_attention, _autocast = F.scaled_dot_product_attention, torch.autocast


@contextmanager
def on_meta() -> Iterator[Counted]:
    """Inside, training computes on the meta device as it would on a GPU: no autocast, late reports, fused and
    grouped kernels, fused attention.
    """

    def context(native: bool, handler: Any) -> Any:  # the meta device has no autocast
        assert native is False or handler.enabled is False
        return autocast("cpu", enabled=False)

    def autocast(kind: str, **more: Any) -> Any:
        return _autocast("cpu" if kind == "meta" else kind, **more)

    states = {state: dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)}

    def restore() -> None:
        for state, values in states.items():
            state._reset_state()
            state._shared_state.update(values)

    def put(place: str, value: object) -> None:
        stack.enter_context(mock.patch(place, value))

    with ExitStack() as stack:
        put("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
        put("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", lambda: ["meta"])
        put("torch.nn.functional.scaled_dot_product_attention", fused_attention)
        put("torch.autocast", autocast)
        put("accelerate.accelerator.get_mixed_precision_context_manager", context)
        for module in ("utils.training.loop", "benchmarks.train_step"):
            put(f"{module}.runs_ahead", lambda kind: True)
        for state in states:
            state._reset_state()
        stack.callback(restore)
        PartialState(cpu=True)
        PartialState._shared_state["device"] = torch.device("meta")
        with Counted() as counted:
            yield counted


def count(make: Callable[[argparse.Namespace, str], Callable[[], object]], args: argparse.Namespace) -> dict[str, Any]:
    """Counts of the second step that `make(args, "meta")` makes: kernels, host waits, TFLOP and GB."""
    with on_meta() as counted:
        step = make(args, "meta")
        step()
        for each in (counted.kernels, counted.waits, counted.copies):
            each.clear()
        counted.peak = before = counted.allocated
        saved = []

        def backward(self: Tensor, *more: Any, **others: Any) -> None:
            saved.append(counted.allocated - before)
            torch.autograd.backward(self, *more, **others)

        with mock.patch.object(torch.Tensor, "backward", backward):
            step()
        found = {
            "kernels": counted.kernels.total(),
            "host_waits": counted.waits.total(),
            "resident_gb": before / 1e9,
            "saved_gb": saved[0] / 1e9 if saved else 0.0,
            "peak_gb": counted.peak / 1e9,
        }
        with FlopCounterMode(display=False) as work:  # a step of its own: it takes some kernels apart
            step()
        return found | {"tflop": work.get_total_flops() / 1e12}
