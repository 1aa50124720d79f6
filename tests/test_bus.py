"""The accelerator between an AXI4-Lite master and an AXI4 memory of another hand: cocotbext-axi.

All bursts of the accelerator have ID 0, so AXI lets memory neither reorder nor interleave their
data; reads, writes and their responses interleave as the pauses of the ten channels will.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.golden.accelerator import Control
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import ISA_VERSION, Drain, Error, Pass, Region, Weights
from shiftcore.golden.machine import Machine
from shiftcore.golden.passes import BlockRows
from shiftcore.golden.program import Program, pack_words
from shiftcore.golden.registers import (
    ID,
    REGISTERS,
    configuration_hash,
    counters,
    implemented,
    register,
)
from shiftcore.golden.tickets import drain_memory, sizes_of
from shiftcore.hw.accelerator import QUIET_CYCLES, Accelerator
from shiftcore.sim.bus_bench import OUTPUTS, BusAnswer, BusJob, BusResult, BusRun
from shiftcore.sim.handshake import Handshake
from shiftcore.sim.hostile_programs import CONFIG, valid_program
from shiftcore.sim.runner import simulate
from shiftcore.tests.compiler.random_networks import random_network

PAGE = 4096
BEAT = CONFIG.accelerator.beat_bytes
OKAY, SLVERR, DECERR = 0, 2, 3
SERIAL = replace(CONFIG, control="serial")


def network_program(seed: int, config: HardwareConfig = CONFIG) -> Program:
    """A random network that leaves some tensors to SCRATCH."""
    rng = np.random.default_rng(seed)
    program = compile_network(random_network(rng, config), config)
    assert program.sizes[Region.SCRATCH] > 0
    return program


def placed(program: Program, rng: Generator, images: int = 1, **options) -> BusRun:
    """A run whose regions lie in any order, each across the end of a page, in random bytes."""
    origin = int(rng.integers(0, 1 << CONFIG.address_bits - 13)) * PAGE
    inputs = rng.integers(0, 256, (images, program.sizes[Region.INPUT] * BEAT)).astype(np.uint8)
    run = BusRun(program, inputs, dict.fromkeys(Region, 0), origin, b"", **options)
    end = origin
    for region in rng.permutation(list(Region)).tolist():
        beats = (run.span(Region(region))[1] - run.span(Region(region))[0]) // BEAT
        page = (end // PAGE + 2) * PAGE
        before = int(rng.integers(1, min(beats, PAGE // BEAT))) if beats > 1 else 0
        run.bases[Region(region)] = page - before * BEAT
        end = run.span(Region(region))[1]
    return replace(run, content=rng.bytes((end // PAGE + 2) * PAGE - origin))


def memories(run: BusRun) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All memory before the run, model and inputs in place, and after it."""
    config, program = run.program.config, run.program
    before = np.frombuffer(run.content, np.uint8).copy()
    for region, content in ((Region.MODEL, program.model), (Region.INPUT, run.inputs.ravel())):
        at = run.bases[region] - run.origin
        before[at : at + content.size] = content
    after = before.copy()
    trace = Machine(program).run(run.inputs, trace=True).trace
    for image in range(len(run.inputs)):
        for (drain, _), written in zip(program.drains, trace, strict=True):
            if isinstance(written, BlockRows):
                codes, exponents = written.codes[image], written.exponents[image]
                data = pack_words(codes, exponents, config.act_bits, BEAT)
            else:
                data = np.ascontiguousarray(written[image]).view(np.uint8)
            if drain.to_memory:
                region = Region(drain.region)
                stride = program.sizes[region] if region == Region.OUTPUT else 0
                beats = drain_memory(drain, sizes_of(config)) + image * stride
                at = run.bases[region] - run.origin + beats * BEAT
                after[at[:, None] + np.arange(data.shape[1])] = data
    return before, after


def simulated(job: BusJob, seed: int, config: HardwareConfig = CONFIG) -> BusAnswer:
    answer = simulate(Accelerator, config, bench="bus_bench", job=job, seed=seed)
    assert [v for each in answer.handshakes.values() for v in each.violations] == []
    # It takes what memory sends in every cycle.
    assert answer.handshakes["m_axi_r"].stalled == answer.handshakes["m_axi_b"].stalled == 0
    return answer


def assert_legal(result: BusResult) -> None:
    assert result.violations == []
    assert result.interrupt == (0, 1, 0)
    assert result.pending == 0
    size = BEAT.bit_length() - 1
    for _, burst in result.bursts:
        address, beats = burst["addr"], burst["len"] + 1
        fixed = {"id": 0, "size": size, "burst": 1, "cache": 3, "prot": 0}
        assert burst == fixed | {"addr": address, "len": beats - 1}
        assert address % BEAT == 0
        assert beats <= CONFIG.burst_beats
        assert address // PAGE == (address + beats * BEAT - 1) // PAGE


