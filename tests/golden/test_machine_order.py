"""What instructions touch, the tickets that follow, and what is caught when one is missing."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden import tickets as tickets_module
from shiftcore.golden.compare import first_mismatch
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import (
    Drain,
    End,
    Error,
    Form,
    Instruction,
    Load,
    Loop,
    Pass,
    Region,
    Weights,
)
from shiftcore.golden.machine import (
    Machine,
    MachineError,
    accesses,
    check_order,
    check_written,
    schedule,
    tickets,
)
from shiftcore.golden.program import Program
from shiftcore.tests.golden.machine_cases import (
    ONCE,
    Builder,
    random_config,
    random_images,
    random_pass,
    random_program,
    walk,
)

WAITS = ("after_load", "after_pass", "after_drain")


def fewer(program: Program) -> list[Program]:
    """The program with one wait removed, or shortened by one, for every wait it has."""
    found = []
    for index, item in enumerate(program.instructions):
        for name in WAITS:
            count = getattr(item, name)
            for less in {0, count - 1} if count else ():
                items = list(program.instructions)
                items[index] = replace(item, **{name: less})
                found.append(replace(program, instructions=tuple(items)))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_ticket_is_needed_and_they_suffice(seed: int):
    rng = np.random.default_rng([seed, 1])
    program = random_program(rng, random_config(rng), 14)
    check_order(program)
    machine, images = Machine(program), random_images(rng, program, 2)
    expected = machine.run(images, trace=True)
    for _ in range(5):
        found = machine.run(images, trace=True, interleaving=rng)
        assert first_mismatch(program, expected.trace, found.trace) is None
        assert np.array_equal(found.outputs, expected.outputs)
    for other in fewer(program):
        with pytest.raises(MachineError, match=r"^instruction \d+ .* must wait for instruct") as e:
            check_order(other)
        assert e.value.code == Error.NONE


def test_what_is_not_ordered_goes_wrong():
    """Interleavings are random enough to show a missing ticket in the result."""
    wrong = 0
    for seed in range(20):
        rng = np.random.default_rng([seed, 2])
        program = random_program(rng, random_config(rng), 14)
        images = random_images(rng, program, 1)
        expected = Machine(program).run(images, trace=True)
        items = [
            item
            if isinstance(item, End)
            else replace(item, after_load=0, after_pass=0, after_drain=0)
            for item in program.instructions
        ]
        machine = Machine(replace(program, instructions=tuple(items)))
        runs = [machine.run(images, trace=True, interleaving=rng) for _ in range(5)]
        wrong += any(first_mismatch(program, expected.trace, run.trace) for run in runs)
    assert wrong >= 5


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("chunk", [1 << 20, 5])
def test_accesses_of_a_pass(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tickets_module, "_CHUNK", chunk)
    rng = np.random.default_rng([seed, 3])
    config = random_config(rng)
    item = random_pass(rng, config)
    read, started, continued = set(), set(), set()
    for buffer, accumulator, y, x, turns in walk(item, config.accelerator):
        if 0 <= y < item.height and 0 <= x < item.width:
            read.add(buffer)
        if item.start and not any(turns[: item.start_level]):
            started.add(accumulator)
        elif accumulator not in started:
            continued.add(accumulator)
    found = accesses(item, config)
    assert found.buffer_reads.tolist() == sorted(read)
    assert found.accumulator_reads.tolist() == sorted(continued)
    assert found.accumulator_writes.tolist() == sorted(started | continued)
    assert not any(len(each) for each in (found.buffer_writes, *found[4:]))


CONFIG = HardwareConfig(4, 2, buffer_depth=64, accumulator_depth=32)


def test_accesses_of_loads_and_drains():
    # A word of 4 lanes of 4 bits and an exponent is one beat of 64 bits, a raw row too.
    load = Load(
        offset=3, region=Region.SCRATCH, buffer=60, words=2, rows=2, blocks=2,
        row_step=5, block_step=20, buffer_row_step=2**20 - 10, buffer_block_step=2**20 - 30,
    )  # fmt: skip
    found = accesses(load, CONFIG)
    assert found.buffer_writes.tolist() == [20, 21, 30, 31, 50, 51, 60, 61]
    assert found.scratch_reads.tolist() == [3, 4, 8, 9, 23, 24, 28, 29]
    assert not any(len(found[k]) for k in (0, 2, 3, 5))
    assert not accesses(replace(load, region=Region.INPUT), CONFIG).scratch_reads.size
    drain = Drain(
        accumulator=1, beat_step=10, rows=2, pixels=3, form=Form.SIGNED, to_buffer=1, to_memory=1,
        buffer=7, buffer_row_step=8, region=Region.SCRATCH, offset=2, row_step=4,
    )  # fmt: skip
    found = accesses(drain, CONFIG)
    assert found.accumulator_reads.tolist() == [*range(1, 7), *range(11, 17)]
    assert found.buffer_writes.tolist() == [7, 8, 9, 15, 16, 17]
    assert found.scratch_writes.tolist() == [2, 3, 4, 6, 7, 8]
    assert not any(len(found[k]) for k in (0, 3, 4))
    raw = replace(drain, form=Form.RAW, to_buffer=0)
    found = accesses(raw, CONFIG)
    assert found.accumulator_reads.tolist() == [*range(1, 7)]
    assert not found.buffer_writes.size
    assert not accesses(replace(raw, region=Region.OUTPUT), CONFIG).scratch_writes.size
    wide = HardwareConfig(16, 3, act_bits=8, bus_bits=32, buffer_depth=64, accumulator_depth=32)
    one = Load(offset=0, region=Region.SCRATCH, buffer=0, words=1)
    assert accesses(one, wide).scratch_reads.tolist() == [*range(5)]
    assert accesses(replace(one, fixed=1), wide).scratch_reads.tolist() == [*range(4)]


def load(buffer: int, words: int = 4, **fields: int) -> Load:
    return Load(
        **({"offset": 0, "region": Region.INPUT, "buffer": buffer, "words": words} | fields)
    )


def take(buffer: int, accumulator: int, pixels: int = 4) -> Pass:
    loops = (ONCE,) * 4 + (Loop(pixels, 1, 1),)
    return Pass(buffer=buffer, accumulator=accumulator, start=1, height=1, width=1, loops=loops)


def drain(accumulator: int, buffer: int, pixels: int = 4) -> Drain:
    return Drain(
        accumulator=accumulator, pixels=pixels, form=1, to_buffer=1, buffer=buffer, beat_step=0
    )


def waits(items: list[Instruction]) -> list[tuple[int, ...]]:
    return [tuple(getattr(item, name) for name in WAITS) for item in tickets(items, CONFIG)]


def test_tickets_are_the_latest_conflict_and_no_more():
    items = [
        load(0),  # 0
        load(8),
        take(0, 0),  # needs the first LOAD only
        take(8, 4),  # and now the second one
        drain(0, 16),
        load(0),  # the PASS that read it has gone; the DRAIN is not concerned
        take(16, 0),  # its DRAIN came after that PASS, and after the LOADs before
        drain(4, 0),  # a LOAD wrote there, a PASS before it read it
        End(),
    ]
    assert waits(items) == [
        (0, 0, 0),
        (0, 0, 0),
        (1, 0, 0),
        (2, 0, 0),
        (0, 1, 0),
        (0, 1, 0),
        (0, 0, 1),
        (3, 2, 0),
        (0, 0, 0),
    ]


def test_what_is_known_through_another_is_not_waited_for():
    items = [load(0), take(0, 0), drain(0, 0), take(0, 0), load(0), End()]
    # DRAIN: the LOAD of word 0 was before the PASS that it waits for. The last LOAD: its PASS
    # waited for the DRAIN.
    assert waits(items) == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 0, 0)]


def test_tickets_that_are_there_are_replaced():
    items = [load(0, after_drain=7), replace(take(0, 0), after_load=9, after_pass=3)]
    assert waits(items) == [(0, 0, 0), (1, 0, 0)]


def test_instructions_and_address_are_named():
    builder = Builder(CONFIG, input=64, scratch=64, output=64)
    tile = (np.zeros((4, 2), np.int8), np.zeros(2, np.float32), np.zeros(2, np.float32))
    builder.add(load(0))
    builder.weights([tile])
    builder.add(take(2, 0, 2))
    builder.drain(accumulator=1, pixels=1, form=1, to_memory=1, region=Region.SCRATCH, offset=9)
    builder.add(load(30, 3, region=Region.SCRATCH, offset=8))
    good = builder.program()
    check_order(good)

    def message(index: int, **fields: int) -> str:
        items = list(good.instructions)
        items[index] = replace(items[index], **fields)
        with pytest.raises(MachineError) as caught:
            check_order(replace(good, instructions=tuple(items)))
        assert caught.value.instruction == index
        return str(caught.value)

    assert message(2, after_load=0) == (
        "instruction 2 (PASS) must wait for instruction 0 (LOAD): both touch buffer word 2; "
        "after_load must be at least 1"
    )
    assert message(3, after_pass=0) == (
        "instruction 3 (DRAIN) must wait for instruction 2 (PASS): both touch accumulator 1; "
        "after_pass must be at least 1"
    )
    assert message(4, after_drain=0) == (
        "instruction 4 (LOAD) must wait for instruction 3 (DRAIN): both touch SCRATCH beat 9; "
        "after_drain must be at least 1"
    )
    with pytest.raises(MachineError) as caught:
        check_written(good)
    assert str(caught.value) == (
        "instruction 4 (LOAD) reads SCRATCH beat 8, which nothing wrote before"
    )


def test_a_wait_may_be_for_what_comes_later():
    # The DRAIN clears word 0 only after the second LOAD wrote it, whatever the program's order.
    items = (
        load(0),
        replace(drain(0, 0), after_load=2),
        load(0),
        End(),
    )
    assert schedule(items, CONFIG) == [0, 2, 1]
    program = Program(
        CONFIG, items, np.zeros(0, np.uint8), (), (99, 9, 0, 0), (1, 1, 1, 1), {}, "", 0
    )
    check_order(program)
    items = (items[0], replace(items[1], after_load=1), *items[2:])
    with pytest.raises(MachineError, match=r"^instruction 2 \(LOAD\) must wait for instruction 1"):
        check_order(replace(program, instructions=items))


def test_serial_control_executes_one_after_the_other():
    """Tickets mean nothing, and a PASS takes only tiles of the few WEIGHTS before it."""
    config = replace(CONFIG, control="serial")
    rng = np.random.default_rng(5)
    items = (load(0), replace(drain(0, 0), after_load=2), load(0), End())
    assert schedule(items, config) == [0, 1, 2]
    assert schedule(items, config, rng) == [0, 1, 2]
    for ticket in (0, 2, 9):  # none, one of what comes later, and one of what never comes
        items = (items[0], replace(items[1], after_load=ticket), *items[2:])
        check_order(
            Program(
                config, items, np.zeros(0, np.uint8), (), (99, 9, 0, 0), (1, 1, 1, 1), {}, "", 0
            )
        )
    tile, use = Weights(offset=0, tiles=1), take(0, 0)
    assert schedule((tile, tile, use, use, End()), config) == [2, 3]
    for stuck, where in (((tile,) * 3 + (use,) * 3, 2), ((replace(use, after_load=3), tile), 0)):
        with pytest.raises(MachineError) as error:
            schedule((*stuck, End()), config)
        assert (error.value.code, error.value.instruction) == (Error.DEADLOCK, where)
        assert "LOAD" not in str(error.value)


def test_an_order_is_legal():
    """Every random order keeps each engine's own order and all tickets."""
    rng = np.random.default_rng(4)
    program = random_program(rng, random_config(rng), 20)
    items = program.instructions
    orders = {tuple(schedule(items, program.config, rng)) for _ in range(20)}
    assert len(orders) > 1
    for order in orders:
        done = {"LOAD": 0, "PASS": 0, "DRAIN": 0}
        last = dict.fromkeys(done, -1)
        for index in order:
            item = items[index]
            assert item.after_load <= done["LOAD"]
            assert item.after_pass <= done["PASS"]
            assert item.after_drain <= done["DRAIN"]
            assert index > last[item.opcode.name]
            last[item.opcode.name] = index
            done[item.opcode.name] += 1
        assert sorted(order) == sorted(schedule(items, program.config))
