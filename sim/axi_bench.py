"""Memory behind an AXI4 manager, and a bench of components with streams and maybe such a port."""

import random
from collections import deque
from dataclasses import dataclass, field

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from ..golden.accelerator import PAGE_BYTES
from .exchange import answer, job
from .handshake import HIGH, Handshake

__all__ = ["AxiAnswer", "AxiJob", "AxiMemory", "MemoryModel"]


@dataclass(frozen=True)
class MemoryModel:
    """Memory and how it behaves.

    Parameters
    ----------
    origin, content : address of the first byte, a multiple of a beat, and the bytes
    readable, writable : (begin, end) byte addresses that may be accessed
    latency : least and most cycles from an address, or the last beat of a write, to the first
        answer
    stall : probability that a channel pauses in a cycle
    longest : beats of the longest burst allowed
    failing_reads, failing_writes : addresses of beats that are answered with SLVERR
    """

    origin: int
    content: bytes
    readable: tuple[tuple[int, int], ...] = ()
    writable: tuple[tuple[int, int], ...] = ()
    latency: tuple[int, int] = (1, 1)
    stall: float = 0.0
    longest: int = 256
    failing_reads: frozenset[int] = frozenset()
    failing_writes: frozenset[int] = frozenset()


class AxiMemory:
    """The subordinate: call :meth:`drive` before and :meth:`sample` after every clock edge.

    Members
    -------
    content : the bytes as they are now
    violations : sentences on what the manager did wrong
    reads, writes : (cycle, address, beats) of every burst
    pending : the most bursts that were read, and written, at once
    """

    def __init__(self, dut, model: MemoryModel, rng: random.Random):
        self.model, self.rng = model, rng
        self.content = bytearray(model.content)
        self.violations: list[str] = []
        self.reads: list[tuple[int, int, int]] = []
        self.writes: list[tuple[int, int, int]] = []
        self.pending = [0, 0]

        def port(name):
            return getattr(dut, f"m_axi_{name}", None)

        self.ports = {
            name: handle
            for channel in ("ar", "aw", "r", "w", "b")
            for name in (
                *(f"{channel}{part}" for part in ("valid", "ready", "data", "resp", "last")),
                *(f"{channel}{part}" for part in ("id", "addr", "len", "size", "burst", "strb")),
            )
            if (handle := port(name)) is not None
        }
        self.has_reads, self.has_writes = "arvalid" in self.ports, "awvalid" in self.ports
        data = self.ports.get("rdata", self.ports.get("wdata"))
        self.beat_bytes = 0 if data is None else len(data) // 8
        # Reads: [due, address, beats left]. Writes: addresses, and (data, strobe, last) to join.
        self.read_queue: deque[list[int]] = deque()
        self.write_queue: deque[list[int]] = deque()
        self.write_data: deque[tuple[int, int, int]] = deque()
        self.responses: deque[list[int]] = deque()
        self.unconfirmed = 0
        self.offered = {"r": False, "b": False}
        self.handshakes = {name: Handshake(name, self.violations) for name in ("ar", "aw", "w")}
        for name in ("arready", "rvalid", "awready", "wready", "bvalid", "rid", "bid"):
            if name in self.ports:
                self.ports[name].value = 0

    def _pause(self) -> bool:
        return self.model.stall > 0 and self.rng.random() < self.model.stall

    def _due(self, cycle: int) -> int:
        return cycle + self.rng.randint(*self.model.latency)

    def drive(self, cycle: int) -> None:
        """Set the subordinate's signals for the clock edge number `cycle`."""
        ports = self.ports
        for name in ("arready", "awready", "wready"):
            if name in ports:
                ports[name].value = int(not self._pause())
        if self.has_reads and not self.offered["r"]:
            ready = self.read_queue and self.read_queue[0][0] <= cycle and not self._pause()
            ports["rvalid"].value = int(bool(ready))
            if ready:
                _, address, beats = self.read_queue[0]
                at = address - self.model.origin
                data = int.from_bytes(self.content[at : at + self.beat_bytes], "little")
                ports["rdata"].value = data
                ports["rresp"].value = 2 if address in self.model.failing_reads else 0
                ports["rlast"].value = int(beats == 1)
                self.offered["r"] = True
            else:
                # What is not valid means nothing.
                ports["rdata"].value = self.rng.getrandbits(8 * self.beat_bytes)
                ports["rresp"].value = self.rng.getrandbits(2)
                ports["rlast"].value = self.rng.getrandbits(1)
        if self.has_writes and not self.offered["b"]:
            ready = self.responses and self.responses[0][0] <= cycle and not self._pause()
            ports["bvalid"].value = int(bool(ready))
            ports["bresp"].value = self.responses[0][1] if ready else self.rng.getrandbits(2)
            self.offered["b"] = bool(ready)

    def _burst(self, channel: str, cycle: int, allowed) -> tuple[int, int]:
        parts = ("addr", "len", "size", "burst", "id")
        address, length, size, kind, id_ = (int(self.ports[channel + part].value) for part in parts)
        beats = length + 1
        end = address + beats * self.beat_bytes
        what = f"{channel} of {beats} beats at {address:#x} in cycle {cycle}"
        if 1 << size != self.beat_bytes or kind != 1 or id_ != 0:
            self.violations.append(f"{what}: size {size}, burst {kind}, id {id_}")
        if address % self.beat_bytes or beats > self.model.longest:
            self.violations.append(f"{what}: not aligned, or too long")
        if address // PAGE_BYTES != (end - 1) // PAGE_BYTES:
            self.violations.append(f"{what}: crosses a page")
        if not any(low <= address and end <= high for low, high in allowed):
            self.violations.append(f"{what}: out of range")
        return address, beats

    def _taken(self, channel: str) -> bool:
        valid, ready = (self.ports[f"{channel}{part}"] for part in ("valid", "ready"))
        return valid.value == HIGH and ready.value == HIGH

    def _sent(self, channel: str, *parts: str) -> dict[str, int] | None:
        """What the manager's channel transferred, held as it must be until then."""
        now = None
        if self.ports[f"{channel}valid"].value == HIGH:
            now = {part: int(self.ports[channel + part].value) for part in parts}
        return self.handshakes[channel].sample(now, self.ports[f"{channel}ready"].value == HIGH)

    def sample(self, cycle: int) -> None:
        """Look at what clock edge number `cycle` transferred."""
        if self.has_reads:
            if self.offered["r"] and self._taken("r"):
                self.offered["r"] = False
                head = self.read_queue[0]
                head[1] += self.beat_bytes
                head[2] -= 1
                if not head[2]:
                    self.read_queue.popleft()
            if self._sent("ar", "addr", "len", "size", "burst"):
                address, beats = self._burst("ar", cycle, self.model.readable)
                self.reads.append((cycle, address, beats))
                self.read_queue.append([self._due(cycle), address, beats])
                self.pending[0] = max(self.pending[0], len(self.read_queue))
        if self.has_writes:
            if self.offered["b"] and self._taken("b"):
                self.offered["b"] = False
                self.responses.popleft()
                self.unconfirmed -= 1
            if self._sent("aw", "addr", "len", "size", "burst"):
                address, beats = self._burst("aw", cycle, self.model.writable)
                self.writes.append((cycle, address, beats))
                self.write_queue.append([address, beats, 0])
                self.unconfirmed += 1
                self.pending[1] = max(self.pending[1], self.unconfirmed)
            if sent := self._sent("w", "data", "strb", "last"):
                self.write_data.append((sent["data"], sent["strb"], sent["last"]))
            self._store(cycle)

    def _store(self, cycle: int) -> None:
        while self.write_queue and self.write_data:
            head = self.write_queue[0]
            data, strobe, last = self.write_data.popleft()
            if last != (head[1] == 1):
                self.violations.append(f"wlast is {last} with {head[1]} beats to come")
            at = head[0] - self.model.origin
            for k, byte in enumerate(data.to_bytes(self.beat_bytes, "little")):
                if strobe >> k & 1 and 0 <= at + k < len(self.content):
                    self.content[at + k] = byte
            head[2] |= 2 * (head[0] in self.model.failing_writes)
            head[0] += self.beat_bytes
            head[1] -= 1
            if not head[1]:
                self.write_queue.popleft()
                self.responses.append([self._due(cycle), head[2]])


