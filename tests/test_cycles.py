"""The cycle model on its own; tests/test_engines.py compares it with the gateware."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.estimate.cycles import closed_form, engine_cycles
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.passes import Drain, Pass

CONFIG = HardwareConfig(rows=4, cols=3, accumulator_depth=64)


def make_pass(addresses: list[int], *, start: bool = False) -> Pass:
    pixels = len(addresses)
    return Pass(
        np.zeros((CONFIG.rows, CONFIG.cols), np.int8),
        np.zeros(CONFIG.cols, np.float32),
        np.zeros(CONFIG.cols, np.float32) if start else None,
        np.zeros((pixels, CONFIG.rows), np.int16),
        np.zeros(pixels, np.uint8),
        np.array(addresses),
    )


def test_one_pass() -> None:
    cycles = engine_cycles([make_pass([0, 1, 2], start=True)], CONFIG)
    spec = CONFIG.engine
    assert cycles.issued == (spec.load_cycles(start=True),)
    assert cycles.last_issued == cycles.issued[0] + 2
    assert cycles.stored == cycles.total == cycles.last_issued + spec.retire_cycles


@pytest.mark.parametrize("distance", range(1, 16))
def test_revisit_inside_a_pass(distance: int) -> None:
    addresses = [*range(distance), 0]
    cycles = engine_cycles([make_pass(addresses)], CONFIG)
    assert cycles.last_issued - cycles.issued[0] == max(distance, CONFIG.scale_unit.revisit)


def test_starting_pixels_do_not_wait() -> None:
    cycles = engine_cycles([make_pass([5] * 10, start=True)], CONFIG)
    assert cycles.last_issued - cycles.issued[0] == 9


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=8))
def test_closed_form_is_the_timeline(passes: list[tuple[int, bool]]) -> None:
    work = [make_pass(list(range(pixels)), start=start) for pixels, start in passes]
    assert engine_cycles(work, CONFIG).stored == closed_form(work, CONFIG)


def test_passes_wait_for_the_drain_and_the_drain_for_the_passes() -> None:
    spec = CONFIG.engine
    first, second = make_pass([0, 1], start=True), make_pass([2, 3], start=True)
    drain = Drain(np.array([0, 1]), "raw")
    cycles = engine_cycles([first, drain, second], CONFIG)
    read = cycles.issued[0] + 1 + spec.retire_cycles
    assert cycles.issued[1] == read + 1 + 2
    assert cycles.total == cycles.stored
