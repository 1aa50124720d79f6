"""Where the channels and pixels of an activation are stored.

Concatenation, slices, channel pads, shuffles and subsampling compute nothing. They only change
where the next layer finds its channels, and become part of its weights and of its stride.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "Layout", "Part", "Window", "plain", "window"]

NOTHING = -1


class Axis(NamedTuple):
    """Position `i` of the activation is position ``offset + stride * i`` of the tensor."""

    offset: int = 0
    stride: int = 1


class Part(NamedTuple):
    """A tensor that an activation is read from, and which of its pixels."""

    tensor: str
    rows: Axis = Axis()
    columns: Axis = Axis()


@dataclass(frozen=True, eq=False)
class Layout:
    """An activation (C, H, W) as parts of tensors.

    Parameters
    ----------
    parts : what is read; a pixel outside a tensor is 0
    source, channel : (C,) int, of every channel its part, -1 for zeros, and its place there
    size : (H, W)
    """

    parts: tuple[Part, ...]
    source: NDArray[np.int64]
    channel: NDArray[np.int64]
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.source.size, *self.size

    @property
    def whole(self) -> str | None:
        """The tensor whose channels these are, all of them in their order."""
        if len(self.parts) != 1 or self.source.any():
            return None
        in_order = np.array_equal(self.channel, np.arange(self.channel.size))
        return self.parts[0].tensor if in_order else None

    def channels(self, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The channels that a part gives, and their places in its tensor."""
        (chosen,) = np.nonzero(self.source == part)
        return chosen, self.channel[chosen]

    @property
    def has_zeros(self) -> bool:
        return bool((self.source == NOTHING).any())

    @property
    def repeats(self) -> bool:
        """Whether a channel of a part is there twice."""
        places = np.stack([self.source, self.channel])[:, self.source != NOTHING]
        return np.unique(places, axis=1).shape[1] < places.shape[1]


def plain(tensor: str, shape: Sequence[int]) -> Layout:
    """A tensor (C, H, W) as it is."""
    channels, height, width = shape
    return Layout(
        (Part(tensor),), np.zeros(channels, np.int64), np.arange(channels), (height, width)
    )


class Window(NamedTuple):
    """One axis of a convolution."""

    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1

    def count(self, size: int) -> int:
        """Positions of the window on `size` pixels."""
        span = self.dilation * (self.kernel - 1) + 1
        return (size + self.before + self.after - span) // self.stride + 1


def window(on: Window, axis: Axis, size: int, extent: int, border: bool = False) -> Window | None:
    """The window on a tensor's `extent` pixels that sees what `on` sees on an activation's `size`.

    None if there is no such window: if pixels of the tensor would be seen where the activation has
    ended. With `border`, also if zeros around the tensor belong to the activation.
    """
    if axis == Axis() and size == extent:
        return on
    count = on.count(size)
    seen = np.arange(count)[:, None] * on.stride + np.arange(on.kernel) * on.dilation - on.before
    inside = (seen >= 0) & (seen < size)
    at = axis.offset + axis.stride * seen
    stored = (at >= 0) & (at < extent)
    if (stored & ~inside).any() or (border and (inside & ~stored).any()):
        return None
    stride, dilation = on.stride * axis.stride, on.dilation * axis.stride
    if on.kernel == 1:
        dilation = 1
    if count == 1:
        stride = 1
    before = on.before * axis.stride - axis.offset
    end = stride * (count - 1) + dilation * (on.kernel - 1) + 1
    return Window(on.kernel, stride, before, end - extent - before, dilation)