@dataclass(frozen=True)
class AxiJob:
    """Stimulus of a component.

    Parameters
    ----------
    memory : what is behind the ``m_axi_`` ports, if there are any
    sources, sinks : for each input stream its payloads, for each output stream how many to wait for
    constants : values of other inputs
    watch : outputs of one bit whose high cycles are recorded
    stall : probability that a source withholds, or a sink refuses, a transfer in a cycle
    halt : cycle from which on ``i_halt`` is high; nothing is waited for then but ``o_idle``
    after : cycles to go on when all is done
    limit : cycles after which the component is taken to hang
    """

    memory: MemoryModel | None
    sources: dict[str, list[int]]
    sinks: dict[str, int]
    constants: dict[str, int] = field(default_factory=dict)
    watch: tuple[str, ...] = ()
    stall: float = 0.0
    halt: int | None = None
    after: int = 20
    limit: int = 100_000


@dataclass(frozen=True)
class AxiAnswer:
    """What happened; see :class:`AxiMemory` for the memory's part.

    ``payloads`` and ``cycles`` are of every transfer of an output stream, ``cycles`` also of an
    input stream; ``watched`` has the cycles in which a port was high; ``held`` counts payloads that
    changed while they waited. ``left_idle`` counts how often, after the halt, ``o_idle`` was high
    and then low.
    """

    payloads: dict[str, list[int]]
    cycles: dict[str, list[int]]
    watched: dict[str, list[int]]
    held: int
    left_idle: int
    content: bytes
    violations: list[str]
    reads: list[tuple[int, int, int]]
    writes: list[tuple[int, int, int]]
    pending: list[int]


