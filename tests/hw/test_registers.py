"""The control registers: the map, every access, and what starts, ends and is counted."""

import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import ISA_VERSION, Error, Region
from shiftcore.golden.registers import (
    COUNTERS,
    MAP_BITS,
    REGISTERS,
    c_header,
    configuration_hash,
    markdown,
    register,
)
from shiftcore.hw.registers import ControlRegisters
from shiftcore.sim.axi_bench import AxiJob
from shiftcore.sim.control_bench import (
    ControlAnswer,
    ControlJob,
    Pulse,
    Read,
    Set,
    Step,
    Wait,
    Write,
)
from shiftcore.sim.runner import simulate

HASH = configuration_hash(HardwareConfig(16, 16))
WIDE = HardwareConfig(2, 2, bus_bits=32, address_bits=40).accelerator
NARROW = HardwareConfig(2, 2, bus_bits=128, address_bits=18).accelerator
KEPT = {"BASE_LO": (1 << 18) - 1, "BASE_HI": 0, "SIZE": (1 << 14) - 1, "STRIDE": (1 << 14) - 1}
"""Bits of the registers that NARROW has."""
OKAY, SLVERR = 0, 2
INPUTS = ("i_busy", "i_finished", "i_failed", "i_error", "i_instruction", "i_events")
RECORDED = ("o_images", "o_timeout", "o_regions", "o_strides")
START, SOFT_RESET, CLEAR = (field.mask for field in register("CONTROL").fields)
BUSY, DONE, ERROR, INTERRUPT = (field.mask for field in register("STATUS").fields)


def test_map():
    offsets = [each.offset for each in REGISTERS]
    assert offsets == sorted(set(offsets))
    assert all(offset % 4 == 0 and offset + 4 <= 1 << MAP_BITS for offset in offsets)
    for each in REGISTERS:
        ends = [0, *(field.offset + field.bits for field in each.fields)]
        begins = [*(field.offset for field in each.fields), 32]
        assert all(end <= begin for end, begin in zip(ends, begins, strict=True)), each.name
        assert each.access in ("ro", "rw", "wo")
    assert register("ERROR").field("INSTRUCTION").of(0x12345678) == 0x123456
    assert register("ID").field("VALUE").doc == "0x53484654"
    with pytest.raises(ValueError, match=r"^there is no register 'NONE'$"):
        register("NONE")
    with pytest.raises(ValueError, match=r"^register STATUS has no field 'NONE'$"):
        register("STATUS").field("NONE")


def test_configuration_hash():
    assert configuration_hash(HardwareConfig(16, 16)) == HASH
    others = {configuration_hash(HardwareConfig(16, cols)) for cols in range(1, 16)}
    assert len(others) == 15
    assert HASH not in others


def test_c_header(tmp_path):
    text = c_header()
    path = tmp_path / "check.c"
    lines = [
        f"_Static_assert(SHIFTCORE_{each.name} == {each.offset}, {each.name!r});".replace("'", '"')
        for each in REGISTERS
    ]
    lines.append('_Static_assert(SHIFTCORE_STATUS_ERROR_MASK == 4, "mask");')
    lines.append('_Static_assert(SHIFTCORE_ERROR_INSTRUCTION_SHIFT == 8, "shift");')
    lines.append(f'_Static_assert(SHIFTCORE_ERROR_TIMEOUT == {Error.TIMEOUT.value}, "code");')
    path.write_text("\n".join([text, *lines, ""]))
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "gcc comes with g++, which the simulators need"
    subprocess.run(
        [compiler, "-std=c11", "-Wall", "-Werror", "-fsyntax-only", str(path)], check=True
    )


def test_markdown():
    lines = markdown().splitlines()
    assert all(line.count("|") == 7 for line in lines)
    assert sum("`0x" in line for line in lines) == len(REGISTERS)


def run(
    steps: list[Step], simulator, stall: float = 0.0, seed: int = 0, spec=WIDE
) -> ControlAnswer:
    answer = simulate(
        ControlRegisters,
        spec,
        HASH,
        bench="control_bench",
        job=ControlJob(steps, INPUTS, ("o_start", "o_soft_reset", "o_interrupt"), RECORDED, stall),
        simulator=simulator,
        seed=seed,
    )
    assert answer.held == 0
    return answer


