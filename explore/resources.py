"""What a configuration takes of a target, estimated or synthesized, and what there is of it."""

from dataclasses import dataclass, replace
from typing import Any

from ..estimate.resources import area, calibrated, clocked, covers
from ..golden.config import KEYS, HardwareConfig
from ..toolchain.devices import KINDS, find
from .space import Space

__all__ = ["CLOCKED", "Area", "capacity", "check_estimates", "count", "estimated", "multipliers"]

CLOCKED = "ecp5-85k-8"
"""the device whose clock is estimated"""


@dataclass(frozen=True)
class Area:
    """Units of the target, and the clock; None where it is not estimated."""

    lut: int
    ff: int
    dsp: int
    bram: int
    fmax_mhz: float | None


def estimated(config: HardwareConfig, target: str) -> Area:
    """By the calibrated model, without synthesis, of what is made for the target
    (:meth:`HardwareConfig.on`).

    Raises ``ValueError`` if there is no estimate.
    """
    family = find(target).family
    found = area(config.on(family), family)
    clock = found.fmax_mhz if target == CLOCKED else None
    return Area(found.lut, found.ff, found.dsp, found.bram, clock)


def capacity(target: str, clock: float | None) -> dict[str, int]:
    """What a device holds of each of ``KINDS``; empty for a family.

    Raises ``ValueError`` if there is no estimate for it, or none of its clock and no `clock`.
    """
    device = find(target)
    if device.family not in calibrated():
        raise ValueError(
            f"resources are estimated for {', '.join(calibrated()) or 'no family'}, "
            f"not for {target}"
        )
    if clock is None and (target != CLOCKED or device.family not in clocked()):
        known = f"for {CLOCKED} only" if find(CLOCKED).family in clocked() else "for no device yet"
        raise ValueError(f"the clock is estimated {known}: give that of {target}")
    return dict(device.capacity)


def check_estimates(target: str, base: HardwareConfig, space: Space) -> None:
    """Raise ``ValueError`` if there is no estimate for a form of PEs or scale units in `space`, or
    of `base` where the space says nothing of it."""
    for key in ("multiplier", "accumulator", "scale_multiplier", "pipeline"):
        for choice in space.get(key, (getattr(base, key),)):
            if not _covered(key, choice, target):
                raise ValueError(f"there is no estimate for {key} {choice!r} on {target}")


def multipliers(target: str) -> Space:
    """All forms of multipliers with an estimate for a target: which suit it depends on its LUTs and
    DSP blocks."""
    return {
        key: tuple(choice for choice in KEYS[key].allowed if _covered(key, choice, target))
        for key in ("multiplier", "scale_multiplier")
    }


def _covered(key: str, choice: Any, target: str) -> bool:
    # The narrowest operands, which every form takes, and columns that may share a multiplier.
    narrow = replace(HardwareConfig(1, 2, 2, 2), **{key: choice})
    return covers(narrow, find(target).family)


def count(config: HardwareConfig, target: str) -> dict[str, int]:
    """What synthesis takes of each of ``KINDS``, of what is made for the target."""
    from ..hw.verilog import TOP, accelerator_verilog
    from ..toolchain.yosys import synthesize

    found = synthesize(accelerator_verilog(config.on(find(target).family)), TOP, target)
    return {kind: getattr(found, kind) for kind in KINDS}
