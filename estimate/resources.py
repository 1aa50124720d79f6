"""LUTs, flip-flops, DSP blocks, block RAMs and clock of an accelerator, without synthesis."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any

from ..golden.config import HardwareConfig
from ..golden.scale_unit import BLOCK_BITS, FixedProductSpec
from .fabric import FABRICS
from .structure import UNITS, booth_rows, program_queue

__all__ = ["Area", "UnitArea", "area", "calibrated", "clock_paths", "clocked", "covers"]

CALIBRATION = "calibration.json"
LONG_BURST = 8
"""Beats. Longer bursts were not found to be chosen faster."""


@dataclass(frozen=True)
class UnitArea:
    """What one unit takes, all its copies together; LUTs and flip-flops are estimates."""

    lut: float
    ff: float
    dsp: int
    bram: int


@dataclass(frozen=True)
class Area:
    """What an accelerator takes, in the family's units (``toolchain/devices.py``).

    Parameters
    ----------
    lut, ff : estimates
    dsp, bram : by the rules of yosys for shapes of memories and products
    fmax_mhz : estimate on the fastest ECP5; ``None`` for other families
    units : of what the sums are made, by name
    """

    lut: int
    ff: int
    dsp: int
    bram: int
    fmax_mhz: float | None
    units: Mapping[str, UnitArea]


def calibrated() -> tuple[str, ...]:
    """The families that can be estimated."""
    return tuple(_calibration())


def clocked() -> tuple[str, ...]:
    """The families of which the clock can be estimated."""
    return tuple(family for family, costs in _calibration().items() if costs.get("period_ns"))


def covers(config: HardwareConfig, family: str) -> bool:
    """Whether the accelerator of `config` can be estimated on `family`: whether all that it is made
    of was fitted."""
    costs = _calibration().get(family)
    if costs is None or any(needed != family for needed in config.families.values()):
        return False
    return all(
        term in costs[kind]["shared"] or term in costs[kind][name]
        for name, unit in UNITS.items()
        for kind, terms in zip(("lut", "ff"), unit(config).mapped(FABRICS[family])[:2], strict=True)
        for term, amount in terms.items()
        if amount
    )


def area(config: HardwareConfig, family: str) -> Area:
    """What the accelerator of `config` takes on `family`: the sum over its units.

    Raises ``ValueError`` if the family, or a form of a unit, is not calibrated.
    """
    known = _calibration()
    if family not in known:
        raise ValueError(
            f"resources are calibrated for {', '.join(known) or 'no family'}, not for {family!r}"
        )
    if not covers(config, family):
        if covers(replace(config, control="queued"), family):
            raise ValueError(
                f"resources are not calibrated for control {config.control!r} on {family}"
            )
        raise ValueError(
            f"resources are not calibrated for multiplier {config.multiplier!r} with "
            f"{config.accumulator} accumulators, scale_multiplier {config.scale_multiplier!r} and "
            f"pipeline {config.pipeline!r} on {family}"
        )
    costs = known[family]
    found = {}
    for name, unit in UNITS.items():
        lut, ff, dsp, bram = unit(config).mapped(FABRICS[family])
        luts, ffs = (
            _priced(terms, costs[kind]["shared"] | costs[kind][name])
            for kind, terms in (("lut", lut), ("ff", ff))
        )
        found[name] = UnitArea(luts, ffs, dsp, bram)
    lut, ff = (sum(getattr(each, kind) for each in found.values()) for kind in ("lut", "ff"))
    period = costs.get("period_ns")
    fmax = None
    if period:
        paths = clock_paths(config)
        # A part that was not fitted is an error: it does take time.
        fmax = 1000 / max(sum(n * period[part] for part, n in path.items()) for path in paths)
    dsp, bram = (sum(getattr(each, kind) for each in found.values()) for kind in ("dsp", "bram"))
    return Area(round(lut), round(ff), dsp, bram, fmax, found)


def clock_paths(config: HardwareConfig) -> list[dict[str, float]]:
    """The paths of which the slowest one limits the clock on ECP5: each takes the sum of what it is
    made of, an amount times a cost in ns.

    That of either control is the choice of the next burst to read, which takes longer where bursts
    are short. Block RAMs are slow to give what they hold: instructions are judged as they leave
    one; accumulators are clamped as they are drained, where no register precedes the clamp, and
    their exponents are compared and subtracted, where none precedes the adder. The rest is the
    multiplication by a scale.
    """
    fabric, unit = FABRICS["ecp5"], config.scale_unit
    memories = UNITS["scale_unit"](config).memories
    late = any(fabric.memory(memory).block for _, memory in memories)
    paths = {
        "instructions from block RAM": fabric.memory(program_queue(config)).block,
        "clamp behind block RAM": late and config.clamp and unit.drain_cycles == 1,
        "exponents from block RAM": late and not unit.cuts and config.accumulator == "float32",
    }
    short = max(0.0, log2(LONG_BURST / config.burst_beats))
    return [
        {f"{config.control} control": 1, "short bursts": short},
        *({name: 1.0} for name, present in paths.items() if present),
        *_product_paths(config),
    ]


def _product_paths(config: HardwareConfig) -> list[dict[str, float]]:
    """In LUTs the rows of a product are added one after another, and a float may be normalized in
    the same cycle. So may, in fixed point, exponents be added and an operand be shifted before;
    that is slow in DSP blocks, too, if one is too small for the operand."""
    product = config.scale_unit.product
    if product.scale_bits == 1:
        return []
    fixed = isinstance(product, FixedProductSpec)
    shifted = fixed and "fine" not in product.cuts
    if product.multiplier == "lut":
        rows = booth_rows(product.scale_bits + 1)
        path: dict[str, float] = {"product in LUTs": 1, "product rows": rows}
        if shifted:
            path["shift before rows"] = 1
        elif not fixed and "multiply" not in product.cuts:
            path["normalization after rows"] = 1
        return [path]
    if not shifted or max(product.operand_bits) <= BLOCK_BITS:
        return []
    blocks = UNITS["scale_unit"](config).mapped(FABRICS["ecp5"])[2] // config.cols
    return [{"shift and wide product": 1, "further blocks": blocks - 1}]


def _priced(terms: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(amount * costs.get(name, 0.0) for name, amount in terms.items())


@cache
def _calibration() -> dict[str, Any]:
    """By family: cost of every term of every unit, for LUTs and flip-flops."""
    text = (files("shiftcore.estimate") / CALIBRATION).read_text(encoding="utf-8")
    return json.loads(text)["families"]
