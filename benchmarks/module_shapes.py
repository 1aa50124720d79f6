"""The kernels of a torch module, found without computing a number."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from shiftcore.quant.accounting import KernelShape

__all__ = ["module_kernels"]


def module_kernels(model: nn.Module, image: tuple[int, int, int]) -> tuple[KernelShape, ...]:
    """The ``nn.Conv2d`` and ``nn.Linear`` of a network, in the order of their first use.

    The network runs once on tensors without data ("meta"); it is left as it is.

    Parameters
    ----------
    model : on any device, that one included
    image : (C, H, W)
    """
    found: dict[str, KernelShape] = {}

    def record(name: str, part: nn.Module, _: Any, result: torch.Tensor) -> None:
        assert isinstance(part, nn.Conv2d | nn.Linear)
        filters, depth = part.weight.shape[:2]
        pixels = result[0].numel() // filters
        if name in found:
            pixels += found[name].pixels
        taps = part.weight[0, 0].numel()
        groups = part.groups if isinstance(part, nn.Conv2d) else 1
        found[name] = KernelShape(name, filters, depth, taps, groups, pixels)

    hooks = [
        part.register_forward_hook(partial(record, name))
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
    try:
        state = {
            name: torch.empty_like(value, device="meta")
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }
        with torch.no_grad():
            functional_call(model, state, torch.empty(1, *image, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(found.values())
