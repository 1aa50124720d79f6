"""The scale unit: products accumulated in a memory, with the hazard where its formula says."""

import os
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.scale_unit import (
    AddSpec,
    BlockProductSpec,
    FixedAddSpec,
    FixedProductSpec,
    Multiplier,
    ProductSpec,
    ScaleUnitSpec,
    add_spec,
    product_spec,
)
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import SideBySide, simulated
from shiftcore.tests.hw.operands import fixed_products, random_products, scale_values

EXACT = ScaleUnitSpec(ProductSpec(12, 8, 4), AddSpec(), 16)
ROUNDING = ScaleUnitSpec(ProductSpec(18, 24, 8), AddSpec(), 5)
FIXED = ScaleUnitSpec(
    FixedProductSpec(14, 8, 4, FixedFormat(36)), FixedAddSpec(FixedFormat(36)), 16
)
SPECS = [EXACT, ROUNDING, FIXED]


def cut(spec: ScaleUnitSpec, name: str, multiplier: Multiplier = "dsp") -> ScaleUnitSpec:
    """The same unit with the cuts of a preset."""
    pipeline = PIPELINES[name]
    block = BlockProductSpec(spec.product.sum_bits, spec.product.scale_bits, spec.product.act_bits)
    product = product_spec(block, spec.form, multiplier, pipeline)
    add = add_spec(spec.form, pipeline)
    return ScaleUnitSpec(product, add, spec.depth, pipeline.fetch, pipeline.memory)


SPECS += [cut(spec, name) for name in ("short", "fast") for spec in (EXACT, ROUNDING, FIXED)]
SPECS += [cut(FIXED, name, "ecp5-dsp") for name in PIPELINES]
SPECS += [cut(EXACT, "ecp5-fast", "ecp5-dsp")]
NARROW = replace(FIXED, product=FixedProductSpec(14, 8, 4, FixedFormat(24)),
                 add=FixedAddSpec(FixedFormat(24)))  # fmt: skip
SPECS += [cut(NARROW, name, "ecp5-dsp") for name in ("short", "ecp5-fast")]
for depth in (700, 4000):  # words of 18 bits, and of 4
    SPECS += [replace(cut(FIXED, "ecp5-fast"), depth=depth)]
SPECS += [
    replace(spec, shared=True) for spec in (EXACT, cut(ROUNDING, "short"), cut(FIXED, "short"))
]
SPECS = [spec for spec in SPECS if simulated(spec)]

FLAGS = ("valid", "first", "start", "maximum", "keep", "signed")


def stored(spec: ScaleUnitSpec, number: np.floating) -> int:
    """The bits of an accumulator."""
    if isinstance(spec.form, FixedFormat):
        return int(number) & ((1 << spec.form.bits) - 1)
    return int(spec.form.encode(number))


