"""Layers of the machine in floating point, before their weights are encoded."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frontend.graph import Coded, Padding
from ..golden.layers import Reduce

__all__ = ["UNLIMITED", "FloatLayer", "FloatTerm"]

UNLIMITED = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class FloatTerm:
    """One convolution of a layer, as :class:`..golden.layers.Term` but in floating point.

    Parameters
    ----------
    source : tensor that it reads
    weight : (Co, Ci / groups, Kh, Kw)
    stride, padding, dilation, groups : as of the convolution
    constant : the weights are 0 or one constant by construction (identity, pool), not learnt
    coded : the weight as codes, where it was made of codes; they are not chosen again
    """

    source: str
    weight: NDArray[np.floating]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    constant: bool = False
    coded: Coded | None = None

    def scaled(self, scale: NDArray[np.float64]) -> "FloatTerm":
        """The term times ``scale`` (Co,)."""
        factors = scale[:, None, None, None]
        coded = None if self.coded is None else self.coded.scaled(factors)
        return replace(self, weight=self.weight * factors, coded=coded)


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A layer of the machine in floating point: ``clamp(bias + sum of terms)`` or their maximum.

    `limits` are what the result is clamped to; a ReLU is ``(0, inf)``. `macs_per_pixel` are the
    weights of the convolutions and linear layers that it computes. `signed` results are stored with
    a sign even where no image gives negative ones.
    """

    name: str
    terms: tuple[FloatTerm, ...]
    bias: NDArray[np.floating]
    reduce: Reduce = "add"
    limits: tuple[float, float] = UNLIMITED
    macs_per_pixel: int = 0
    signed: bool = False

    @property
    def relu(self) -> bool:
        """Whether no result is negative."""
        return self.limits[0] >= 0

    @property
    def sums(self) -> bool:
        """Whether the result is a sum, which more can be added to."""
        return self.reduce == "add" and self.limits == UNLIMITED

    @property
    def foldable(self) -> bool:
        """Whether a channel-wise affine map of the result can move into the weights."""
        return self.sums and not any(term.constant for term in self.terms)

    def scaled(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> "FloatLayer":
        """The layer followed by ``scale * y + shift``, channel by channel."""
        terms = tuple(term.scaled(scale) for term in self.terms)
        return replace(self, terms=terms, bias=self.bias * scale + shift)

    def clamped(self, low: float, high: float) -> "FloatLayer":
        """The layer followed by ``clamp(y, low, high)``."""
        ends = [min(max(end, low), high) for end in self.limits]
        return replace(self, limits=(ends[0], ends[1]))

    def single(self) -> "FloatLayer":
        """The layer in float32. Raises ``ValueError`` if folding overflowed."""
        with np.errstate(over="ignore"):
            terms = tuple(replace(t, weight=t.weight.astype(np.float32)) for t in self.terms)
            bias = self.bias.astype(np.float32)
        if not all(np.isfinite(values).all() for values in (bias, *(t.weight for t in terms))):
            raise ValueError(f"layer {self.name!r}: its folded weights or biases are not finite")
        return replace(self, terms=terms, bias=bias)