@pytest.mark.parametrize(
    ("stall", "spec"), [(0.0, WIDE), (0.4, WIDE), (0.4, NARROW)], ids=["still", "wide", "narrow"]
)
def test_every_access(stall, spec, simulator):
    rng = np.random.default_rng(1)
    values = dict.fromkeys((each.offset for each in REGISTERS), 0)
    values |= {register("ID").offset: 0x53484654, register("CONFIG_HASH").offset: HASH}
    values[register("ISA_VERSION").offset] = ISA_VERSION
    by_offset = {each.offset: each for each in REGISTERS}
    steps, expected = [], []
    for _ in range(800):
        # Reads and writes of all registers, and of places where none is.
        offset = int(rng.choice([*values]))
        if rng.random() < 0.1:
            offset = int(rng.integers(0, 1 << MAP_BITS - 2)) * 4
        each = by_offset.get(offset)
        address = offset + int(rng.integers(0, 4))
        if rng.random() < 0.5:
            word, strobe = (
                int(rng.integers(0, 1 << 32)),
                int(rng.choice([15, int(rng.integers(0, 16))])),
            )
            if each is not None and each.access == "wo":
                strobe = 0
            steps.append(Write(address, word, strobe, int(rng.integers(-3, 4))))
            expected.append(SLVERR if each is None else OKAY)
            if each is not None and each.access == "rw":
                bits = sum(255 << 8 * k for k in range(4) if strobe >> k & 1)
                word &= (
                    KEPT.get(each.name.partition("_")[2], each.mask)
                    if spec is NARROW
                    else each.mask
                )
                values[offset] = values[offset] & ~bits | word & bits
        else:
            steps.append(Read(address))
            expected.append((0, SLVERR) if each is None else (values[offset], OKAY))
    answer = run(steps, simulator, stall, spec=spec)
    assert answer.results == expected
    assert expected.count(SLVERR) > 20
    assert expected.count((0, SLVERR)) > 20
    if stall == 0:
        cycles = np.array(answer.answered) - np.array(answer.accepted)
        lows = {register(f"{name}_LO").offset for name in COUNTERS}
        waits = [isinstance(step, Read) and step.address & -4 in lows for step in steps]
        assert set(cycles[np.invert(waits)]) == {2}
        assert set(cycles[waits]) == {2 + 2 * len(COUNTERS)}
    read = {each.name: values[each.offset] for each in REGISTERS}
    bases = [read[f"{r.name}_BASE_HI"] << 32 | read[f"{r.name}_BASE_LO"] for r in Region]
    address, offset = (18, 14) if spec is NARROW else (40, 32)
    regions = sum(base << address * k for k, base in enumerate(bases))
    regions |= sum(read[f"{r.name}_SIZE"] << 4 * address + offset * r for r in Region)
    assert answer.recorded == {
        "o_images": read["IMAGES"],
        "o_timeout": read["TIMEOUT"],
        "o_regions": regions,
        "o_strides": sum(read[f"{r.name}_STRIDE"] << offset * r for r in Region),
    }
    assert all(base >> address - 8 for base in bases)
    assert read["IMAGES"] > 1
    assert answer.watched["o_start"] == answer.watched["o_soft_reset"] == []


def write(name: str, value: int, strobe: int = 15) -> Write:
    return Write(register(name).offset, value, strobe)


def read(name: str) -> Read:
    return Read(register(name).offset)