@dataclass
class Stimulus:
    """Everything a scale unit gets, by cycle; buses carry other columns' values in between."""

    spec: ScaleUnitSpec
    length: int
    rng: np.random.Generator
    ports: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self):
        n, rng, spec = self.length, self.rng, self.spec
        if isinstance(spec.product, FixedProductSpec):
            sums, scales, fields, is_signed = fixed_products(spec.product, rng, n)
        else:
            sums, scales, fields, is_signed = random_products(spec.product, rng, n)
        # Few enough that they meet, at both ends of the memory and in between.
        places = np.linspace(0, spec.depth - 1, min(spec.depth, 16)).astype(np.int64)
        biases = rng.normal(size=n).astype(np.float32) * 4
        if isinstance(spec.form, FixedFormat):
            biases = spec.form.decode(rng.integers(0, 1 << 32, n))
        self.ports = {
            "sum": sums,
            "scale": scales,
            "exponent": fields,
            "signed": is_signed.astype(np.int64),
            "bias": spec.form.encode(biases).astype(np.int64),
            "drain_address": places[rng.integers(0, len(places), n)],
            "drain_enable": (rng.random(n) < 0.7).astype(np.int64),
            "address": places[rng.integers(0, len(places), n)],
            "first": (rng.random(n) < 0.15).astype(np.int64),
            "start": (rng.random(n) < 0.2).astype(np.int64),
            "maximum": (rng.random(n) < 0.2).astype(np.int64),
            "keep": (rng.random(n) < 0.3).astype(np.int64),
            "valid": np.zeros(n, np.int64),
        }
        if spec.drain_cycles > 1:
            self.ports["drain_move"] = (rng.random(n) < 0.7).astype(np.int64)
            self.ports["drain_move"][0] = 1
        self.ports["drain_enable"][0] = 1  # before the first read there is nothing to compare

    def fixed(self) -> bool:
        """Whether accumulators can saturate."""
        return isinstance(self.spec.form, FixedFormat)

    def inputs(self, prefix: str) -> dict[str, list[int]]:
        """The values of the ports of a unit whose ports start with `prefix`."""
        given, spec = self.ports, self.spec
        wave = np.zeros(self.length, np.int64)
        for position, name in enumerate(FLAGS):
            wave |= given[name] << position
        wave |= given["exponent"] << len(FLAGS) | given["address"] << len(FLAGS) + 8
        # A sum comes one cycle after its wave.
        sums = np.r_[0, given["sum"][:-1]] & ((1 << spec.product.sum_bits) - 1)
        return {
            f"{prefix}i_wave": wave.tolist(),
            f"{prefix}i_sum": sums.tolist(),
            f"{prefix}i_scale": given["scale"].tolist(),
            f"{prefix}i_bias": given["bias"].tolist(),
            f"{prefix}i_drain_address": given["drain_address"].tolist(),
            f"{prefix}i_drain_enable": (given["drain_enable"] & ~self.reads).tolist(),
            **{f"{prefix}i_{name}": given[name].tolist() for name in given if name == "drain_move"},
            **({f"{prefix}i_saturated": [0] * self.length} if self.fixed() else {}),
        }

    def writes(self) -> list[tuple[int, int, np.floating, bool]]:
        """Cycle, address and value of every write, and whether it saturated, if each wave reads
        what earlier ones wrote."""
        given, spec = self.ports, self.spec
        waves = np.flatnonzero(given["valid"])
        # Until the first pixel of a tile has come, scale and bias are zero.
        scale_at = np.maximum.accumulate(np.where(given["first"] & given["valid"], self.cycles, -1))
        begins = given["first"] & given["valid"] & given["start"]
        bias_at = np.maximum.accumulate(np.where(begins, self.cycles, -1))
        assert (scale_at[waves] >= 0).all()
        products = spec.product.compute(
            given["sum"][waves],
            scale_values(spec.product, given["scale"][scale_at[waves]]),
            given["exponent"][waves],
            given["signed"][waves] == 1,
        )
        memory = np.zeros(spec.depth, spec.form.dtype)
        log = []
        for t, product in zip(waves.tolist(), products, strict=True):
            address = int(given["address"][t])
            before = memory[address]
            if given["start"][t]:
                bus = given["bias"][bias_at[t] + spec.bias_stage + 1]
                before = spec.form.decode(bus if bias_at[t] >= 0 else 0)
            operands = before, product, given["maximum"][t], given["keep"][t]
            memory[address] = spec.add.compute(*operands)
            over = isinstance(spec.add, FixedAddSpec) and bool(spec.add.saturated(*operands))
            log.append((t + 1 + spec.write_stage, address, memory[address], over))
        return log

    @property
    def reads(self) -> np.ndarray:
        """In which cycles a pixel takes the port of the drain."""
        found = np.zeros(self.length, np.int64)
        if self.spec.shared:
            waves = np.flatnonzero(self.ports["valid"]) + 1 + self.spec.read_stage
            found[waves[waves < self.length]] = 1
        return found

    @property
    def cycles(self) -> np.ndarray:
        return np.arange(self.length)

    def drained(self) -> np.ndarray:
        """``o_drain`` in each cycle as bit patterns: one cycle after an enabled read, or when its
        register moves.

        -1 after a read in the very cycle of a write to its address, which has no defined result,
        and after a pixel's, if the port is shared.
        """
        given, writes = self.ports, iter([*self.writes(), (self.length, 0, np.float32(0), False)])
        memory = np.zeros(self.spec.depth, np.int64)
        seen = np.zeros(self.length, np.int64)
        reads = self.reads
        moment, address, value, _ = next(writes)
        now = 0
        for t in range(self.length - 1):
            while moment < t:
                memory[address] = stored(self.spec, value)
                moment, address, value, _ = next(writes)
            if reads[t]:
                now = -1
            elif given["drain_enable"][t]:
                wanted = given["drain_address"][t]
                now = -1 if (moment, address) == (t, wanted) else memory[wanted]
            seen[t + 1] = now
        if self.spec.drain_cycles > 1:
            moved = np.where(given["drain_move"] == 1, self.cycles, 0)
            seen[1:] = seen[np.maximum.accumulate(moved)[:-1]]
        return seen


def run(stimuli: list[Stimulus], simulator) -> list[dict[str, np.ndarray]]:
    """Simulate one unit per stimulus, in the order of SPECS."""
    assert [s.spec for s in stimuli] == SPECS
    inputs, outputs = {}, []
    for k, stimulus in enumerate(stimuli):
        inputs |= stimulus.inputs(f"u{k}__")
        outputs += [f"u{k}__o_drain", f"u{k}__o_wave"]
        outputs += [f"u{k}__o_saturated"] * stimulus.fixed()
    answer = simulate(
        SideBySide,
        ScaleUnit,
        [(spec,) for spec in SPECS],
        bench="pipeline_bench",
        job=PipelineJob(inputs, tuple(outputs)),
        simulator=simulator,
    )
    return [
        {
            port: np.array(answer[f"u{k}__o_{port}"])
            for port in ("drain", "wave", "saturated")
            if f"u{k}__o_{port}" in answer
        }
        for k in range(len(stimuli))
    ]


