"""Weights that are integer codes times scales, as one operator of exported programs.

``torch.ops.shiftcore.expand`` makes the weight of a DSConv layer. It stays one node of an exported
program, so that an archive holds the codes and the scales themselves, and not only their product.
Loading such an archive needs this module.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.vqk import block_map

__all__ = ["EXPAND", "expand", "steps"]


def _along(values: torch.Tensor, index: NDArray[np.int64]) -> torch.Tensor:
    """(Co, n, Kh, Kw) to (Co, m, Kh, Kw): of the filters of every group the entries `index`."""
    grouped = values.unflatten(0, (len(index), -1))
    where = torch.tensor(index, device=values.device)[:, None, :, None, None]
    return grouped.take_along_dim(where, 2).flatten(0, 1)


@torch.library.custom_op("shiftcore::expand", mutates_args=())
def expand(
    codes: torch.Tensor,
    scale: torch.Tensor,
    scale_bias: torch.Tensor | None,
    channel_scale: torch.Tensor,
    weight_bits: int,
    block: int,
    groups: int,
) -> torch.Tensor:
    """``channel_scale * (scale * codes + scale_bias)``, every scale over its weight block.

    Parameters
    ----------
    codes : (Co, Ci / groups, Kh, Kw) int8
    scale, scale_bias : (Co, blocks, Kh, Kw), the kernel shifter (KDS)
    channel_scale : (Co,), the channel shifter (CDS)
    weight_bits, block, groups : as of :class:`..golden.vqk.VariableQuantizedKernel`; weight_bits is
        not computed with, but belongs to the weight
    """
    number = block_map(codes.shape[1], groups, block).number
    # In the memory format of the codes, which compilers are told below.
    weight = torch.empty_like(codes, dtype=scale.dtype)
    torch.mul(codes, _along(scale, number), out=weight)
    if scale_bias is not None:
        weight += _along(scale_bias, number)
    return weight.mul_(channel_scale[:, None, None, None])


@expand.register_fake
def _(codes, scale, scale_bias, channel_scale, weight_bits, block, groups):
    return torch.empty_like(codes, dtype=scale.dtype)


@torch.library.custom_op("shiftcore::block_sums", mutates_args=())
def _block_sums(values: torch.Tensor, blocks: int, block: int, groups: int) -> torch.Tensor:
    """(Co, Ci / groups, Kh, Kw) to (Co, blocks, Kh, Kw), in one order of additions everywhere."""
    channel = block_map(values.shape[1], groups, block).channel
    padded = torch.nn.functional.pad(values, (0, 0, 0, 0, 0, 1))
    return (
        _along(padded, channel.reshape(groups, -1))
        .unflatten(1, channel.shape[1:])
        .sum(2)
        .contiguous()
    )


@_block_sums.register_fake
def _(values, blocks, block, groups):
    return values.new_empty((values.shape[0], blocks, *values.shape[2:]))


def _save_shape(ctx, inputs, output) -> None:
    values, _, ctx.block, ctx.groups = inputs
    ctx.save_for_backward(torch.ones_like(values, dtype=torch.int8))


def _spread(ctx, gradient: torch.Tensor):
    (ones,) = ctx.saved_tensors
    channels = gradient.new_ones(len(gradient))
    return expand(ones, gradient, None, channels, 8, ctx.block, ctx.groups), None, None, None


_block_sums.register_autograd(_spread, setup_context=_save_shape)


def _save(ctx, inputs, output) -> None:
    codes, scale, scale_bias, channel_scale, _, ctx.block, ctx.groups = inputs
    ctx.save_for_backward(codes, scale, scale_bias, channel_scale)


def _gradients(ctx, gradient: torch.Tensor):
    codes, scale, scale_bias, channel_scale = ctx.saved_tensors
    _, by_scale, by_bias, by_channel, *_ = ctx.needs_input_grad
    inner = gradient * channel_scale[:, None, None, None]
    where = scale.shape[1], ctx.block, ctx.groups
    for_scale = _block_sums(inner * codes, *where) if by_scale else None
    for_bias = _block_sums(inner, *where) if by_bias else None
    for_channel = None
    if by_channel:
        one = torch.ones_like(channel_scale)
        weight = expand(codes, scale, scale_bias, one, 8, ctx.block, ctx.groups)
        for_channel = (gradient * weight).sum((1, 2, 3))
    return None, for_scale, for_bias, for_channel, None, None, None


expand.register_autograd(_gradients, setup_context=_save)

EXPAND = torch.ops.shiftcore.expand.default
"""the operator, as it stands in exported programs"""


def steps(
    scale: torch.Tensor, channel_scale: torch.Tensor, number: NDArray[np.int64]
) -> torch.Tensor:
    """What code 1 of every weight stands for, in float64: exact, if the scales are float32.

    `number` is that of the weight's :class:`..golden.vqk.BlockMap`.
    """
    return _along(scale.double(), number) * channel_scale.double()[:, None, None, None]
