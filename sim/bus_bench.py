"""Bench of the whole accelerator on buses of cocotbext-axi, an independent model of AXI.

The driver of :mod:`shiftcore.host` runs beside the simulation; its accesses go through an AXI4-Lite
master, and the accelerator's own through an AXI4 subordinate to a memory that judges each of them.
"""

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiResp, AxiSlaveRead, AxiSlaveWrite
from numpy.typing import NDArray

from ..golden.isa import Error, Region
from ..golden.program import Program
from ..golden.registers import ID, register
from ..host.driver import Accelerator, AcceleratorError
from ..hw.axi import control_ports, read_ports, write_ports
from .exchange import answer, job
from .handshake import HIGH, Handshake

__all__ = ["OUTPUTS", "BusAnswer", "BusJob", "BusResult", "BusRun"]

OUTPUTS = ("m_axi_ar", "m_axi_aw", "m_axi_w", "s_axi_b", "s_axi_r")
"""The channels that the accelerator drives; of the others it drives ready."""
_CHANNELS = (*OUTPUTS, "m_axi_r", "m_axi_b", "s_axi_aw", "s_axi_w", "s_axi_ar")
_UNMAPPED = 0xF00


@dataclass(frozen=True)
class BusRun:
    """One start of the accelerator.

    Parameters
    ----------
    program, inputs : as ``Accelerator.run`` takes them
    bases : byte address of each region; images follow each other without a gap
    origin, content : the memory: address of its first byte, and what is in it before the driver
        puts the model and the inputs there
    pause : probability that a channel, of either bus, pauses
    latency, often : a beat takes up to `latency` more cycles with probability `often`
    refused : an access, "read" or "write", and the byte address of a beat at which the memory
        answers it with `response`
    response : SLVERR (2) or DECERR (3)
    timeout : as ``Accelerator.run`` takes it
    limit : cycles without an interrupt after which the run is taken to hang
    reset : soft reset after the run
    abandoned : starts after that, each of which a soft reset follows so many cycles later, however
        late the responses are
    """

    program: Program
    inputs: NDArray[np.uint8]
    bases: dict[Region, int]
    origin: int
    content: bytes = field(repr=False)
    pause: float = 0.0
    latency: int = 0
    often: float = 0.1
    refused: tuple[str, int] | None = None
    response: int = 2
    timeout: int = 0
    limit: int = 50_000
    reset: bool = False
    abandoned: tuple[int, ...] = ()

    def span(self, region: Region) -> tuple[int, int]:
        """(begin, end) byte addresses of a region, of all images."""
        own = region in (Region.INPUT, Region.OUTPUT)
        beats = self.program.sizes[region] * (len(self.inputs) if own else 1)
        base = self.bases[region]
        return base, base + beats * self.program.config.accelerator.beat_bytes


@dataclass(frozen=True)
class BusJob:
    """What to do, on one accelerator.

    Parameters
    ----------
    accesses : of registers, before the runs and one after the other: (address, bytes) to write,
        (address, number of bytes) to read
    runs : one after the other; all the time other registers are read
    pause : probability that a channel of the control bus pauses during the accesses
    """

    accesses: tuple[tuple[int, bytes | int], ...] = ()
    runs: tuple[BusRun, ...] = ()
    pause: float = 0.0


@dataclass(frozen=True)
class BusResult:
    """How a run ended.

    Parameters
    ----------
    code : why it halted, NONE if it finished
    content : of the memory
    violations : sentences on accesses that were not allowed
    bursts : every address of the channels ``"m_axi_ar"`` and ``"m_axi_aw"``, by the names of its
        parts
    interrupt : its level before the start, after the end, and after it was cleared
    pending : when it rose, beats and responses that memory owed, and what was still offered to it
    cycles : CYCLES
    longest : the most cycles that a beat waited for the memory
    """

    code: Error
    content: bytes = field(repr=False)
    violations: list[str]
    bursts: list[tuple[str, dict[str, int]]] = field(repr=False)
    interrupt: tuple[int, int, int]
    pending: int
    cycles: int
    longest: int


@dataclass(frozen=True)
class BusAnswer:
    """``accesses`` has (response, data) of each access; the rest is of the whole job.

    Parameters
    ----------
    handshakes : by channel
    polled : register reads beside the runs
    """

    accesses: list[tuple[int, bytes]]
    results: list[BusResult]
    handshakes: dict[str, Handshake]
    polled: int