def test_formulas():
    for spec in SPECS[:3]:
        assert spec.read_stage == spec.bias_stage == spec.product.latency - 2
        adder, revisit = (4, 7) if spec is FIXED else (9, 12)
        assert spec.write_stage == spec.product.latency + adder
        assert spec.revisit == spec.write_stage - spec.read_stage + 1 == revisit
    short, fast = cut(FIXED, "short"), cut(FIXED, "fast")
    assert (short.read_stage, short.bias_stage, short.write_stage, short.revisit) == (0, 0, 2, 3)
    assert (fast.read_stage, fast.bias_stage, fast.write_stage, fast.revisit) == (3, 4, 10, 8)


def test_random_waves(simulator):
    """Waves with and without gaps, as close to each other as the hazard allows."""
    rng = np.random.default_rng(3)
    stimuli = []
    for spec in SPECS:
        stimulus = Stimulus(spec, 6000, rng)
        given = stimulus.ports
        last = np.full(spec.depth, -100)
        for t in range(2, stimulus.length - spec.write_stage - spec.read_stage - 4):
            address = given["address"][t]
            free = given["start"][t] or t - last[address] >= spec.revisit
            if free and (t // 100 % 2 or rng.random() < 0.6):
                given["valid"][t] = 1
                last[address] = t
        begin = np.flatnonzero(given["valid"])[0]
        given["first"][begin] = given["start"][begin] = 1
        waves = np.flatnonzero(given["valid"])
        pairs = [np.diff(waves[given["address"][waves] == a]) for a in range(spec.depth)]
        assert spec.revisit in np.concatenate(pairs)
        stimuli.append(stimulus)
    for stimulus, found in zip(stimuli, run(stimuli, simulator), strict=True):
        drained = stimulus.drained()
        assert np.array_equal(found["drain"][drained >= 0], drained[drained >= 0])
        assert (drained >= 0).mean() > (0.1 if stimulus.spec.shared else 0.85)
        assert len(np.unique(found["drain"])) > 200
        if stimulus.fixed():
            saturated = [moment + 1 for moment, *_, over in stimulus.writes() if over]
            assert np.array_equal(np.flatnonzero(found["saturated"]), saturated)
            assert len(saturated) > 100
        wave = np.array(stimulus.inputs("")["i_wave"])
        assert np.array_equal(found["wave"][1:], wave[:-1])


@pytest.mark.parametrize("distance", ["shorter", "exact"])
def test_revisit_is_exact(distance, simulator):
    """`revisit` cycles after a wave its sum is read; one cycle earlier it is not yet there."""
    rng = np.random.default_rng(5)
    stimuli = []
    for spec in SPECS:
        stimulus = Stimulus(spec, 400, rng)
        given = stimulus.ports
        for name in ("first", "start", "maximum", "keep", "signed"):
            given[name][:] = 0
        # Products of 1 or more with a bias around 1: no sum absorbs a product.
        given["sum"][:] = rng.integers(1, 100, stimulus.length)
        given["scale"][:] = 127 << spec.product.scale_bits - 1
        given["exponent"][:] = 127 + spec.product.act_bits - 1
        gap = spec.revisit - (distance == "shorter")
        for name in given.keys() & {"drain_enable", "drain_move"}:
            given[name][:] = 1
        for k, t in enumerate((10, 100)):
            given["valid"][[t, t + gap]] = 1
            given["address"][[t, t + gap]] = k
            given["first"][t] = given["start"][t] = 1
            given["drain_address"][t : t + 90] = k
        stimuli.append(stimulus)
    for stimulus, found in zip(stimuli, run(stimuli, simulator), strict=True):
        spec, given = stimulus.spec, stimulus.ports
        drained = stimulus.drained()
        right = np.array_equal(found["drain"][drained >= 0], drained[drained >= 0])
        assert right == (distance == "exact")
        for t in (10, 100):
            bias = spec.form.decode(given["bias"][t + spec.bias_stage + 1])
            one, two = given["sum"][[t, t + spec.revisit - (not right)]].astype(spec.form.dtype)
            stale = two if not right else spec.add.compute(spec.add.compute(bias, one), two)
            # The memory was empty, so a second sum that came too early starts from zero; or in a
            # netlist with instantiated block RAM from anything: it is read in the write's cycle.
            if right or spec.memory is None or "SHIFTCORE_NETLIST" not in os.environ:
                assert found["drain"][t + 60] == stored(spec, stale)