def assert_exact(run: BusRun, result: BusResult) -> None:
    """Finished, and every byte of memory is what golden says."""
    assert result.code is Error.NONE
    assert_legal(result)
    assert np.array_equal(np.frombuffer(result.content, np.uint8), memories(run)[1])


def assert_paused(handshakes: dict[str, Handshake]) -> None:
    """Of what the bus model drives: ready is low in 30 % of the cycles in which it is waited for,
    valid in 30 % of all."""
    for name, each in handshakes.items():
        if name in OUTPUTS:
            assert each.stalled >= 0.3 * (each.cycles - each.idle) > 0, name
        else:
            assert each.cycles > each.idle >= 0.3 * each.cycles, name


def pages_met(result: BusResult, channel: str) -> int:
    """Bursts of fewer beats than would be allowed, had the page not ended; another goes on."""
    bursts = [(burst["addr"], burst["len"] + 1) for name, burst in result.bursts if name == channel]
    begins = {address for address, _ in bursts}
    ends = [address + beats * BEAT for address, beats in bursts if beats < CONFIG.burst_beats]
    return sum(end % PAGE == 0 and end in begins for end in ends)


@pytest.mark.parametrize("pause", [0.0, 0.4, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_results_are_exact(seed: int, pause: float):
    rng = np.random.default_rng([seed, int(10 * pause)])
    programs = [*(valid_program(rng) for _ in range(3)), network_program((26, 0)[seed])]
    runs = tuple(
        placed(
            program,
            rng,
            int(rng.integers(1, 3)),
            pause=pause,
            latency=int(rng.choice([0, 10, 60])) if pause else 0,
            reset=bool(rng.integers(2)),
        )
        for program in programs
    )
    answer = simulated(BusJob(runs=runs), seed)
    for run, result in zip(runs, answer.results, strict=True):
        assert_exact(run, result)
    for channel in ("m_axi_ar", "m_axi_aw"):
        assert sum(pages_met(result, channel) for result in answer.results) > 0
    assert answer.polled > 100
    if pause:
        assert_paused(answer.handshakes)


def refusals(run: BusRun, rng: Generator) -> Iterator[tuple[BusRun, Error]]:
    """The same run with one beat refused: at an end of each region, and anywhere in it."""
    for what, region in (
        ("read", Region.MODEL),
        ("read", Region.INPUT),
        ("read", Region.SCRATCH),
        ("write", Region.SCRATCH),
        ("write", Region.OUTPUT),
    ):
        begin, end = run.span(region)
        anywhere = int(rng.integers(begin // BEAT, end // BEAT)) * BEAT
        for address in (int(rng.choice([begin, end - BEAT])), anywhere):
            response = int(rng.choice([SLVERR, DECERR]))
            code = Error.READ_FAILED if what == "read" else Error.WRITE_FAILED
            yield replace(run, refused=(what, address), response=response), code


def shortened(run: BusRun) -> Iterator[tuple[BusRun, Error]]:
    """The same run with a region declared one beat too small."""
    for region in Region:
        sizes = list(run.program.sizes)
        sizes[region] -= 1
        yield replace(run, program=replace(run.program, sizes=tuple(sizes))), Error.MEMORY_RANGE


@pytest.mark.parametrize("seed", [0, 1])
def test_errors_end_in_the_status(seed: int):
    """Whatever the memory refuses: the code is right, no wrong byte is written, nothing hangs, and
    the next run is right, with a soft reset and without."""
    rng = np.random.default_rng([seed, 99])
    good = placed(valid_program(rng), rng, pause=0.4, latency=10)
    # A slow memory, so that a halt finds reads and writes on their way.
    slow = replace(good, latency=100, often=0.5)
    late = [(replace(slow, timeout=cycles), Error.TIMEOUT) for cycles in (50, 500, 1500, 2500)]
    assert_all_end(good, [*refusals(slow, rng), *shortened(good), *late], seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_serial_control(seed: int):
    """The same of the small form of control, and what it says of programs that are wrong."""
    rng = np.random.default_rng([seed, 98])
    program = network_program((26, 0)[seed], SERIAL)
    good = placed(program, rng, pause=0.4, latency=10)
    *others, last, end = program.instructions
    assert isinstance(last, Drain)
    (use, *_) = (item for item in program.instructions if isinstance(item, Pass))
    wrong = {
        Error.BAD_FIELD: replace(last, rows=0),
        Error.WEIGHTS_LEFT: Weights(offset=0, tiles=1),
        Error.DEADLOCK: use,
    }
    bad = [
        (replace(good, program=replace(program, instructions=(*others, item, end))), code)
        for code, item in wrong.items()
    ]
    slow = replace(good, latency=100, often=0.5)
    assert_all_end(good, [*bad, *refusals(slow, rng), *shortened(good)], seed, SERIAL)


def assert_all_end(
    good: BusRun, failing: list[tuple[BusRun, Error]], seed: int, config: HardwareConfig = CONFIG
) -> None:
    """What fails says why and writes nothing wrong, and a good run after it is exact."""
    runs = []
    for k, (bad, _) in enumerate(failing):
        runs += [replace(bad, reset=k % 2 == 0), good]
    answer = simulated(BusJob(runs=tuple(runs)), seed, config)
    before, after = memories(good)
    for (bad, code), result in zip(failing, answer.results[::2], strict=True):
        assert result.code is code
        assert_legal(result)
        found = np.frombuffer(result.content, np.uint8)
        if bad.program.instructions is good.program.instructions:
            assert ((found == before) | (found == after)).all()
    for result in answer.results[1::2]:
        assert_exact(good, result)
    assert_paused(answer.handshakes)


@pytest.mark.parametrize("control", ["queued", "serial"])
def test_a_run_can_be_abandoned_in_every_cycle(control: Control):
    """Also before it has begun to read, by a host that does not wait for responses."""
    rng = np.random.default_rng(6)
    config = CONFIG if control == "queued" else SERIAL
    run = placed(network_program(26, config), rng)
    runs = (replace(run, abandoned=(*range(1, 24), 60, 300)), run)
    for each in simulated(BusJob(runs=runs), 6, config).results:
        assert_exact(run, each)


def test_memory_may_take_its_time():
    """Long waits for memory are no deadlock."""
    rng = np.random.default_rng(3)
    run = placed(valid_program(rng), rng, pause=0.3, latency=4 * QUIET_CYCLES, often=0.03)
    (result,) = simulated(BusJob(runs=(run,)), 3).results
    assert_exact(run, result)
    assert result.longest > 2 * QUIET_CYCLES


@pytest.mark.parametrize("control", ["queued", "serial"])
@pytest.mark.parametrize("seed", [0, 1])
def test_registers(seed: int, control: Control):
    """Bytes, halves, words and more, of registers and of places where none is."""
    rng = np.random.default_rng([seed, 7])
    words = {each.offset: 0 for each in REGISTERS}
    words |= {register("ID").offset: ID, register("ISA_VERSION").offset: ISA_VERSION}
    config = replace(CONFIG, control=control)
    words[register("CONFIG_HASH").offset] = configuration_hash(config)
    spec = config.accelerator
    assert (counters(spec) == ("CYCLES",)) == (control == "serial")
    masks = {e.offset: implemented(e, spec) if e.access == "rw" else 0 for e in REGISTERS}
    command = register("CONTROL").offset
    accesses, expected = [], []
    while len(accesses) < 250:
        address, size = int(rng.integers(0, 0xE8)), int(rng.integers(1, 9))
        touched = range(address, address + size)
        response = OKAY if all(at & ~3 in words for at in touched) else SLVERR
        if rng.random() < 0.5:
            content = b"".join(words.get(at, 0).to_bytes(4, "little") for at in range(0, 0xF0, 4))
            accesses.append((address, size))
            expected.append((response, content[address : address + size]))
        elif command not in touched:
            data = rng.bytes(size)
            accesses.append((address, data))
            expected.append((response, b""))
            for at, byte in zip(touched, data, strict=True):
                mask = masks.get(at & ~3, 0) & 0xFF << 8 * (at & 3)
                if mask:
                    words[at & ~3] = words[at & ~3] & ~mask | byte << 8 * (at & 3) & mask
    answer = simulated(BusJob(tuple(accesses), pause=0.4), seed, config)
    assert answer.accesses == expected
    assert 20 < sum(response == SLVERR for response, _ in expected) < 200
    control_bus = {name: h for name, h in answer.handshakes.items() if name.startswith("s_axi")}
    assert_paused(control_bus)


def test_a_broken_handshake_is_noticed():
    """Valid that is taken back, a payload that changes; and what is allowed."""
    offers: list[tuple[dict[str, int] | None, bool]] = [
        (None, False), ({"data": 1}, False), ({"data": 1}, True), ({"data": 2}, True), (None, True),
    ]  # fmt: skip
    good = Handshake("w")
    sent = [good.sample(*offer) for offer in offers]
    assert sent == [None, None, {"data": 1}, {"data": 2}, None]
    assert (good.cycles, good.idle, good.stalled, good.transfers) == (5, 2, 1, 2)
    assert good.violations == []
    for second in (None, {"data": 2}):
        bad = Handshake("w")
        bad.sample({"data": 1}, False)
        bad.sample(second, True)
        assert bad.violations == [f"w in cycle 1: {{'data': 1}} became {second}"]
