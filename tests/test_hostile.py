"""Hostile programs end as the models say, in time, and leave nothing behind."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shiftcore.estimate.accelerator import predict
from shiftcore.golden.accelerator import HALT_CYCLES, longest_run
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Drain, End, Error, Load, encode
from shiftcore.golden.machine import Machine, MachineRun
from shiftcore.golden.program import Program
from shiftcore.golden.validity import validate
from shiftcore.host import driver
from shiftcore.sim import hostile
from shiftcore.sim.hostile import Outcome, _computed, hostile_cases, run_cases, shortcomings
from shiftcore.sim.hostile_programs import CONFIGS, HostileCase, Kind, hostile_case, valid_program

ROOT = Path(__file__).resolve().parents[1]


def test_hostile_programs():
    outcomes = list(hostile_cases(range(480)))
    # So few cases give every code, but not on every accelerator.
    assert [line for line in shortcomings(outcomes) if "every code must come up" not in line] == []
    assert {outcome.code for outcome in outcomes} == {code.name for code in Error}
    assert sum(outcome.decided for outcome in outcomes) >= 410
    for first in range(len(CONFIGS)):
        assert sum(outcome.computed for outcome in outcomes[first :: len(CONFIGS)]) >= 30


@pytest.mark.parametrize("seed", [2315, 9602])
def test_a_host_that_gives_up_waits_for_what_memory_owes(seed: int):
    """Under serial control bursts are on their way then, and CYCLES goes on until they are here."""
    (outcome,) = hostile_cases(range(seed, seed + 1))
    assert (outcome.accelerator, outcome.kind) == ("serial, float32", Kind.HASTE)
    assert (outcome.failure, outcome.code) == ("", "TIMEOUT")
    case = hostile_case(np.random.default_rng([seed, 99]), CONFIGS[seed % len(CONFIGS)])
    assert outcome.cycles > case.timeout + 64  # accesses to registers would not take so long


def test_hostile_programs_in_icarus():
    outcomes = list(hostile_cases(range(30), "icarus"))
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []
    assert outcomes == list(hostile_cases(range(30)))


def test_the_documents_state_the_bound():
    text = " ".join((ROOT / "docs/machine.md").read_text(encoding="utf-8").split())
    assert f"at most `TIMEOUT + M + {HALT_CYCLES}` cycles" in text
    assert "to answer `outstanding` bursts of `burst_beats` beats" in text
    assert longest_run(1000, 77) == 1000 + 77 + HALT_CYCLES


def cases_of(
    *kinds: Kind, count: int = 3, config: HardwareConfig = CONFIGS[0]
) -> list[tuple[int, HostileCase]]:
    seeds = enumerate(
        hostile_case(np.random.default_rng([seed, 99]), config) for seed in range(400)
    )
    return [(seed, case) for seed, case in seeds if case.kind in kinds][:count]


def test_one_field_is_one_field():
    for _, case in cases_of(Kind.FIELD, count=100):
        before, after = encode(case.valid.instructions), case.content.view(np.uint64)
        assert case.sizes == case.valid.sizes
        assert (after[: before.size] != before.ravel()).sum() == 1
        assert np.array_equal(after[before.size :], case.valid.weights.view(np.uint64))


def test_valid_programs_are_valid():
    for seed, config in itertools.product(range(20), CONFIGS):
        program = valid_program(np.random.default_rng(seed), config)
        validate(program.instructions, config, program.sizes)


def directed(valid: Program, *instructions: object) -> HostileCase:
    assert len(instructions) == len(valid.instructions)
    program = replace(valid, instructions=instructions)
    return HostileCase(Kind.WORDS, valid, program.model, valid.sizes)


def two_blocks() -> Program:
    programs = (valid_program(np.random.default_rng(seed)) for seed in range(100))
    return next(program for program in programs if program.input_shape[1] == 2)


def test_steps_in_memory_may_be_negative():
    valid = two_blocks()
    first, *others = valid.instructions
    assert isinstance(first, Load)
    backwards = replace(
        first,
        offset=first.block_step,
        block_step=2**32 - first.block_step,
        buffer=first.buffer_block_step,
        buffer_block_step=2**20 - first.buffer_block_step,
    )
    case = directed(valid, backwards, *others)
    (outcome,) = run_cases([(0, case)])
    assert (outcome.failure, outcome.code, outcome.computed) == ("", "NONE", True)
    inputs = np.arange(case.sizes[1] * 8, dtype=np.uint8)[None]
    same = Machine(replace(valid, instructions=(backwards, *others))).run(inputs).outputs
    assert np.array_equal(same, Machine(valid).run(inputs).outputs)


def test_tiles_that_are_left_beside_a_drain_that_waits():
    valid = two_blocks()
    items = list(valid.instructions)
    assert isinstance(items[3], Drain)
    items[3] = replace(items[3], after_pass=2)
    items[7] = End()
    (outcome,) = run_cases([(0, directed(valid, *items))])
    assert (outcome.failure, outcome.code, outcome.decided) == ("", "WEIGHTS_LEFT", True)


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (0x40000000, 0x3F800000, {0x3F800000}),  # 2 to 1
        (0xBF800000, 0x80000000, None),  # -1 to -0
        (0x80000001, 0x00000001, {0}),  # not even subnormal
    ],
)
def test_limits_that_no_compiler_writes(low: int, high: int, numbers: set[int] | None):
    valid = two_blocks()
    items = list(valid.instructions)
    assert isinstance(items[8], Drain)
    items[8] = replace(items[8], limited=1, low=low, high=high)
    case = directed(valid, *items)
    (outcome,) = run_cases([(0, case)])
    assert (outcome.failure, outcome.code, outcome.computed) == ("", "NONE", True)
    inputs = np.arange(case.sizes[1] * 8, dtype=np.uint8)[None]
    found = Machine(replace(valid, instructions=tuple(items))).run(inputs).outputs.view(np.uint32)
    assert 0x80000000 not in found
    if numbers is not None:
        assert set(found.ravel().tolist()) <= numbers


def wrong_by_one(run: MachineRun | None) -> MachineRun | None:
    return None if run is None else replace(run, saturated=run.saturated + 1)


NOTHING = MachineRun(np.zeros(0, np.uint8), np.zeros(1, np.int64))
LATE = "neither done nor error: no interrupt within 20 cycles"
FAILURES = {
    "code": (
        "outcomes", lambda *_: frozenset([Error.BAD_OPCODE]), r"ended with \w+, .* says BAD_OPCODE"
    ),
    "result": ("_computed", lambda *_: NOTHING, r"finished with another result than the model's"),
    "counters": (
        "predict", lambda *args, **options: predict(*args, **options | {"gap": 7}),
        r"counted \{.*\}, the model \{.*\}",
    ),
    "saturated": (
        "_computed", lambda *args: wrong_by_one(_computed(*args)),
        r"counted \d+ saturated pixels, the model \d+",
    ),
    "bound": ("longest_run", lambda *_: 20, rf"{LATE}|took \d+ cycles, at most \d+ are allowed"),
}  # fmt: skip


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda config: f"{config.control}-{config.accumulator}"
)
def test_failures_are_reported_and_the_next_case_runs(
    config: HardwareConfig, monkeypatch: pytest.MonkeyPatch
):
    cases = cases_of(Kind.HASTE, Kind.FIELD, count=5, config=config)
    for kind, (name, wrong, message) in FAILURES.items():
        if kind == "saturated" and config.control == "serial":
            continue  # which does not count them
        with monkeypatch.context() as patched:
            patched.setattr(hostile, name, wrong)
            found = list(run_cases(cases))
        assert len(found) == len(cases)
        assert any(re.fullmatch(message, each.failure) for each in found), (kind, found)
    with monkeypatch.context() as patched:
        patched.setattr(driver, "RESET_READS", 0)
        found = list(run_cases(cases))
    assert len(found) == len(cases)
    assert any("after a reset the accelerator is busy still" in each.failure for each in found)


def test_shortcomings():
    names = [f"{config.control}, {config.accumulator}" for config in CONFIGS]
    good = [
        Outcome(seed, "", name, str(Kind.FIELD), code.name, True, 1, 2)
        for seed, (name, code) in enumerate(itertools.product(names, Error))
    ]
    assert shortcomings(good) == []
    assert shortcomings([]) == ["no case was run"]
    few = [replace(each, kind=str(Kind.CUT), reached_pass=False) for each in good[:-1]]
    assert shortcomings([*few[:-1], replace(few[-1], failure="wrong")]) == [
        "seed 37: wrong",
        "at least half must be one-field mutations, not 0 of 38",
        "at least 30 % must reach a PASS, not 0 of 38",
        "serial, float32: every code must come up; TIMEOUT did not",
    ]
