"""Folding the network input: every window of the image as the channels of one pixel (im2col).

A first convolution reads few channels, which leave most lanes of a block empty at each of its
kernel positions. Folded, the windows fill the lanes and the convolution is a 1x1 convolution of
``C * Kh * Kw`` channels. The padding is the integer 0, exactly, because one exponent serves all
pixels of the fixed-point image.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fold"]


@dataclass(frozen=True)
class Fold:
    """The window that became channels.

    Parameters
    ----------
    kernel, stride, dilation : (vertical, horizontal)
    padding : (top, bottom, left, right), zeros; a negative number cuts rows or columns off
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(*self.kernel, *self.stride, *self.dilation) < 1:
            raise ValueError(
                "kernel, stride and dilation of a folded input must be at least 1, not "
                f"{self.kernel!r}, {self.stride!r}, {self.dilation!r}"
            )

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C * Kh * Kw, Ho, Wo) of an image (C, H, W). Raises ``ValueError`` if it is empty."""
        top, bottom, left, right = self.padding
        padded = (shape[1] + top + bottom, shape[2] + left + right)
        height, width = (
            (padded[i] - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        if height < 1 or width < 1:
            raise ValueError(f"a {self.kernel} window does not fit an image of {shape[1:]}")
        return shape[0] * self.kernel[0] * self.kernel[1], height, width

    def compute(self, x: NDArray) -> NDArray:
        """(N, C, H, W) to (N, C * Kh * Kw, Ho, Wo); channels in the order (C, Kh, Kw)."""
        images, channels = x.shape[:2]
        _, height, width = self.shape((channels, *x.shape[2:]))
        top, _, left, _ = self.padding
        rows, inside_y = self._positions(0, height, x.shape[2], top)
        columns, inside_x = self._positions(1, width, x.shape[3], left)
        # (N, C, Kh, Ho, Kw, Wo)
        windows = x[:, :, rows[:, :, None, None], columns]
        windows = windows * (inside_y[:, :, None, None] & inside_x).astype(x.dtype)
        windows = windows.transpose(0, 1, 2, 4, 3, 5)
        return np.ascontiguousarray(windows).reshape(images, -1, height, width)

    def _positions(self, axis: int, count: int, size: int, before: int) -> tuple[NDArray, NDArray]:
        """(K, count) pixel positions along an axis, moved inside, and whether they were inside."""
        at = np.arange(count) * self.stride[axis] - before
        at = at + np.arange(self.kernel[axis])[:, None] * self.dilation[axis]
        return np.clip(at, 0, size - 1), (at >= 0) & (at < size)
