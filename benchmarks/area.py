"""Area and clock of the gateware on ECP5, by yosys and nextpnr: ``python benchmarks/area.py``."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from typing import Any

import click
from amaranth.hdl import Module
from amaranth.lib import wiring
from rich import box
from rich.console import Console
from rich.table import Table

from shiftcore.golden.array import ArraySpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.hw.accelerator import Accelerator
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.engine import Engine
from shiftcore.hw.packed import PackedElements
from shiftcore.hw.pe import ProcessingElement
from shiftcore.hw.requantizer import Requantizer
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.hw.verilog import TOP, emit
from shiftcore.toolchain.nextpnr import place_and_route
from shiftcore.toolchain.yosys import ToolError, synthesize

SEEDS = (1, 2, 3)
HEADINGS = ("design", "LUT", "FF", "DSP", "BRAM", "LUT/MAC", "MHz", "limits")


class Columns(wiring.Component):
    """The array and the scale units at its feet; the members are theirs."""

    def __init__(self, config: HardwareConfig):
        self.array: Any = SystolicArray(config.array)
        self.units: list[Any] = [ScaleUnit(config.scale_unit) for _ in range(config.cols)]
        members = {k: v for k, v in self.array.signature.members.items() if k != "o_sums"}
        for name, member in self.units[0].signature.members.items():
            if name == "o_drain":
                members |= {f"o_drain_{c}": member for c in range(config.cols)}
            elif name != "i_sum":
                members[name] = member
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        """Block sums go down into the units; waves, and what saturated, go right from one to the
        next."""
        m = Module()
        m.submodules.array = self.array
        for name, member in self.array.signature.members.items():
            if name != "o_sums":
                inner, outer = getattr(self.array, name), getattr(self, name)
                m.d.comb += inner.eq(outer) if member.flow == wiring.In else outer.eq(inner)
        moving = [name for name in ("wave", "saturated") if f"i_{name}" in self.signature.members]
        left = {name: getattr(self, f"i_{name}") for name in moving}
        kept = ("i_scale", "i_bias", "i_drain_")
        shared = [name for name in self.signature.members if name.startswith(kept)]
        for c, unit in enumerate(self.units):
            m.submodules[f"unit_{c}"] = unit
            m.d.comb += [
                unit.i_sum.eq(self.array.o_sums[c]),
                *(getattr(unit, name).eq(getattr(self, name)) for name in shared),
                getattr(self, f"o_drain_{c}").eq(unit.o_drain),
                *(getattr(unit, f"i_{name}").eq(value) for name, value in left.items()),
            ]
            left = {name: getattr(unit, f"o_{name}") for name in moving}
        m.d.comb += [getattr(self, f"o_{name}").eq(value) for name, value in left.items()]
        return m


class OnlySums(wiring.Component):
    """A scale unit whose pixels are all added to their accumulators: no start, no maximum."""

    def __init__(self, config: HardwareConfig):
        self.unit: Any = ScaleUnit(config.scale_unit)
        super().__init__(dict(self.unit.signature.members))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = self.unit
        for name, member in self.signature.members.items():
            inner, outer = getattr(self.unit, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow == wiring.In else outer.eq(inner)
        for name in ("start", "maximum", "keep"):
            m.d.comb += self.unit.i_wave[name].eq(0)
        return m


@dataclass(frozen=True)
class Design:
    """A line of the table.

    Parameters
    ----------
    name : what it is
    make : makes the component
    macs : multiplications a cycle
    most : the project's limits, field of the result → largest value
    least_mhz : where given, the design is placed and routed, and this is the least clock
    """

    name: str
    make: Callable[[], wiring.Component]
    macs: int = 0
    most: tuple[tuple[str, float], ...] = ()
    least_mhz: float | None = None


def designs() -> list[Design]:
    """The designs of the table, b = 4 and m = 4, blocks of 16 unless the name says otherwise."""
    config = HardwareConfig(rows=16, cols=16)
    column = HardwareConfig(rows=16, cols=1)
    small = replace(config, multiplier="ecp5-carry", accumulator="fixed32")
    fast = replace(small, cols=1, scale_multiplier="ecp5-dsp", pipeline="ecp5-fast")
    found = [
        Design("PE, last row", lambda: ProcessingElement(config.array, 15), 1),
        Design(
            "PE, carry chains",
            lambda: ProcessingElement(replace(config.array, multiplier="ecp5-carry"), 15),
            1,
            (("lut", 34), ("dsp", 0)),
        ),
        Design(
            "PE, carry chains, m = 8",
            lambda: ProcessingElement(ArraySpec(16, 16, 4, 8, "ecp5-carry"), 15),
            1,
            (("lut", 50), ("dsp", 0)),
        ),
        Design(
            "PE, ternary weights",
            lambda: ProcessingElement(ArraySpec(16, 16, 2, 4, "ecp5-ternary"), 15),
            1,
            (("lut", 12), ("dsp", 0)),
        ),
        Design(
            "PE of two columns, packed",
            lambda: PackedElements(replace(config.array, multiplier="packed18"), 15, 2),
            2,
            (("lut_per_mac", 16), ("dsp", 1)),
        ),
        Design(
            "integer array 16×16, no DSP",
            lambda: SystolicArray(config.array),
            256,
            (("lut_per_mac", 40), ("dsp", 0)),
        ),
        Design(
            "scale unit, float32",
            lambda: ScaleUnit(config.scale_unit),
            most=(("lut", 800), ("dsp", 1)),
        ),
        *(
            Design(
                f"scale unit, {bits}-bit fixed point",
                lambda bits=bits: ScaleUnit(replace(config, accumulator=f"fixed{bits}").scale_unit),
                most=(("lut", most), ("dsp", 1)),
            )
            for bits, most in ((32, 400), (24, 340))
        ),
        Design(
            "scale unit, 32-bit fixed point, sums only",
            lambda: OnlySums(small),
            0,
            (("lut", 320), ("dsp", 1)),
        ),
        Design("requantizer, 16 lanes", lambda: Requantizer(config.requantizer)),
        Design("requantizer, 32-bit fixed point", lambda: Requantizer(small.requantizer)),
        Design("column of 16, scale unit", lambda: Columns(column), 16, least_mhz=140),
        Design("column of 16, fixed point", lambda: Columns(replace(small, cols=1)), 16),
        Design("column of 16, ECP5's registers", lambda: Columns(fast), 16, least_mhz=190),
        *(
            Design(
                f"array {rows}×16 with scale units, fixed point",
                lambda rows=rows: Columns(replace(small, rows=rows)),
                rows * 16,
                (("lut_per_mac", most),),
            )
            for rows, most in ((16, 54), (32, 45))
        ),
        Design(
            "array 16×16, ECP5's registers",
            lambda: Columns(replace(fast, cols=16)),
            256,
            (("lut_per_mac", 54),),
            least_mhz=150,
        ),
    ]
    for size in (4, 8, 16):
        engine = HardwareConfig(rows=size, cols=size, clamp=False).engine
        found.append(Design(f"engine {size}×{size}", lambda e=engine: Engine(e), size * size))
    for example, name, least_mhz in (
        ("array16", "accelerator 16×16, 1 Mbit", None),
        ("array16-ecp5", "accelerator 16×16, ECP5's registers", 90),
    ):
        with as_file(files("shiftcore.examples") / f"{example}.toml") as path:
            whole = HardwareConfig.load(path)
        found.append(Design(name, lambda c=whole: Accelerator(c), 256, least_mhz=least_mhz))
    return found


def measure(design: Design, pnr: bool) -> dict:
    """Synthesize one design, and place and route it where its clock is of interest."""
    verilog = emit(design.make(), TOP)
    counted = synthesize(verilog, TOP, "ecp5")
    result = {
        "name": design.name,
        "lut": counted.lut,
        "ff": counted.ff,
        "dsp": counted.dsp,
        "bram": counted.bram,
        "lut_per_mac": counted.lut / design.macs if design.macs else None,
        "fmax_mhz": None,
        "fmax_mhz_by_seed": None,
    }
    if pnr and design.least_mhz is not None:
        timing = place_and_route(verilog, TOP, seeds=SEEDS)
        result |= {"fmax_mhz": timing.median, "fmax_mhz_by_seed": timing.fmax_mhz}
    return result


def missed(design: Design, result: dict) -> list[str]:
    """The limits that a result does not keep."""
    over = [f"{key} ≤ {limit:g}" for key, limit in design.most if result[key] > limit]
    if result["fmax_mhz"] is not None and result["fmax_mhz"] < (design.least_mhz or 0):
        over.append(f"fmax_mhz ≥ {design.least_mhz:g}")
    return over


@click.command(help=__doc__)
@click.option("--skip-pnr", is_flag=True, help="Only synthesize: no clock.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(skip_pnr: bool, as_json: bool) -> None:
    """Measure, print, and fail if a limit of the project is missed."""
    progress = Console(stderr=True)
    title = "ECP5, 4-bit weights and activations; LUT = LUT4 + 2·CCU2C + 6·TRELLIS_DPR16X4"
    table = Table(title=title, box=box.SIMPLE)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "design" else "right", no_wrap=True)
    results, broken = [], []
    for design in designs():
        with progress.status(f"{design.name} …"):
            try:
                result = measure(design, not skip_pnr)
            except ToolError as error:
                raise click.ClickException(f"{design.name}: {error}") from None
        results.append(result)
        over = missed(design, result)
        broken += [f"{design.name}: {limit}" for limit in over]
        limited = bool(design.most) or result["fmax_mhz"] is not None
        table.add_row(
            design.name,
            *(f"{result[key]:,}" for key in ("lut", "ff", "dsp", "bram")),
            "" if result["lut_per_mac"] is None else f"{result['lut_per_mac']:.1f}",
            "" if result["fmax_mhz"] is None else f"{result['fmax_mhz']:.0f}",
            ", ".join(over) if over else "kept" if limited else "",
        )
    if as_json:
        click.echo(json.dumps({"target": "ecp5", "designs": results, "missed": broken}))
    else:
        Console(width=max(Console().width, 110)).print(table)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
