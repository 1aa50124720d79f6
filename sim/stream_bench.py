"""Bench of a component whose edges are streams: transactions in, transactions out."""

import random
from dataclasses import dataclass, field

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from .exchange import answer, job
from .handshake import HIGH

__all__ = ["After", "StreamAnswer", "StreamJob"]

After = dict[int, dict[str, int]]


@dataclass(frozen=True)
class StreamJob:
    """Stimulus of a component.

    Parameters
    ----------
    sources : for each input stream its payloads
    sinks : for each output stream the number of payloads to wait for
    after : for an input stream, transactions that wait: index -> {stream: transfers to wait for}
    stall : probability that a source withholds, or a sink refuses, a transfer in a cycle
    constants : values of other input ports
    quiet : a port that must be low at the end; its last high cycle is reported
    limit : cycles after which the component is taken to hang
    shy : sinks refuse until a transfer is offered, which by the rule of streams must not wait
    """

    sources: dict[str, list[int]]
    sinks: dict[str, int]
    after: dict[str, After] = field(default_factory=dict)
    stall: float = 0.0
    constants: dict[str, int] = field(default_factory=dict)
    quiet: str | None = None
    limit: int = 1_000_000
    shy: bool = False


@dataclass(frozen=True)
class StreamAnswer:
    """What happened: payloads of the output streams, and the cycle of every transfer.

    ``held`` counts, per output stream, payloads that changed while they waited: 0 by the rule of
    streams.
    """

    payloads: dict[str, list[int]]
    cycles: dict[str, list[int]]
    total: int
    last_busy: int
    held: dict[str, int]


@cocotb.test(timeout_time=1, timeout_unit="sec")
async def run(dut):
    """Drive every stream each cycle; answer with a :class:`StreamAnswer`."""
    work: StreamJob = job()
    rng = random.Random(cocotb.RANDOM_SEED)
    stall = work.stall
    for name, value in work.constants.items():
        getattr(dut, name).value = value

    def port(stream, part):
        return getattr(dut, f"{stream}__{part}")

    dut.rst.value = 1
    for name in work.sources:
        port(name, "valid").value = 0
    for name in work.sinks:
        port(name, "ready").value = 0
    Clock(dut.clk, 2, unit="ns").start(start_high=False)
    for _ in range(2):
        await RisingEdge(dut.clk)
    dut.rst.value = 0

    counts = dict.fromkeys([*work.sources, *work.sinks], 0)
    cycles = {name: [] for name in counts}
    payloads = {name: [] for name in work.sinks}
    held = dict.fromkeys(work.sinks, 0)
    waiting = dict.fromkeys(work.sinks)
    valid = dict.fromkeys(work.sources, False)
    ready = dict.fromkeys(work.sinks, False)
    source_ports = {
        n: (port(n, "valid"), port(n, "payload"), port(n, "ready")) for n in work.sources
    }
    sink_ports = {n: (port(n, "ready"), port(n, "payload"), port(n, "valid")) for n in work.sinks}
    busy = getattr(dut, work.quiet) if work.quiet else None
    last_busy = 0
    edge = RisingEdge(dut.clk)
    cycle = -1
    while True:
        for name, (to_valid, to_payload, _) in source_ports.items():
            index = counts[name]
            if not valid[name] and index < len(work.sources[name]):
                waits = work.after.get(name, {}).get(index)
                free = waits is None or all(counts[k] >= v for k, v in waits.items())
                if free and (stall == 0 or rng.random() >= stall):
                    to_payload.value = work.sources[name][index]
                    to_valid.value = 1
                    valid[name] = True
        for name, (to_ready, _, _) in sink_ports.items():
            wanted = stall == 0 or rng.random() >= stall
            wanted = wanted and (not work.shy or waiting[name] is not None)
            if wanted != ready[name]:
                to_ready.value = int(wanted)
                ready[name] = wanted
        await edge
        cycle += 1
        for name, (to_valid, to_payload, from_ready) in source_ports.items():
            if valid[name] and from_ready.value == HIGH:
                cycles[name].append(cycle)
                counts[name] += 1
                index = counts[name]
                waits = work.after.get(name, {}).get(index)
                more = index < len(work.sources[name]) and waits is None and stall == 0
                if more:
                    to_payload.value = work.sources[name][index]
                else:
                    to_valid.value = 0
                    valid[name] = False
        for name, (_, from_payload, from_valid) in sink_ports.items():
            if from_valid.value != HIGH:
                waiting[name] = None
                continue
            value = int(from_payload.value)
            if waiting[name] not in (None, value):
                held[name] += 1
            waiting[name] = value
            if ready[name]:
                payloads[name].append(value)
                cycles[name].append(cycle)
                counts[name] += 1
                waiting[name] = None
        if busy is not None and busy.value == HIGH:
            last_busy = cycle
        done = all(counts[n] >= len(p) for n, p in work.sources.items())
        done = done and all(counts[n] >= k for n, k in work.sinks.items())
        if done and (busy is None or busy.value == 0):
            break
        if cycle > work.limit:
            raise AssertionError(f"no end after {cycle} cycles; transfers so far: {counts}")
    answer(StreamAnswer(payloads, cycles, cycle + 1, last_busy, held))
