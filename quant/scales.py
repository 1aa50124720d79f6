"""How the codes and the scales of weight blocks are chosen."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..golden.floats import BF16, ScaleFormat
from ..golden.vqk import Recipe, VariableQuantizedKernel

__all__ = ["Method", "encode", "encode_with_bias"]

Method = Literal["l2", "kl", "joint"]


def encode(
    weight: NDArray,
    *,
    weight_bits: int,
    block: int,
    groups: int = 1,
    method: Method = "l2",
    recipe: Recipe = "R",
    scale_format: ScaleFormat = BF16,
) -> VariableQuantizedKernel:
    """Quantize a float kernel."""
    if method != "l2":
        raise ValueError(f"method must be l2, not {method!r}")
    return VariableQuantizedKernel.quantize(
        weight,
        weight_bits=weight_bits,
        block=block,
        groups=groups,
        recipe=recipe,
        scale_format=scale_format,
    )


def encode_with_bias(
    weight: NDArray, **options
) -> tuple[VariableQuantizedKernel, NDArray[np.float64]]:
    """As :func:`encode`, and a bias for every block."""
    kernel = encode(weight, **options)
    return kernel, np.zeros(kernel.scales.shape)