class _Memory:
    """What the subordinate reads and writes."""

    def __init__(self, clock, rng: random.Random):
        self.clock, self.rng = clock, rng

    def begin(self, run: BusRun) -> None:
        """Be the memory of this run."""
        self.run, self.content = run, bytearray(run.content)
        self.violations: list[str] = []
        self.longest = 0
        scratch = run.span(Region.SCRATCH)
        self.allowed = {
            "read": (run.span(Region.MODEL), run.span(Region.INPUT), scratch),
            "write": (scratch, run.span(Region.OUTPUT)),
        }

    async def _access(self, what: str, address: int, size: int) -> slice:
        """Where in the content it is. Whatever is raised becomes an error response."""
        run = self.run
        if run.latency and self.rng.random() < run.often:
            cycles = self.rng.randint(1, run.latency)
            self.longest = max(self.longest, cycles)
            await ClockCycles(self.clock, cycles)
        inside = any(low <= address and address + size <= high for low, high in self.allowed[what])
        if not inside or size != run.program.config.accelerator.beat_bytes:
            self.violations.append(f"{what} of {size} bytes at {address:#x}")
            raise PermissionError
        if run.refused == (what, address):
            raise PermissionError
        return slice(address - run.origin, address - run.origin + size)

    async def read(self, address: int, size: int) -> bytes:
        """A beat."""
        return bytes(self.content[await self._access("read", address, size)])

    async def write(self, address: int, data: bytes) -> None:
        """The bytes of a beat whose strobes are set."""
        self.content[await self._access("write", address, len(data))] = data


class _Bus:
    """Both buses, and the :class:`~shiftcore.host.driver.Transport` that they make."""

    def __init__(self, dut, rng: random.Random, pause: float):
        self.dut, self.rng, self.pause = dut, rng, pause
        self.limit = self.polled = self.pending = 0
        self.handshakes = {channel: Handshake(channel) for channel in _CHANNELS}
        self.bursts: list[tuple[str, dict[str, int]]] = []
        self.owed = {"m_axi_r": 0, "m_axi_b": 0}
        self.memory = _Memory(dut.clk, rng)
        self.control = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        memory = AxiBus.from_prefix(dut, "m_axi")
        reads = AxiSlaveRead(memory.read, dut.clk, dut.rst, self.memory)
        writes = AxiSlaveWrite(memory.write, dut.clk, dut.rst, self.memory)
        self._respond(reads.r_channel, "rresp")
        self._respond(writes.b_channel, "bresp")
        control = (self.control.write_if, self.control.read_if)
        names = ("ar_channel", "r_channel", "aw_channel", "w_channel", "b_channel")
        channels = [
            getattr(part, name)
            for part in (reads, writes, *control)
            for name in names
            if hasattr(part, name)
        ]
        cocotb.start_soon(self._pause_all(channels))

    async def _pause_all(self, channels) -> None:
        """What their ``set_pause_generator`` does, in one task for all of them."""
        pauses = [(channel, self._pauses()) for channel in channels]
        edge = RisingEdge(self.dut.clk)
        while True:
            for channel, each in pauses:
                channel.pause = next(each)
            await edge

    def _pauses(self) -> Iterator[bool]:
        """Single cycles and longer whiles, the same share of both."""
        while True:
            yield from repeat(self.rng.random() < self.pause, self.rng.choice((1, 1, 1, 12)))

    def _respond(self, channel, part: str) -> None:
        """The subordinate answers whatever its memory refuses with SLVERR; here it is a choice."""
        send = channel.send

        async def altered(item):
            if getattr(item, part) == AxiResp.SLVERR:
                setattr(item, part, self.memory.run.response)
            await send(item)

        channel.send = altered

    async def access(self, address: int, what: bytes | int) -> tuple[int, bytes]:
        """Write bytes, or read so many: (response, data)."""
        if isinstance(what, bytes):
            return int((await self.control.write(address, what)).resp), b""
        found = await self.control.read(address, what)
        return int(found.resp), found.data

    async def _word(self, address: int, what: bytes | int) -> int:
        response, data = await self.access(address, what)
        assert response == AxiResp.OKAY, f"register {address:#x} answers {response}"
        return int.from_bytes(data, "little")

    def read_register(self, offset: int) -> int:
        return resume(self._word)(offset, 4)

    def write_register(self, offset: int, value: int) -> None:
        resume(self._word)(offset, value.to_bytes(4, "little"))

    async def abandon(self, later: int) -> int:
        """Start, and reset so many cycles later; the status when both are long over."""
        control = register("CONTROL")
        start, reset = (
            control.field(name).mask.to_bytes(4, "little") for name in ("START", "SOFT_RESET")
        )
        started = cocotb.start_soon(self.access(control.offset, start))
        await ClockCycles(self.dut.clk, later)
        await self.access(control.offset, reset)
        await started
        await ClockCycles(self.dut.clk, 200)
        return await self._word(register("STATUS").offset, 4)

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        at = address - self.memory.run.origin
        return np.frombuffer(bytes(self.memory.content[at : at + size]), np.uint8)

    def write_memory(self, address: int, content: NDArray[np.uint8]) -> None:
        at = address - self.memory.run.origin
        self.memory.content[at : at + content.size] = content.tobytes()

    def wait(self) -> None:
        resume(self._interrupt)()

    async def _interrupt(self) -> None:
        port = self.dut.o_interrupt
        if port.value != HIGH:
            await First(RisingEdge(port), ClockCycles(self.dut.clk, self.limit))
        assert port.value == HIGH, f"no interrupt within {self.limit} cycles"
        owed = sum(count - self.handshakes[name].transfers for name, count in self.owed.items())
        offers = (self.dut.m_axi_arvalid, self.dut.m_axi_awvalid, self.dut.m_axi_wvalid)
        self.pending = owed + sum(offer.value == HIGH for offer in offers)

    async def poll(self) -> None:
        """Read what is always the same, and what is not there, over and over."""
        while True:
            assert await self.access(register("ID").offset, 4) == (0, ID.to_bytes(4, "little"))
            assert await self.access(_UNMAPPED, 4) == (AxiResp.SLVERR, bytes(4))
            self.polled += 2

    async def monitor(self) -> None:
        """Look at every channel in every cycle."""
        dut, names = self.dut, [*read_ports(32, 32), *write_ports(32, 32), *control_ports()]
        ports = []
        for channel, handshake in self.handshakes.items():
            found = [name for name in names if name.startswith(channel) and channel in OUTPUTS]
            payload = {
                name.removeprefix(channel): getattr(dut, name)
                for name in found
                if not name.endswith(("valid", "ready"))
            }
            valid, ready = (getattr(dut, f"{channel}{part}") for part in ("valid", "ready"))
            ports.append((handshake, valid, ready, payload))
        edge = RisingEdge(dut.clk)
        while True:
            await edge
            for handshake, valid, ready, payload in ports:
                now = None
                if valid.value == HIGH:
                    now = {part: int(handle.value) for part, handle in payload.items()}
                # Ready says nothing where nothing is offered.
                taken = handshake.sample(now, now is not None and ready.value == HIGH)
                if taken is not None and "len" in taken:
                    self.bursts.append((handshake.name, taken))
                    if handshake.name == "m_axi_ar":
                        self.owed["m_axi_r"] += taken["len"] + 1
                    else:
                        self.owed["m_axi_b"] += 1


