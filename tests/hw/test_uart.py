"""Both ends of the serial line, cycle by cycle."""

import numpy as np
import pytest
from amaranth.hdl import Module, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.uart import UartSpec
from shiftcore.hw.uart import UartReceiver, UartTransmitter
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import SideBySide

DIVISORS = (4, 7)


class Ends(wiring.Component):
    """A transmitter and a receiver that are not connected."""

    def __init__(self, divisor: int):
        self.spec = UartSpec(divisor)
        members = {"i": In(stream.Signature(unsigned(8))), "o_line": Out(1)}  # pyright: ignore[reportArgumentType]
        members |= {"i_line": In(1), "o": Out(stream.Signature(unsigned(8))), "o_broken": Out(1)}  # pyright: ignore[reportArgumentType]
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.sender = sender = UartTransmitter(self.spec)
        m.submodules.receiver = receiver = UartReceiver(self.spec)
        wiring.connect(m, wiring.flipped(self.i), sender.i)
        wiring.connect(m, receiver.o, wiring.flipped(self.o))
        m.d.comb += [
            self.o_line.eq(sender.o_line),
            receiver.i_line.eq(self.i_line),
            self.o_broken.eq(receiver.o_broken),
        ]
        return m


def sent(spec: UartSpec, rng: np.random.Generator, cycles: int, pause: float):
    """Offers (valid, payload) of every cycle, and the line that follows by the model."""
    valid, payload = np.zeros(cycles, int), np.zeros(cycles, int)
    line = np.ones(cycles, np.uint8)
    free, offered = 0, 0
    while True:
        wait = int(rng.integers(1, 3 * spec.byte_cycles)) if rng.random() < pause else 0
        offered += wait
        accepted = max(free, offered)
        if accepted + 1 + spec.byte_cycles > cycles:
            return valid, payload, line
        byte = int(rng.integers(0, 256))
        valid[offered : accepted + 1] = 1
        payload[offered : accepted + 1] = byte
        begin = accepted + 1
        line[begin : begin + spec.byte_cycles] = spec.compute(np.array([byte]))
        free, offered = accepted + spec.byte_cycles, accepted + 1


def received(spec: UartSpec, rng: np.random.Generator, cycles: int) -> np.ndarray:
    """A line with bytes, pauses, stop bits that are low, glitches, and bits of any length."""
    parts, length = [np.ones(3, np.uint8)], 3
    while length < cycles:
        kind = rng.random()
        if kind < 0.6:
            part = spec.compute(rng.integers(0, 256, 1, np.uint8))
        elif kind < 0.7:
            part = spec.compute(rng.integers(0, 256, 1, np.uint8))
            part[-spec.divisor :] = 0
        elif kind < 0.8:
            part = np.ones(int(rng.integers(1, 5 * spec.divisor)), np.uint8)
        elif kind < 0.9:
            part = np.repeat(np.array([0, 1], np.uint8), [int(rng.integers(1, spec.divisor)), 4])
        else:
            part = rng.integers(0, 2, int(rng.integers(1, 100))).astype(np.uint8)
        parts.append(part)
        length += len(part)
    return np.concatenate(parts)[:cycles]


@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_both_ends(pause, simulator):
    rng = np.random.default_rng(int(10 * pause))
    cycles = 8000
    inputs, expected = {}, []
    for k, divisor in enumerate(DIVISORS):
        spec = UartSpec(divisor)
        valid, payload, line = sent(spec, rng, cycles, pause)
        noise = received(spec, rng, cycles)
        expected.append((spec, valid, line, noise))
        inputs |= {f"u{k}__i__valid": valid.tolist(), f"u{k}__i__payload": payload.tolist()}
        inputs |= {f"u{k}__i_line": noise.tolist(), f"u{k}__o__ready": [1] * cycles}
    names = ("i__ready", "o_line", "o__valid", "o__payload", "o_broken")
    outputs = tuple(f"u{k}__{name}" for k in range(len(DIVISORS)) for name in names)
    arguments = [(divisor,) for divisor in DIVISORS]
    answer = simulate(
        SideBySide, Ends, arguments, bench="pipeline_bench", job=PipelineJob(inputs, outputs),
        simulator=simulator,
    )  # fmt: skip
    for k, (spec, valid, line, noise) in enumerate(expected):
        ready, found, came, bytes_, broken = (np.array(answer[f"u{k}__{n}"]) for n in names)
        assert np.array_equal(found[:cycles], line)
        accepted = np.flatnonzero(valid & ready[:cycles])
        assert len(accepted) > 50
        if not pause:
            assert set(np.diff(accepted)) == {spec.byte_cycles}
        # The receiver reports every byte, and every broken one, in the cycle that the model says.
        reports = [report for report in spec.receive(noise) if report[0] < cycles]
        good = [(cycle, byte) for cycle, byte in reports if byte is not None]
        bad = [cycle for cycle, byte in reports if byte is None]
        at = np.flatnonzero(came[:cycles])
        assert list(zip(at.tolist(), bytes_[at].tolist(), strict=True)) == good
        assert np.flatnonzero(broken[:cycles]).tolist() == bad
        assert len(good) > 50
        assert len(bad) > 10


def test_a_byte_that_waits_is_kept(simulator):
    spec = UartSpec(4)
    line = np.concatenate([spec.compute(np.array([0x5A, 0xC3, 0x17])), np.ones(20, np.uint8)])
    count = len(line)
    ready = [int(cycle > 2 * spec.byte_cycles + spec.receive_latency - 5) for cycle in range(count)]
    inputs = {"i_line": line.tolist(), "o__ready": ready}
    inputs |= {"i__valid": [0] * count, "i__payload": [0] * count}
    job = PipelineJob(inputs, ("o__valid", "o__payload"))
    answer = simulate(Ends, 4, bench="pipeline_bench", job=job, simulator=simulator)
    taken = [
        byte
        for valid, byte, able in zip(
            answer["o__valid"], answer["o__payload"], [*ready, 1], strict=False
        )
        if valid and able
    ]
    assert taken == [0x5A, 0x17]
