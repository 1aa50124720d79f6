"""The unit that finds the class."""

import numpy as np
import pytest

from shiftcore.golden.argmax import ArgMaxSpec
from shiftcore.hw.argmax import ArgMax
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob
from shiftcore.tests.hw.bank import SideBySide

COUNTS = (1, 10, 256)


def sets(rng: np.random.Generator, count: int, number: int) -> np.ndarray:
    """(number, count) finite float32: any bits, few values that tie, zeros of both signs."""
    bits = rng.integers(0, 1 << 32, (number, count)).astype(np.uint32)
    bits[(bits >> 23 & 255) == 255] ^= 1 << 23
    scores = bits.view(np.float32).copy()
    few = rng.choice(np.array([-2.5, -1, -0.0, 0.0, 1e-38], np.float32), scores.shape)
    scores[::3] = few[::3]
    scores[1::3] = np.minimum(few[1::3], 0)
    return scores


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_argmax(stall, simulator):
    rng = np.random.default_rng(3)
    scores = [sets(rng, count, 3 + 1500 // count) for count in COUNTS]
    sources = {f"u{k}__i": s.view(np.uint32).ravel().tolist() for k, s in enumerate(scores)}
    sinks = {f"u{k}__o": len(s) for k, s in enumerate(scores)}
    arguments = [(ArgMaxSpec(count),) for count in COUNTS]
    job = StreamJob(sources, sinks, stall=stall)
    answer = simulate(
        SideBySide, ArgMax, arguments, bench="stream_bench", job=job, simulator=simulator
    )
    assert not any(answer.held.values())
    for k, (count, numbers) in enumerate(zip(COUNTS, scores, strict=True)):
        expected = ArgMaxSpec(count).compute(numbers)
        assert answer.payloads[f"u{k}__o"] == expected.tolist()
        if not stall:
            came = np.array(answer.cycles[f"u{k}__i"]).reshape(-1, count)
            assert np.array_equal(answer.cycles[f"u{k}__o"], came[:, -1] + ArgMaxSpec.LATENCY)
            assert set(np.diff(came, axis=1).ravel()) <= {1}
            assert set(np.diff(came[:, 0])) == {count + 1}
    # The corners were met: ties, of both zeros too, where the first must win.
    most = scores[1].max(axis=1, keepdims=True)
    assert ((scores[1] == most).sum(axis=1) > 1).sum() > 20
    zeros = scores[1][most[:, 0] == 0]
    first = zeros[np.arange(len(zeros)), zeros.argmax(axis=1)]
    assert set(np.signbit(first)) == {False, True}
