"""Shiftcore: from a trained CNN to a bit-exact, block-scaled integer accelerator.

The names below are loaded when first used, so that `import shiftcore` stays light (no torch).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .golden.bfp import BlockFloat
    from .golden.config import HardwareConfig
    from .golden.network import QuantizedNetwork
    from .golden.vqk import VariableQuantizedKernel
    from .quant.convert import quantize
    from .quant.dsconv import DSConv2d, DSConvConfig, DSLinear, quantize_
    from .separable.convert import separate_
    from .separable.design import best_design
    from .separable.module import SeparableConv2d

__all__ = [
    "BlockFloat",
    "DSConv2d",
    "DSConvConfig",
    "DSLinear",
    "HardwareConfig",
    "QuantizedNetwork",
    "SeparableConv2d",
    "VariableQuantizedKernel",
    "best_design",
    "quantize",
    "quantize_",
    "separate_",
]

__version__ = "0.1.0"

_HOMES = {
    "BlockFloat": ".golden.bfp",
    "DSConv2d": ".quant.dsconv",
    "DSConvConfig": ".quant.dsconv",
    "DSLinear": ".quant.dsconv",
    "HardwareConfig": ".golden.config",
    "QuantizedNetwork": ".golden.network",
    "SeparableConv2d": ".separable.module",
    "VariableQuantizedKernel": ".golden.vqk",
    "best_design": ".separable.design",
    "quantize": ".quant.convert",
    "quantize_": ".quant.dsconv",
    "separate_": ".separable.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shiftcore' has no attribute {name!r}")
    # The package by its name: a test collector may import this file under another one.
    value = getattr(importlib.import_module(_HOMES[name], "shiftcore"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
