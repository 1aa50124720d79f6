"""The bank of counters: exact at every moment, whenever it is read or cleared."""

import numpy as np
import pytest

from shiftcore.hw.counters import CounterBank
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate


@pytest.mark.parametrize("count", [2, 11])
def test_every_number_that_is_read(count, simulator):
    """Events, clears and reads at random; a number is that of all events before the read."""
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
        position += length + 1 + held[position]
    words = {
        "i_clear": clear.astype(int).tolist(),
        "i_events": (events @ (1 << np.arange(count))).tolist(),
        "i_read": asking.astype(int).tolist(),
        "i_which": choice.tolist(),
    }
    outputs = ("o_given", "o_low", "o_done", "o_high")
    answer = simulate(
        CounterBank, count, first, bench="pipeline_bench", job=PipelineJob(words, outputs),
        simulator=simulator,
    )  # fmt: skip
    totals = np.full(count, first)
    number = low = since = reads = carried = 0
    for cycle in range(cycles - 1):
        begins = asking[cycle] and not (cycle and asking[cycle - 1])
        if begins:
            number, low, since = int(totals[choice[cycle]]), -1, cycle
        if answer["o_given"][cycle]:
            assert asking[cycle]
            assert low == -1
            low = answer["o_low"][cycle]
        assert answer["o_done"][cycle] == (asking[cycle] and cycle - since == 2 * count)
        if answer["o_done"][cycle] and not clear[since : cycle + 1].any():
            assert (low, answer["o_high"][cycle + 1]) == (number & 0xFFFFFFFF, number >> 32)
            carried += number >> 32 == 5
            reads += 1
        totals = np.full(count, first) if clear[cycle] else totals + events[cycle]
    assert reads > 30
    assert carried > 5
