"""Bench of an AXI4-Lite subordinate: a script of reads, writes, and values of other ports."""

import random
from dataclasses import dataclass

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from .exchange import answer, job
from .handshake import HIGH

__all__ = ["ControlAnswer", "ControlJob", "Pulse", "Read", "Set", "Step", "Wait", "Write"]


@dataclass(frozen=True)
class Write:
    """Write `data` to `address`; the data come `lead` cycles before the address, or after it."""

    address: int
    data: int
    strobe: int = 15
    lead: int = 0


@dataclass(frozen=True)
class Read:
    """Read `address`."""

    address: int


@dataclass(frozen=True)
class Set:
    """Give input ports values that stay."""

    ports: dict[str, int]


@dataclass(frozen=True)
class Pulse:
    """Give input ports values for so many cycles, then 0."""

    ports: dict[str, int]
    cycles: int = 1


@dataclass(frozen=True)
class Wait:
    """Let cycles pass."""

    cycles: int


Step = Write | Read | Set | Pulse | Wait


@dataclass(frozen=True)
class ControlJob:
    """A script.

    Parameters
    ----------
    steps : done one after the other
    inputs : input ports, 0 at first
    watch : outputs of one bit whose high cycles are recorded
    record : outputs whose values after the last step are wanted
    stall : probability that a channel pauses in a cycle
    """

    steps: list[Step]
    inputs: tuple[str, ...]
    watch: tuple[str, ...] = ()
    record: tuple[str, ...] = ()
    stall: float = 0.0


@dataclass(frozen=True)
class ControlAnswer:
    """``results`` has for every Read (data, response), for every Write its response, else None.

    ``accepted`` and ``answered`` are the cycles in which an access was complete and in which its
    response was first valid; ``held`` counts responses that changed while they waited.
    """

    results: list
    accepted: list[int | None]
    answered: list[int | None]
    watched: dict[str, list[int]]
    recorded: dict[str, int]
    held: int


@cocotb.test(timeout_time=1, timeout_unit="sec")
async def run(dut):
    """Do the script; answer with a :class:`ControlAnswer`."""
    work: ControlJob = job()
    rng = random.Random(cocotb.RANDOM_SEED)

    def port(name):
        return getattr(dut, f"s_axi_{name}")

    dut.rst.value = 1
    for name in work.inputs:
        getattr(dut, name).value = 0
    for name in ("awvalid", "wvalid", "arvalid", "bready", "rready"):
        port(name).value = 0
    Clock(dut.clk, 2, unit="ns").start(start_high=False)
    edge = RisingEdge(dut.clk)
    for _ in range(2):
        await edge
    dut.rst.value = 0
    watched = {name: [] for name in work.watch}
    watchers = [(getattr(dut, name), seen) for name, seen in watched.items()]
    cycle = 0
    held = 0

    async def tick():
        nonlocal cycle
        await edge
        for handle, seen in watchers:
            if handle.value == HIGH:
                seen.append(cycle)
        cycle += 1

    def scramble(names):
        for name in names:
            port(name).value = rng.getrandbits(len(port(name)))

    async def access(channels, delays, response, parts):
        """Send `channels`, {name: payload}, and take the response: (parts, accepted, answered)."""
        nonlocal held
        left = dict(delays)
        pending = set(channels)
        valid = dict.fromkeys(channels, False)
        accepted = first = before = None
        while True:
            for name in pending:
                if not valid[name]:
                    valid[name] = left[name] <= 0 and rng.random() >= work.stall
                    port(f"{name}valid").value = int(valid[name])
                    if valid[name]:
                        for part, value in channels[name].items():
                            port(part).value = value
                    left[name] -= 1
            port(f"{response}ready").value = ready = int(rng.random() >= work.stall)
            await tick()
            for name in [name for name in pending if valid[name]]:
                if port(f"{name}ready").value == HIGH:
                    pending.remove(name)
                    port(f"{name}valid").value = 0
                    scramble(channels[name])
                    accepted = cycle - 1
            if port(f"{response}valid").value == HIGH:
                assert not pending, "a response before the request"
                now = [int(port(part).value) for part in parts]
                first = cycle - 1 if first is None else first
                held += before is not None and before != now
                before = now
                if ready:
                    port(f"{response}ready").value = 0
                    return now, accepted, first
            else:
                held += before is not None

    results, accepted, answered = [], [], []
    for step in work.steps:
        result = begin = end = None
        if isinstance(step, Write):
            channels = {
                "aw": {"awaddr": step.address},
                "w": {"wdata": step.data, "wstrb": step.strobe},
            }
            delays = {"aw": max(step.lead, 0), "w": max(-step.lead, 0)}
            (result,), begin, end = await access(channels, delays, "b", ["bresp"])
        elif isinstance(step, Read):
            channels = {"ar": {"araddr": step.address}}
            found, begin, end = await access(channels, {"ar": 0}, "r", ["rdata", "rresp"])
            result = tuple(found)
        elif isinstance(step, Wait):
            for _ in range(step.cycles):
                await tick()
        else:
            for name, value in step.ports.items():
                getattr(dut, name).value = value
            if isinstance(step, Pulse):
                for _ in range(step.cycles):
                    await tick()
                for name in step.ports:
                    getattr(dut, name).value = 0
        results.append(result)
        accepted.append(begin)
        answered.append(end)
    await tick()
    recorded = {name: int(getattr(dut, name).value) for name in work.record}
    answer(ControlAnswer(results, accepted, answered, watched, recorded, held))
