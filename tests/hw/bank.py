"""Several components in one simulation: builds and driving ports from Python are what take time."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from amaranth.hdl import Cat, Module, Shape, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import ArrayLike, NDArray

from shiftcore.golden.scale_unit import ProductSpec
from shiftcore.hw.library import place
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import Simulator, simulate


class Bank(wiring.Component):
    """`lanes` copies of ``kind(spec)``, whose ports are plain; lane 0 is lowest in each port."""

    def __init__(self, kind, spec, lanes: int):
        self.unit, self.lanes = kind(spec), lanes
        super().__init__(
            {
                name: (In if port.flow == wiring.In else Out)(Shape.cast(port.shape).width * lanes)
                for name, port in self.unit.signature.members.items()
            }
        )

    def elaborate(self, platform):
        m = Module()
        for lane in range(self.lanes):
            unit = place(m, platform, f"unit_{lane}", "unit", lambda: self.unit)
            for name, port in self.signature.members.items():
                inner = Value.cast(getattr(unit, name))
                outer = getattr(self, name).word_select(lane, len(inner))
                m.d.comb += inner.eq(outer) if port.flow == wiring.In else outer.eq(inner)
        return m


class SideBySide(wiring.Component):
    """One component ``kind(*arguments)`` for each of `all_arguments`; number k has ports ``uk__*``.

    The components must not use a library of modules.
    """

    def __init__(self, kind, all_arguments: Sequence[tuple]):
        self.units = [kind(*arguments) for arguments in all_arguments]
        super().__init__({f"u{k}": Out(unit.signature) for k, unit in enumerate(self.units)})

    def elaborate(self, platform):
        m = Module()
        for k, unit in enumerate(self.units):
            m.submodules[f"unit_{k}"] = unit
            wiring.connect(m, unit, wiring.flipped(getattr(self, f"u{k}")))
        return m


class SameInputs(wiring.Component):
    """One component ``kind(spec)`` for each of `specs` with the same plain inputs; their outputs
    ``o`` are side by side, the first one lowest."""

    def __init__(self, kind, specs: Sequence):
        self.units = [kind(spec) for spec in specs]
        inputs = {
            name: In(Shape.cast(port.shape).width)
            for name, port in self.units[0].signature.members.items()
            if port.flow == wiring.In
        }
        widths = [len(Value.cast(unit.o)) for unit in self.units]
        super().__init__(inputs | {"o": Out(sum(widths))})

    def elaborate(self, platform):
        m = Module()
        for k, unit in enumerate(self.units):
            m.submodules[f"unit_{k}"] = unit
            m.d.comb += [
                Value.cast(getattr(unit, name)).eq(getattr(self, name))
                for name, port in self.signature.members.items()
                if port.flow == wiring.In
            ]
        m.d.comb += self.o.eq(Cat(*(Value.cast(unit.o) for unit in self.units)))
        return m


def run_forms(
    kind,
    specs: Sequence,
    inputs: Mapping[str, tuple[NDArray, int]],
    bits: int,
    simulator: Simulator,
) -> list[NDArray[np.int64]]:
    """Send (n,) `inputs`, each with its width, to all `specs`; of each its `bits` wide output, read
    ``spec.latency`` cycles later, (n,) unsigned."""
    count = len(next(iter(inputs.values()))[0])
    idle = [0] * (max(spec.latency for spec in specs) + 1)
    words = {name: pack(values[:, None], width) + idle for name, (values, width) in inputs.items()}
    job = PipelineJob(words, ("o",))
    answer = simulate(SameInputs, kind, specs, bench="pipeline_bench", job=job, simulator=simulator)
    found = unpack(answer["o"], bits, len(specs))
    return [found[spec.latency :][:count, k] for k, spec in enumerate(specs)]


def pack(fields: ArrayLike, width: int) -> list[int]:
    """(n, k) integers as n numbers of k fields of `width` bits, the first field lowest."""
    table = np.asarray(fields, np.int64) & ((1 << width) - 1)
    shifts = (np.arange(table.shape[1]) * width).astype(object)
    return (table.astype(object) << shifts).sum(1).tolist()


def unpack(words: Sequence[int], width: int, count: int) -> NDArray[np.int64]:
    """The inverse of :func:`pack`: (n, count) unsigned fields."""
    shifts = (np.arange(count) * width).astype(object)
    fields = np.array(words, object)[:, None] >> shifts & ((1 << width) - 1)
    return fields.astype(np.int64)


def signed(values: ArrayLike, width: int) -> NDArray[np.int64]:
    """Two's complement fields of `width` bits as numbers."""
    field = np.asarray(values, np.int64)
    return (field ^ (1 << (width - 1))) - (1 << (width - 1))


def simulated(spec) -> bool:
    """Whether the cells of a spec are there: the RTL has models of all, a netlist its family's.

    Not on iCE40 what ``HardwareConfig.on`` replaces there: yosys gets it wrong.
    """
    netlist = os.environ.get("SHIFTCORE_NETLIST", spec.family)
    product = getattr(spec, "product", spec)
    lost = isinstance(product, ProductSpec) and "deliver" in product.cuts
    lost = lost and product.multiplier == "dsp"
    return spec.family in (None, netlist) and not (netlist == "ice40" and lost)


def run_bank(
    kind,
    spec,
    inputs: Mapping[str, tuple[NDArray, int]],
    output_bits: int,
    latency: int,
    simulator: Simulator,
    lanes: int = 8,
) -> NDArray[np.int64]:
    """Send (n,) `inputs`, each with its width, back to back; return the port ``o``, (n,) unsigned.

    Stimulus k goes to lane ``k % lanes``; its result is read exactly `latency` cycles later.
    """
    count = len(next(iter(inputs.values()))[0])
    cycles = -(-count // lanes)
    words = {}
    for name, (values, width) in inputs.items():
        table = np.zeros(cycles * lanes, np.int64)
        table[:count] = values
        words[name] = pack(table.reshape(cycles, lanes), width) + [0] * (latency + 1)
    job = PipelineJob(words, ("o",))
    answer = simulate(Bank, kind, spec, lanes, bench="pipeline_bench", job=job, simulator=simulator)
    found = unpack(answer["o"][latency : latency + cycles], output_bits, lanes)
    return found.reshape(-1)[:count]