def test_runs(simulator):
    """Start, end, error, interrupt and soft reset."""
    script: list[tuple[Step, object]] = [
        (read("STATUS"), (0, OKAY)),
        # Nothing runs: no pulse counts.
        (Pulse({"i_finished": 1}), None),
        (Pulse({"i_failed": 1, "i_error": 3}), None),
        (read("STATUS"), (0, OKAY)),
        (write("CONTROL", START, strobe=14), OKAY),
        (write("CONTROL", START), OKAY),
        (Set({"i_busy": 1}), None),
        (write("CONTROL", START), OKAY),
        (read("STATUS"), (BUSY, OKAY)),
        (Pulse({"i_finished": 1}), None),
        (read("STATUS"), (BUSY | DONE, OKAY)),
        (Set({"i_busy": 0}), None),
        (read("STATUS"), (DONE, OKAY)),
        (write("CONTROL", START), OKAY),
        (read("STATUS"), (0, OKAY)),
        # The first error counts; it raises no interrupt that is not enabled.
        (write("INTERRUPT_ENABLE", 1), OKAY),
        (Pulse({"i_failed": 1, "i_error": 6, "i_instruction": 0x123456, "i_finished": 1}), None),
        (Pulse({"i_failed": 1, "i_error": 7, "i_instruction": 1}), None),
        (Pulse({"i_finished": 1}), None),
        (read("STATUS"), (ERROR, OKAY)),
        (read("ERROR"), (0x12345606, OKAY)),
        (write("CONTROL", SOFT_RESET | START), OKAY),
        (read("STATUS"), (0, OKAY)),
        (read("ERROR"), (0, OKAY)),
        (read("INTERRUPT_ENABLE"), (1, OKAY)),
        # Late pulses of a run that was abandoned.
        (write("CONTROL", START), OKAY),
        (write("CONTROL", SOFT_RESET), OKAY),
        (Pulse({"i_failed": 1, "i_error": 9}), None),
        (read("STATUS"), (0, OKAY)),
        # Interrupts.
        (write("CONTROL", START), OKAY),
        (Pulse({"i_finished": 1}), None),
        (read("STATUS"), (DONE | INTERRUPT, OKAY)),
        (Wait(5), None),
        (write("CONTROL", CLEAR), OKAY),
        (read("STATUS"), (DONE, OKAY)),
        (write("INTERRUPT_ENABLE", 2), OKAY),
        (write("CONTROL", START), OKAY),
        (Pulse({"i_finished": 1}), None),
        (read("STATUS"), (DONE, OKAY)),
        (write("CONTROL", START), OKAY),
        (Pulse({"i_failed": 1, "i_error": 12, "i_instruction": 5}), None),
        (read("STATUS"), (ERROR | INTERRUPT, OKAY)),
        (read("ERROR"), (12 | 5 << 8, OKAY)),
        (write("CONTROL", START), OKAY),
        (read("STATUS"), (INTERRUPT, OKAY)),
        (write("CONTROL", CLEAR), OKAY),
        (read("STATUS"), (0, OKAY)),
    ]
    steps = [step for step, _ in script]
    answer = run(steps, simulator)
    assert answer.results == [result for _, result in script]

    # A pulse comes with the first cycle of the response.
    def written(bit: int) -> list[int]:
        return [
            cycle
            for step, cycle in zip(steps, answer.answered, strict=True)
            if isinstance(step, Write) and step.address == register("CONTROL").offset
            if cycle is not None
            if step.data & bit and step.strobe & 1
        ]

    resets = written(SOFT_RESET)
    starts = [cycle for cycle in written(START) if cycle not in resets]
    # The second one came while busy.
    assert answer.watched["o_start"] == starts[:1] + starts[2:]
    assert answer.watched["o_soft_reset"] == resets
    rising = [
        c for c in answer.watched["o_interrupt"] if c - 1 not in answer.watched["o_interrupt"]
    ]
    assert len(rising) == 2


def test_counters(simulator):
    """Every counter counts its own event, from a start on; high halves are kept by low ones."""
    names = list(COUNTERS)
    steps: list[Step] = [Pulse({"i_busy": 1, "i_events": (1 << 11) - 1}, 7)]
    steps.append(write("CONTROL", START))
    for k in range(11):
        steps.append(Pulse({"i_events": 1 << k}, k + 1))
    steps.append(Pulse({"i_busy": 1, "i_events": 1 << 3}, 20))
    for name in names:
        steps += [read(f"{name}_LO"), read(f"{name}_HI")]
    answer = run(steps, simulator)
    found = [result[0] for result in answer.results[-24::2]]
    assert found == [20, *(k + 1 + 20 * (k == 3) for k in range(11))]
    assert {result[0] for result in answer.results[-23::2]} == {0}


