"""Named pipeline cuts: after which of its steps a unit has registers.

A unit's spec names the steps of its arithmetic, in order. Its *cuts* are those steps whose results
are registered; the others' go on in the same cycle. The latency is the number of cuts, and whatever
depends on it follows. A preset names the cuts of all units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BALANCED", "PIPELINES", "AccumulatorMemory", "Pipeline", "Pipelined", "check_cuts"]


def check_cuts(cuts: tuple[str, ...], steps: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for a cut that is no step, stands twice or out of order."""
    if tuple(step for step in steps if step in cuts) != cuts:
        listed = ", ".join(map(repr, steps))
        raise ValueError(f"cuts must be some of {listed}, in this order, not {cuts!r}")


AccumulatorMemory = Literal["ecp5"] | None


class Pipelined:
    """A spec of a unit with ``cuts``, names of some of its steps."""

    STEPS: tuple[str, ...]
    cuts: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that a unit with these parameters has, in order."""
        return self.STEPS

    @property
    def latency(self) -> int:
        """Cycles from the operands to the result: the cuts."""
        return sum(step in self.cuts for step in self.steps)


@dataclass(frozen=True)
class Pipeline:
    """Cuts of every unit of a column's foot, by the specs of :mod:`~shiftcore.golden.scale_unit`.

    Parameters
    ----------
    product, add : of floating-point accumulators
    fixed_product, fixed_add : of fixed-point ones
    fetch : of reading an accumulator
    memory : of the accumulators, see :class:`~shiftcore.golden.scale_unit.ScaleUnitSpec`
    """

    product: tuple[str, ...]
    add: tuple[str, ...]
    fixed_product: tuple[str, ...]
    fixed_add: tuple[str, ...]
    fetch: tuple[str, ...]
    memory: AccumulatorMemory = None


BALANCED = Pipeline(
    ("magnitude", "coarse", "fine", "multiply", "normalize", "round", "saturate"),
    ("compare", "order", "align coarse", "align fine", "add",
     "normalize coarse", "normalize fine", "round", "saturate"),
    ("exponents", "fine", "multiply", "coarse", "round"),
    ("compare", "choose", "add", "saturate"),
    ("choose",),
)  # fmt: skip

FAST = Pipeline(
    ("magnitude", "coarse", "fine", "multiply", "deliver", "normalize", "round", "saturate"),
    BALANCED.add,
    ("exponents", "fine", "multiply", "deliver", "coarse", "round"),
    BALANCED.fixed_add,
    ("read", "choose"),
)

PIPELINES: Mapping[str, Pipeline] = {
    "balanced": BALANCED,
    "short": Pipeline(
        ("fine", "normalize", "saturate"),
        ("order", "add", "normalize fine", "saturate"),
        ("multiply",),
        ("choose",),
        (),
    ),
    "fast": FAST,
    "ecp5-fast": replace(FAST, memory="ecp5"),
}
"""The presets by name: "short" for small, slow devices, "fast" for devices whose block RAMs and DSP
blocks have registers of their own, "ecp5-fast" the same with block RAMs of ECP5 instantiated."""
