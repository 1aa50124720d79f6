"""Random hardware configurations and random, adversarial work for the engine."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from ..golden.array import STYLES
from ..golden.bfp import code_limits
from ..golden.config import ConfigError, HardwareConfig
from ..golden.fixed import ACCUMULATORS, FixedFormat
from ..golden.floats import FLOAT32, SCALE_FORMATS
from ..golden.passes import Drain, Pass
from ..golden.pipeline import PIPELINES

__all__ = ["random_config", "random_drains", "random_feet", "random_passes"]


def random_config(rng: Generator, macs: int = 64) -> HardwareConfig:
    """Rows and columns with at most `macs` elements; every width, format and style but
    ternary ones."""
    # About square, or of any shape down to one row or column.
    rows = round(macs ** (rng.uniform(0.3, 0.7) if rng.random() < 0.6 else rng.random()))
    cols = int((macs / rows) ** rng.uniform(0.6, 1))
    if cols < rows and rng.random() < 0.7:
        rows -= rows % cols  # so that blocks can be drained whatever the accumulators hold
    config = HardwareConfig(
        rows=rows,
        cols=cols,
        weight_bits=int(rng.integers(2, 9)),
        act_bits=int(rng.integers(2, 9)),
        scale=str(rng.choice(["bf16", "e8m0", "bf16", "e8m0", "fp16", "fp32"])),
        accumulator_depth=max(int(rng.integers(16, 100)), -(-rows // cols)),
        bus_bits=int(rng.choice([32, 64, 128])),
        multiplier="lut" if rng.random() < 0.75 else "dsp",
        scale_multiplier="dsp" if rng.random() < 0.75 else "lut",
    )
    if rng.random() < 0.4:
        config = replace(config, accumulator=str(rng.choice(ACCUMULATORS[1:])))
    if rng.random() < 0.6:
        # Random weights have the code -2, which ternary elements lack.
        others = [style for style in STYLES if style != "ecp5-ternary"]
        config = _with(config, multiplier=str(rng.choice(others)))
    return config


def _with(config: HardwareConfig, **changes: Any) -> HardwareConfig:
    """`config` with the changes, if its other keys allow them."""
    try:
        return replace(config, **changes)
    except ConfigError:
        return config


def random_feet(rng: Generator, config: HardwareConfig) -> HardwareConfig:
    """`config` with any cuts in its scale units and, if operands fit, instanced DSP blocks."""
    config = replace(config, pipeline=str(rng.choice(list(PIPELINES))))
    return _with(config, scale_multiplier="ecp5-dsp") if rng.random() < 0.4 else config


def _scales(rng: Generator, config: HardwareConfig) -> np.ndarray:
    form = SCALE_FORMATS[config.scale]
    kind = rng.random()
    if isinstance(config.accumulator_format, FixedFormat) and kind > 0.4:
        # Products somewhere on the grid.
        values = 2.0 ** rng.integers(0, config.accumulator_format.bits - 8)
        return form.round(values * rng.uniform(0, 1, config.cols))
    if kind < 0.1:
        values = np.zeros(config.cols)
    elif kind < 0.3:
        # Anywhere in the format, its ends included.
        codes = rng.integers(0, 1 << form.storage_bits, config.cols)
        top = (1 << form.exponent_bits) - 1
        codes[(codes >> form.fraction_bits) & top == top] = 0
        return form.decode(codes)
    else:
        values = rng.normal(size=config.cols) * 2.0 ** rng.integers(-10, 8, config.cols)
    return form.round(values if form.signed else np.abs(values))


def _lanes(rng: Generator, config: HardwareConfig, pixels: int, signed: bool) -> np.ndarray:
    low, high = code_limits(config.act_bits, signed)
    lanes = rng.integers(low, high + 1, (pixels, config.rows))
    kind = rng.random(pixels)
    lanes[kind < 0.15] = 0
    lanes[kind > 0.9] = high
    lanes[(kind > 0.8) & (kind <= 0.9)] = low
    return lanes.astype(np.int16)


def _exponents(rng: Generator, pixels: int) -> np.ndarray:
    kind = rng.random()
    if kind < 0.15:
        return rng.choice([0, 1, 2, 254, 255], pixels).astype(np.uint8)
    if kind < 0.3:
        return rng.integers(0, 256, pixels).astype(np.uint8)
    return rng.integers(110, 140, pixels).astype(np.uint8)


def _biases(rng: Generator, config: HardwareConfig) -> np.ndarray:
    form, kind = config.accumulator_format, rng.random()
    if isinstance(form, FixedFormat):
        bits = rng.integers(0, 1 << form.kept_bits, config.cols)
        bits >>= rng.integers(0, form.kept_bits, config.cols)
        if kind < 0.15:
            bits[:] = 1 << form.kept_bits - 1
        return form.decode(np.where(rng.random(config.cols) < 0.5, bits, -bits))
    if kind < 0.15:
        return np.full(config.cols, -FLOAT32.largest, np.float32)
    if kind < 0.3:
        return np.zeros(config.cols, np.float32)
    scale = 2.0 ** rng.integers(-126, 127, config.cols) if kind < 0.45 else 1.0
    return FLOAT32.round(rng.normal(size=config.cols) * scale)


def random_passes(
    rng: Generator, config: HardwareConfig, count: int, *, same_addresses: bool = False
) -> list[Pass]:
    """Passes of 1 to twice as many pixels as an accumulator takes to be updated.

    Operands include extremes, zero blocks, the ends of the exponent range, and passes that undo the
    one before them. With `same_addresses` every pass visits accumulators 0, 1, 2, … once.
    """
    depth = config.accumulator_depth
    low, high = -(1 << (config.weight_bits - 1)), (1 << (config.weight_bits - 1)) - 1
    most = min(2 * config.scale_unit.revisit, depth)
    passes: list[Pass] = []
    for index in range(count):
        pixels = int(rng.integers(1, most + 1))
        if same_addresses:
            addresses = np.arange(pixels)
        elif rng.random() < 0.7:
            addresses = (int(rng.integers(depth)) + np.arange(pixels)) % depth
        else:
            addresses = rng.integers(0, depth, pixels)
        codes = rng.integers(low, high + 1, (config.rows, config.cols))
        if rng.random() < 0.2:
            codes[:] = rng.choice([low, high, 0], config.cols)
        signed = bool(rng.integers(2))
        scales, lanes = _scales(rng, config), _lanes(rng, config, pixels, signed)
        exponents = _exponents(rng, pixels)
        if passes and rng.random() < 0.2 and not same_addresses:
            before = passes[-1]
            codes, scales = np.clip(-before.codes.astype(np.int64), low, high), before.scales
            lanes, exponents, signed = before.lanes, before.exponents, before.signed
            addresses, pixels = before.addresses, before.pixels
        start = index == 0 or bool(rng.random() < 0.25)
        passes.append(
            Pass(
                codes.astype(np.int8),
                scales,
                _biases(rng, config) if start else None,
                lanes,
                exponents,
                addresses,
                signed,
                bool(rng.random() < 0.2),
                rng.random(pixels) < 0.2,
            )
        )
    return passes


def random_drains(rng: Generator, config: HardwareConfig) -> list[Drain]:
    """Drains of every accumulator: raw and, where a block's rows are full, requantized."""
    depth, spec = config.accumulator_depth, config.requantizer
    drains = [Drain(np.arange(depth), "raw")]
    if config.cols >= config.rows or config.rows % config.cols == 0:
        rows = rng.permutation(depth // spec.beats_per_block * spec.beats_per_block)
        drains += [Drain(rows, "unsigned"), Drain(rows[::-1].copy(), "signed")]
    return drains
