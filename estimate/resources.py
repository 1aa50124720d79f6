"""LUTs, flip-flops, DSP blocks, block RAMs and clock of an accelerator, without synthesis."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ..golden.config import HardwareConfig
from .fabric import FABRICS
from .structure import UNITS, program_queue

__all__ = ["Area", "UnitArea", "area", "calibrated", "clock_paths", "clocked", "covers"]

CALIBRATION = "calibration.json"


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
        fmax = 1000 / max(period[path] for path in clock_paths(config))
    dsp, bram = (sum(getattr(each, kind) for each in found.values()) for kind in ("dsp", "bram"))
    return Area(round(lut), round(ff), dsp, bram, fmax, found)


def clock_paths(config: HardwareConfig) -> list[str]:
    """The paths of which the slowest one limits the clock on ECP5: that of the control, and those
    behind block RAMs, which are slow to give what they hold.

    Instructions are judged as they leave one. Accumulators are clamped as they are drained, where
    no register precedes the clamp, and their exponents are compared and subtracted, where none
    precedes the adder.
    """
    fabric, unit = FABRICS["ecp5"], config.scale_unit
    memories = UNITS["scale_unit"](config).memories
    late = any(fabric.memory(memory).block for _, memory in memories)
    paths = {
        "control": True,
        "instructions from block RAM": fabric.memory(program_queue(config)).block,
        "clamp behind block RAM": late and config.clamp and unit.drain_cycles == 1,
        "exponents from block RAM": late and not unit.cuts and config.accumulator == "float32",
    }
    return [name for name, present in paths.items() if present]


def _priced(terms: Mapping[str, float], costs: Mapping[str, float]) -> float:
    return sum(amount * costs.get(name, 0.0) for name, amount in terms.items())


@cache
def _calibration() -> dict[str, Any]:
    """By family: cost of every term of every unit, for LUTs and flip-flops."""
    text = (files("shiftcore.estimate") / CALIBRATION).read_text(encoding="utf-8")
    return json.loads(text)["families"]
