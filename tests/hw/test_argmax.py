"""The unit that finds the class."""

import numpy as np
import pytest

from shiftcore.golden.argmax import ArgMaxSpec
from shiftcore.hw.argmax import ArgMax
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob
from shiftcore.tests.hw.bank import SideBySide

SPECS = (*map(ArgMaxSpec, (1, 10, 256)), *(ArgMaxSpec(count, whole=True) for count in (3, 16)))


def sets(rng: np.random.Generator, spec: ArgMaxSpec, number: int) -> np.ndarray:
    """(number, spec.count) bit patterns: any whole numbers, or any finite float32, few values that
    tie, zeros of both signs."""
    count = spec.count
    if spec.whole:
        numbers = rng.integers(-(1 << 31), 1 << 31, (number, count))
        numbers[::3] = rng.choice([-(1 << 31), -1, 0, 1, (1 << 31) - 1], numbers[::3].shape)
        numbers[1::3] = rng.integers(-3, 0, numbers[1::3].shape)
        return numbers.astype(np.uint32)
    bits = rng.integers(0, 1 << 32, (number, count)).astype(np.uint32)
    bits[(bits >> 23 & 255) == 255] ^= 1 << 23
    scores = bits.view(np.float32).copy()
    few = rng.choice(np.array([-2.5, -1, -0.0, 0.0, 1e-38], np.float32), scores.shape)
    scores[::3] = few[::3]
    scores[1::3] = np.minimum(few[1::3], 0)
    return scores.view(np.uint32)


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_argmax(stall, simulator):
    rng = np.random.default_rng(3)
    scores = [sets(rng, spec, 3 + 1500 // spec.count) for spec in SPECS]
    sources = {f"u{k}__i": s.ravel().tolist() for k, s in enumerate(scores)}
    sinks = {f"u{k}__o": len(s) for k, s in enumerate(scores)}
    arguments = [(spec,) for spec in SPECS]
    job = StreamJob(sources, sinks, stall=stall)
    answer = simulate(
        SideBySide, ArgMax, arguments, bench="stream_bench", job=job, simulator=simulator
    )
    assert not any(answer.held.values())
    for k, (spec, numbers) in enumerate(zip(SPECS, scores, strict=True)):
        count, expected = spec.count, spec.compute(numbers)
        assert answer.payloads[f"u{k}__o"] == expected.tolist()
        if not stall:
            came = np.array(answer.cycles[f"u{k}__i"]).reshape(-1, count)
            assert np.array_equal(answer.cycles[f"u{k}__o"], came[:, -1] + ArgMaxSpec.LATENCY)
            assert set(np.diff(came, axis=1).ravel()) <= {1}
            assert set(np.diff(came[:, 0])) == {count + 1}
    # The corners were met: negative whole numbers that tie, where the first must win,
    negative = scores[-1][1::3].view(np.int32)
    assert (negative < 0).all()
    assert ((negative == negative.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum() > 20
    # and of float32 ties, of both zeros too, where the first must win.
    floats = scores[1].view(np.float32)
    most = floats.max(axis=1, keepdims=True)
    assert ((floats == most).sum(axis=1) > 1).sum() > 20
    zeros = floats[most[:, 0] == 0]
    first = zeros[np.arange(len(zeros)), zeros.argmax(axis=1)]
    assert set(np.signbit(first)) == {False, True}
