"""ATen operators that only move data; they are executed on addresses (:mod:`.arrange`)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .arrange import ZERO

__all__ = ["ALIASES", "INDICES", "MOVES", "zeros"]

ATEN = torch.ops.aten

ALIASES = frozenset(
    {
        ATEN.clone.default,
        ATEN.alias.default,
        ATEN.detach.default,
        ATEN.contiguous.default,
        ATEN.lift_fresh_copy.default,
        ATEN.native_dropout.default,
        ATEN._to_copy.default,
        ATEN.to.dtype,
    }
)
"""Operators whose result is their first argument, if their other arguments allow it."""


def zeros(*shape: int) -> torch.Tensor:
    """Addresses of zeros."""
    return torch.full(shape, ZERO)


def _pad(x: torch.Tensor, pad: list[int], value: float | None = None) -> torch.Tensor:
    if value:
        raise ValueError(f"value={value} is not supported; pad with zeros")
    return torch.nn.functional.pad(x, pad, value=ZERO)


def _pad_mode(
    x: torch.Tensor, pad: list[int], mode: str = "constant", value: float | None = None
) -> torch.Tensor:
    if mode != "constant":
        raise ValueError(f"mode={mode!r} is not supported; pad with zeros")
    return _pad(x, pad, value)


def _zeros_like(x: torch.Tensor, **_: object) -> torch.Tensor:
    return zeros(*x.shape)


def _new_zeros(x: torch.Tensor, size: list[int], **_: object) -> torch.Tensor:
    return zeros(*size)


MOVES: Mapping[object, Callable[..., Any]] = {
    **{
        overload: overload
        for overload in (
            ATEN.reshape.default,
            ATEN.view_as.default,
            ATEN.reshape_as.default,
            ATEN.flatten.using_ints,
            ATEN.unflatten.int,
            ATEN.transpose.int,
            ATEN.permute.default,
            ATEN.movedim.int,
            ATEN.movedim.intlist,
            ATEN.t.default,
            ATEN.squeeze.default,
            ATEN.squeeze.dim,
            ATEN.squeeze.dims,
            ATEN.unsqueeze.default,
            ATEN.slice.Tensor,
            ATEN.select.int,
            ATEN.narrow.default,
            ATEN.index_select.default,
            ATEN.index.Tensor,
            ATEN.split.Tensor,
            ATEN.split.sizes,
            ATEN.split_with_sizes.default,
            ATEN.chunk.default,
            ATEN.unbind.int,
            ATEN.tensor_split.sections,
            ATEN.tensor_split.indices,
            ATEN.cat.default,
            ATEN.concat.default,
            ATEN.stack.default,
            ATEN.expand.default,
            ATEN.expand_as.default,
            ATEN.repeat.default,
            ATEN.repeat_interleave.self_int,
            ATEN.tile.default,
            ATEN.flip.default,
            ATEN.roll.default,
            ATEN.channel_shuffle.default,
            ATEN.native_channel_shuffle.default,
            ATEN.pixel_shuffle.default,
            ATEN.pixel_unshuffle.default,
            ATEN.slice_scatter.default,
            ATEN.select_scatter.default,
            ATEN.copy.default,
            ATEN.unfold.default,
        )
    },
    # Addresses need not lie in memory as the activations did.
    ATEN.view.default: ATEN.reshape.default,
    ATEN._unsafe_view.default: ATEN.reshape.default,
    ATEN.pad.default: _pad_mode,
    ATEN.constant_pad_nd.default: _pad,
    ATEN.zeros_like.default: _zeros_like,
    ATEN.new_zeros.default: _new_zeros,
}
"""Operators, and what to execute on addresses instead of activations."""

INDICES = frozenset({"index", "indices"})
"""Their arguments that say where, and hold no data."""