@cocotb.test(timeout_time=1, timeout_unit="sec")
async def run(dut):
    """Drive everything each cycle; answer with an :class:`AxiAnswer`."""
    work: AxiJob = job()
    rng = random.Random(cocotb.RANDOM_SEED)
    dut.rst.value = 1
    memory = AxiMemory(dut, work.memory or MemoryModel(0, b""), rng)
    for name, value in work.constants.items():
        getattr(dut, name).value = value
    if work.halt is not None:
        dut.i_halt.value = 0

    def ports(stream):
        return [getattr(dut, f"{stream}__{part}") for part in ("valid", "payload", "ready")]

    sources = {name: (ports(name), deque(payloads)) for name, payloads in work.sources.items()}
    sinks = {name: ports(name) for name in work.sinks}
    for (valid, _, _), _ in sources.values():
        valid.value = 0
    for _, _, ready in sinks.values():
        ready.value = 0
    Clock(dut.clk, 2, unit="ns").start(start_high=False)
    edge = RisingEdge(dut.clk)
    for _ in range(2):
        await edge
    dut.rst.value = 0

    offered = dict.fromkeys(sources, False)
    cycles = {name: [] for name in (*sources, *sinks)}
    payloads = {name: [] for name in sinks}
    waiting = dict.fromkeys(sinks)
    watched = {name: [] for name in work.watch}
    watchers = [(getattr(dut, name), watched[name]) for name in work.watch]
    held = left_idle = 0
    was_idle = False
    quiet = cycle = 0
    while quiet <= work.after:
        if cycle == work.halt:
            dut.i_halt.value = 1
        for name, ((valid, payload, _), queue) in sources.items():
            if not offered[name]:
                offered[name] = bool(queue) and rng.random() >= work.stall
                valid.value = int(offered[name])
                payload.value = queue[0] if offered[name] else rng.getrandbits(len(payload))
        for _, _, ready in sinks.values():
            ready.value = int(rng.random() >= work.stall)
        memory.drive(cycle)
        await edge
        memory.sample(cycle)
        for name, ((_, _, ready), queue) in sources.items():
            if offered[name] and ready.value == HIGH:
                queue.popleft()
                cycles[name].append(cycle)
                offered[name] = False
        for name, (valid, payload, ready) in sinks.items():
            value = int(payload.value) if valid.value == HIGH else None
            if waiting[name] is not None and waiting[name] != value:
                held += 1
            waiting[name] = value
            if value is not None and ready.value == HIGH:
                payloads[name].append(value)
                cycles[name].append(cycle)
                waiting[name] = None
        for handle, seen in watchers:
            if handle.value == HIGH:
                seen.append(cycle)
        if work.halt is not None and cycle >= work.halt:
            idle = dut.o_idle.value == HIGH
            left_idle += was_idle and not idle
            was_idle = done = idle
        else:
            done = all(not queue for _, queue in sources.values())
            done = done and all(len(payloads[name]) >= k for name, k in work.sinks.items())
            done = done and not (memory.read_queue or memory.write_queue or memory.responses)
        quiet = quiet + 1 if done else 0
        cycle += 1
        if cycle > work.limit:
            counts = {name: len(seen) for name, seen in cycles.items()}
            raise AssertionError(f"no end after {cycle} cycles; transfers so far: {counts}")
    answer(
        AxiAnswer(
            payloads,
            cycles,
            watched,
            held,
            left_idle,
            bytes(memory.content),
            memory.violations,
            memory.reads,
            memory.writes,
            memory.pending,
        )
    )
