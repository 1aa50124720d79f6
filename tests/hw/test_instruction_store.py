"""The queues of instructions: what is offered, and when, whatever comes and goes."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.config import HardwareConfig
from shiftcore.hw.instruction_store import QUEUES, InstructionStore
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate

CONFIG = HardwareConfig(2, 2, queue_depth=3)
CYCLES = 3000


class Model:
    """The queues from cycle to cycle."""

    def __init__(self, lengths: list[int], depth: int):
        self.lengths, self.depth = lengths, depth
        self.queues: list[list[int]] = [[] for _ in lengths]
        self.ready: list[int | None] = [None for _ in lengths]
        self.free = 0

    def begin_reading(self, now: int) -> None:
        """The shortest instruction that waits is read next; the last queues hold these."""
        waiting = [k for k, queue in enumerate(self.queues) if queue and self.ready[k] is None]
        if now >= self.free and waiting:
            chosen = waiting[-1]
            self.free = now + self.lengths[chosen]
            self.ready[chosen] = self.free + 1

    def offered(self, number: int, now: int) -> bool:
        at = self.ready[number]
        return at is not None and now >= at


@pytest.mark.parametrize(
    ("bus_bits", "depth", "busy"), [(64, 3, 0.9), (64, 2, 0.1), (32, 2, 0.99), (256, 8, 0.9)]
)
def test_every_instruction_is_offered_in_its_cycle(bus_bits, depth, busy, simulator) -> None:
    """Writes, commits and beginnings at random; `busy` is how long the engines wait."""
    config = replace(CONFIG, bus_bits=bus_bits, queue_depth=depth, weight_fifo=128)
    spec = config.accelerator
    rng = np.random.default_rng([bus_bits, depth])
    lengths = [spec.field_beats(op) for op in QUEUES]
    assert lengths == sorted(lengths, reverse=True)
    model = Model(lengths, depth)
    names = ("i_write", "i_queue", "i_index", "i_beat", "i_commit", "i_begin")
    inputs: dict[str, list[int]] = {name: [] for name in names}
    states, beats = [], spec.instruction_beats
    target, index, bits = 0, 0, 0
    for now in range(CYCLES):
        model.begin_reading(now)
        offered = [model.offered(k, now) for k in range(4)]
        states.append(
            (
                sum((len(queue) != depth) << k for k, queue in enumerate(model.queues)),
                sum((not queue) << k for k, queue in enumerate(model.queues)),
                sum(each << k for k, each in enumerate(offered)),
                [queue[0] if queue else None for queue in model.queues],
            )
        )
        if not index:
            target = int(rng.integers(4))
            bits = int.from_bytes(rng.bytes(64), "little")
        write = index < beats and rng.random() < 0.8
        commit = index == beats and len(model.queues[target]) < depth
        begins = [each and rng.random() > busy for each in offered]
        values = (
            int(write), target, index % beats, bits >> bus_bits * index & ((1 << bus_bits) - 1),
            commit << target, sum(each << k for k, each in enumerate(begins)),
        )  # fmt: skip
        for name, value in zip(names, values, strict=True):
            inputs[name].append(value)
        for k, each in enumerate(begins):
            if each:
                del model.queues[k][0]
                model.ready[k] = None
        if commit:
            model.queues[target].append(bits)
        index = 0 if commit else index + write
    outputs = tuple(f"o_{op.name.lower()}" for op in QUEUES)
    job = PipelineJob(inputs, ("o_room", "o_empty", "o_ready", *outputs))
    answer = simulate(InstructionStore, spec, bench="pipeline_bench", job=job, simulator=simulator)
    seen = [0] * 4
    for now, (room, empty, ready, heads) in enumerate(states):
        found = tuple(answer[name][now] for name in ("o_room", "o_empty", "o_ready"))
        assert found == (room, empty, ready), f"cycle {now}"
        for k, output in enumerate(outputs):
            if ready >> k & 1:
                stored = (1 << bus_bits * lengths[k]) - 1
                assert answer[output][now] & stored == heads[k] & stored
                seen[k] += 1
    assert min(seen) > 20
    assert min(room for room, *_ in states) < 15
