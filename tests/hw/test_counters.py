"""The bank of counters: exact at every moment, whenever it is read or cleared."""

import numpy as np
import pytest

from shiftcore.hw.counters import CounterBank
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate


@pytest.mark.parametrize("count", [2, 11])
def test_every_number_that_is_read(count, simulator):
    """Events, clears and reads at random; a number is that of all events before it is given."""
    rng = np.random.default_rng(count)
    first, cycles = (5 << 32) - 60, 4000
    events = rng.random((cycles, count)) < np.linspace(0.2, 1, count)
    clear = rng.random(cycles) < 0.005
    clear[0] = True
    which = rng.integers(count, size=cycles)
    held = rng.integers(0, 60, cycles)
    asking, choice = np.zeros(cycles, bool), np.zeros(cycles, int)
    position = 0
    while position < cycles:
        length = 2 * count + 1
        asking[position : position + length] = True
        choice[position : position + length] = which[position]
        position += length + held[position]
    words = {
        "i_clear": clear.astype(int).tolist(),
        "i_events": (events @ (1 << np.arange(count))).tolist(),
        "i_read": asking.astype(int).tolist(),
        "i_which": choice.tolist(),
    }
    outputs = ("o_valid", "o_low", "o_high")
    answer = simulate(
        CounterBank, count, first, bench="pipeline_bench", job=PipelineJob(words, outputs),
        simulator=simulator,
    )  # fmt: skip
    totals = np.full(count, first)
    given, carried = 0, 0
    for cycle in range(cycles - 2):
        if answer["o_valid"][cycle]:
            assert asking[cycle]
            number = int(totals[choice[cycle]])
            assert answer["o_low"][cycle] == number & 0xFFFFFFFF
            if not clear[cycle : cycle + 2].any():
                assert answer["o_high"][cycle + 2] == number >> 32
                carried += number >> 32 == 5
            given += 1
        totals = np.full(count, first) if clear[cycle] else totals + events[cycle]
    assert given > 50
    assert carried > 10
