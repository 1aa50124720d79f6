"""The prediction of cycles on random layers, and that leaps over cycles change nothing."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from shiftcore.benchmarks import estimated_cycles
from shiftcore.benchmarks.estimates import main
from shiftcore.benchmarks.random_layers import BUILDS, KINDS, Case, Result, draw_case, measure
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import counters_at, predict
from shiftcore.golden.program import Program
from shiftcore.golden.registers import TIMED
from shiftcore.tests.compiler.random_networks import random_config, random_network
from shiftcore.tests.golden.machine_cases import random_program
from shiftcore.tests.networks import CONFIG


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_every_counter_of_a_random_layer_is_that_of_the_rtl(seed: int) -> None:
    """All builds and more seeds are for ``benchmarks/estimates.py cycles``."""
    assert BUILDS[0] == CONFIG  # which other tests simulate too
    case = draw_case(seed, 0)
    print(f"seed {seed}: {case.kind}, latency {case.latency}, gap {case.gap}")
    result = measure(case)
    assert result.layers >= 2
    assert result.errors == {name.lower(): 0 for name in TIMED}


def test_a_case_is_made_from_its_seed() -> None:
    one, same, other = draw_case(1, 1), draw_case(1, 1), draw_case(13, 1)
    assert one.program.instructions == same.program.instructions
    assert (one.kind, one.latency, one.gap) == (same.kind, same.latency, same.gap)
    assert other.kind == one.kind
    assert one.program.instructions != other.program.instructions


def test_a_slow_memory_gets_faster_until_a_network_ends_in_time() -> None:
    """On a bus of 32 bits with two bursts on their way."""
    assert draw_case(11, 2).kind == "shuffle"


def any_program(rng: np.random.Generator) -> Program:
    while True:
        config = random_config(rng)
        try:
            if rng.random() < 0.3:
                return random_program(rng, config, 30)
            program = compile_network(random_network(rng, config), config)
        except ValueError:
            continue  # too large for these memories
        if predict(program).cycles < 300_000:
            return program


@pytest.mark.parametrize("seed", range(20))
def test_cycles_that_are_taken_together_are_those_taken_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    program = any_program(rng)
    memory = {
        "latency": int(rng.choice([0, 1, 5, 20, 150])),
        "gap": int(rng.choice([0, 0, 1, 4])),
        "images": int(rng.integers(1, 3)),
    }
    pixels = predict(program).pixels
    marks = np.unique(rng.integers(1, pixels + 1, 6)) if pixels else np.zeros(0, np.int64)
    expected = counters_at(program, marks, **memory)
    for leap in (1, 2, 7):
        assert np.array_equal(counters_at(program, marks, **memory, leap=leap), expected)


def test_the_benchmark_fails_at_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    program = draw_case(0, 0).program

    def result(error: int) -> Result:
        errors = {name.lower(): 0 for name in TIMED} | {"stall_tile": error}
        return Result(Case(5, 0, "linear", program, 7, 2), 2, 1234, errors)

    for error in (0, 3):
        monkeypatch.setattr(estimated_cycles, "measure", lambda case, e=error: result(e))
        found = CliRunner().invoke(main, ["cycles", "--build", "0", "--seed", "5", "--json"])
        assert found.exit_code == (error != 0)
        (row,) = json.loads(found.stdout)
        assert (row["cases"], row["worst"], row["kinds"]) == (1, error, {"linear": 1})
        assert estimated_cycles.cells(row)[-1] == ("3 (seed 5)" if error else "0")
    few = CliRunner().invoke(main, ["cycles", "--cases", "1"])
    assert few.exit_code == 1