class _Placed(Accelerator):
    """A driver whose regions are where a run wants them."""

    def __init__(self, bus: _Bus):
        super().__init__(bus)
        self.bus = bus

    def place(self, images: int) -> dict[Region, tuple[int, int]]:
        return {r: (self.bases[r], stride) for r, (_, stride) in super().place(images).items()}

    def do(self, run: BusRun) -> tuple[Error, tuple[int, int, int], int]:
        """Code, levels of the interrupt, cycles."""
        port = self.bus.dut.o_interrupt
        self.bases, self.base = run.bases, run.bases[Region.MODEL]
        self.load(run.program)
        code, before = Error.NONE, int(port.value)
        try:
            super().run(run.inputs, timeout=run.timeout)
        except AcceleratorError as error:
            code = error.code
            if code is Error.NONE:
                raise
        raised, cycles = int(port.value), self.counters()["cycles"]
        self.write("CONTROL", register("CONTROL").field("CLEAR_INTERRUPT").mask)
        cleared = int(port.value)
        if run.reset:
            self.reset()
            assert self.read("STATUS") == self.read("ERROR") == 0
        for later in run.abandoned:
            status = resume(self.bus.abandon)(later)
            assert status == 0, f"{later} cycles after a start: status {status:#x}"
        return code, (before, raised, cleared), cycles


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def run(dut):
    """Do the job; answer with a :class:`BusAnswer`."""
    # cocotbext-axi 0.1 still uses names that cocotb 2 replaced.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\.")
    work: BusJob = job()
    rng = random.Random(cocotb.RANDOM_SEED)
    dut.rst.value = 1
    bus = _Bus(dut, rng, work.pause)
    Clock(dut.clk, 2, unit="ns").start(start_high=False)
    await ClockCycles(dut.clk, 3)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 1)
    cocotb.start_soon(bus.monitor())
    accesses = [await bus.access(*each) for each in work.accesses]
    results = []
    if work.runs:
        driver = await bridge(_Placed)(bus)
        cocotb.start_soon(bus.poll())
    for each in work.runs:
        bus.pause, bus.limit = each.pause, each.limit
        bus.memory.begin(each)
        bus.bursts.clear()
        code, interrupt, cycles = await bridge(driver.do)(each)
        memory = bus.memory
        results.append(
            BusResult(
                code,
                bytes(memory.content),
                memory.violations,
                list(bus.bursts),
                interrupt,
                bus.pending,
                cycles,
                memory.longest,
            )
        )
    answer(BusAnswer(accesses, results, bus.handshakes, bus.polled))