def test_halves_of_a_counter_belong_together(simulator):
    """The high half is that of the moment at which the low half was read."""
    steps = [write("CONTROL", START), Wait(3), read("PIXELS_LO")]
    steps += [Pulse({"i_events": 2}, 5), read("PIXELS_HI"), read("PIXELS_LO"), read("PIXELS_HI")]
    steps += [read("LOAD_BUSY_LO"), read("PIXELS_HI")]
    answer = simulate(
        ControlRegisters,
        WIDE,
        HASH,
        (1 << 32) - 3,
        bench="control_bench",
        job=ControlJob(steps, INPUTS),
        simulator=simulator,
    )
    values = [result[0] for result in answer.results if isinstance(result, tuple)]
    assert values == [(1 << 32) - 3, 0, 2, 1, (1 << 32) - 3, 0]


def stream_of(shape: Any) -> stream.Signature:
    return stream.Signature(shape)


class ControlStreams(wiring.Component):
    """The registers with a stream for each channel."""

    def __init__(self):
        w = data.StructLayout({"data": 32, "strobe": 4})
        r = data.StructLayout({"data": 32, "response": 2})
        super().__init__(
            {
                "i_aw": In(stream_of(MAP_BITS)),
                "i_w": In(stream_of(w)),
                "o_b": Out(stream_of(2)),
                "i_ar": In(stream_of(MAP_BITS)),
                "o_r": Out(stream_of(r)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.registers = inner = ControlRegisters(WIDE, HASH)
        for channel, port in (("aw", self.i_aw), ("w", self.i_w), ("ar", self.i_ar)):
            m.d.comb += [
                getattr(inner, f"s_axi_{channel}valid").eq(port.valid),
                port.ready.eq(getattr(inner, f"s_axi_{channel}ready")),
            ]
        for channel, port in (("b", self.o_b), ("r", self.o_r)):
            m.d.comb += [
                port.valid.eq(getattr(inner, f"s_axi_{channel}valid")),
                getattr(inner, f"s_axi_{channel}ready").eq(port.ready),
            ]
        m.d.comb += [
            inner.s_axi_awaddr.eq(self.i_aw.payload),
            inner.s_axi_wdata.eq(self.i_w.payload.data),
            inner.s_axi_wstrb.eq(self.i_w.payload.strobe),
            self.o_b.payload.eq(inner.s_axi_bresp),
            inner.s_axi_araddr.eq(self.i_ar.payload),
            self.o_r.payload.data.eq(inner.s_axi_rdata),
            self.o_r.payload.response.eq(inner.s_axi_rresp),
        ]
        return m


@pytest.mark.parametrize("stall", [0.0, 0.3, 0.7])
def test_channels_beside_each_other(stall, simulator):
    """Five channels, each with its own pauses: writes and reads overlap, responses keep order."""
    rng = np.random.default_rng(2)
    constant = {"ID": 0x53484654, "CONFIG_HASH": HASH, "ISA_VERSION": ISA_VERSION}
    reads = rng.choice([*constant, ""], 150).tolist()
    writes = rng.choice(["TIMEOUT", "IMAGES", ""], 150).tolist()

    def at(name: str) -> int:
        return register(name).offset if name else 0xF00

    answer = simulate(
        ControlStreams,
        bench="axi_bench",
        job=AxiJob(
            None,
            {
                "i_aw": [at(name) for name in writes],
                "i_w": [int(value) for value in rng.integers(0, 1 << 36, 150)],
                "i_ar": [at(name) for name in reads],
            },
            {"o_b": 150, "o_r": 150},
            stall=stall,
        ),
        simulator=simulator,
    )
    assert answer.held == 0
    assert answer.payloads["o_b"] == [OKAY if name else SLVERR for name in writes]
    assert answer.payloads["o_r"] == [constant[name] if name else SLVERR << 32 for name in reads]
    if stall == 0:
        assert np.array_equal(answer.cycles["o_b"], 2 + 2 * np.arange(150))
        assert np.array_equal(answer.cycles["o_r"], 2 + 2 * np.arange(150))
