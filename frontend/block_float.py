"""Block floating point in torch, and the operator that stands for it in exported programs.

``torch.ops.shiftcore.block_float`` gives the values that :class:`..golden.bfp.BlockFloat` would
store. Its gradient is 1: straight through the rounding and the saturation.
"""

import torch

from ..golden.bfp import BlockFloat, unit_exponent

__all__ = ["BLOCK_FLOAT", "channel_blocks", "mantissas", "power_of_two"]

SMALLEST = 2.0**-126
"""smallest normal number of float32"""


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """``2.0**exponents`` in float64, exactly, of integers from -1022 to 1023."""
    return ((exponents.long() + 1023) << 52).view(torch.float64)


def channel_blocks(x: torch.Tensor, block: int) -> torch.Tensor:
    """(C, N, H, W) to (blocks, B, N, H, W), the last block filled up with zeros."""
    missing = -len(x) % block
    return torch.nn.functional.pad(x, (0, 0) * 3 + (0, missing)).unflatten(0, (-1, block))


def mantissas(spec: BlockFloat, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """MAX, SHIFT and MASK of (C, N, H, W) values, each normal in float32 or zero.

    Gives the codes before saturation, (blocks, B, N, H, W) float64 integers, and the exponent
    fields, (blocks, N, H, W) int32.
    """
    lanes = channel_blocks(x if spec.signed else x.clamp(min=0), spec.block)
    largest = lanes.abs().amax(1).double()
    fields = ((largest.view(torch.int64) >> 52) - (1023 - 127)).clamp(min=0).int()
    scaled = lanes * power_of_two(127 + spec.magnitude_bits - 1 - fields)[:, None]
    return scaled.round() if spec.rounding == "nearest" else scaled.trunc(), fields


@torch.library.custom_op("shiftcore::block_float", mutates_args=())
def _block_float(
    x: torch.Tensor, block: int, bits: int, signed: bool, rounding: str
) -> torch.Tensor:
    """(N, C, H, W) or (N, C), in the type of `x`; the arguments are those of ``BlockFloat``.

    Subnormal values are 0, as in the accelerator.

    Raises ``ValueError`` if a value is not finite or a parameter is out of its range.
    """
    spec = BlockFloat(block, bits, signed, rounding)  # pyright: ignore[reportArgumentType]
    if x.dim() not in (2, 4):
        raise ValueError(f"x must be (N, C, H, W) or (N, C), not {tuple(x.shape)}")
    single = x.float()
    if not single.isfinite().all():
        raise ValueError("a non-finite value has no block floating-point code")
    single = torch.where(single.abs() < SMALLEST, 0.0, single)
    images = single if x.dim() == 4 else single[:, :, None, None]
    codes, fields = mantissas(spec, images.transpose(0, 1))
    limit = (1 << spec.magnitude_bits) - 1
    units = power_of_two(fields + unit_exponent(bits, signed))
    stored = codes.clamp(-limit, limit) * units[:, None]
    result = torch.empty_like(x)
    return result.copy_(stored.flatten(0, 1)[: x.shape[1]].transpose(0, 1).reshape(x.shape))


@_block_float.register_fake
def _(x, block, bits, signed, rounding):
    return torch.empty_like(x)


_block_float.register_autograd(lambda ctx, gradient: (gradient, None, None, None, None))

BLOCK_FLOAT = torch.ops.shiftcore.block_float.default
"""the operator, as it stands in exported programs"""
