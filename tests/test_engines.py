"""Random engines: every number and every cycle."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from shiftcore.estimate.cycles import closed_form, engine_cycles
from shiftcore.golden.array import STYLES
from shiftcore.golden.passes import Drain
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.scale_unit import MULTIPLIERS
from shiftcore.sim.campaign import Case, campaign_config, run_work, work_of
from shiftcore.sim.harness import engine_job
from shiftcore.sim.random_work import random_passes
from shiftcore.sim.resume import current_sources, finished
from shiftcore.sim.runner import Simulator

SEEDS = range(134, 158)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_engine(seed: int) -> None:
    config = campaign_config(seed)
    # Icarus compiles a small engine faster than Verilator, which sees every fourth.
    simulator: Simulator = "icarus" if seed % 4 else "verilator"
    print(f"seed {seed}: {config} on {simulator}")
    work = work_of(seed, config)

    run, compared, mismatches = run_work(work, config, stall=0.0, seed=seed, simulator=simulator)
    assert compared > 0
    assert mismatches == 0
    expected = engine_cycles(work, config)
    assert run.total == expected.total

    # Pauses on every stream change the timing and nothing else.
    slow, _, mismatches = run_work(work, config, stall=0.4, seed=seed, simulator=simulator)
    assert mismatches == 0
    assert slow.total > run.total

    # Passes over the same accumulators obey the formula.
    passes = random_passes(np.random.default_rng([seed, 2]), config, 20, same_addresses=True)
    run, _, _ = run_work(passes, config, stall=0.0, seed=seed, simulator=simulator)
    assert run.last_busy + 1 == engine_cycles(passes, config).stored == closed_form(passes, config)


def test_configurations_cover_every_width_and_format() -> None:
    configs = [campaign_config(seed) for seed in SEEDS]
    assert {c.weight_bits for c in configs} == set(range(2, 9))
    assert {c.act_bits for c in configs} == set(range(2, 9))
    assert {c.scale for c in configs} == {"bf16", "e8m0", "fp16", "fp32"}
    assert {c.pipeline for c in configs} == set(PIPELINES)
    assert {c.scale_multiplier for c in configs} == set(MULTIPLIERS)
    assert {c.multiplier for c in configs} == {*STYLES} - {"ecp5-ternary"}
    assert all(c.rows * c.cols <= 64 for c in configs)
    assert any(c.cols > c.rows for c in configs)
    assert any(c.cols < c.rows for c in configs)
    assert sum(min(c.rows, c.cols) >= 4 for c in configs) >= 6


def test_operands_cover_the_corners() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        config = campaign_config(seed)
        low, high = -(1 << (config.weight_bits - 1)), (1 << (config.weight_bits - 1)) - 1
        before = None
        for item in work_of(seed, config):
            if isinstance(item, Drain):
                seen[item.form] += 1
                before = None
                continue
            lanes = item.lanes
            seen["one pixel"] += item.pixels == 1
            seen["twice the adder's latency"] += item.pixels >= 2 * config.scale_unit.add.latency
            seen["zero block"] += bool((~lanes.any(axis=1)).any())
            seen["largest codes"] += bool((lanes == lanes.max()).all(axis=1).any())
            seen["smallest exponent"] += 0 in item.exponents
            seen["largest exponent"] += 255 in item.exponents
            seen["extreme tile"] += item.codes.min() == low and item.codes.max() == high
            seen["zero scales"] += not item.scales.any()
            seen["maximum"] += item.maximum
            seen["accumulator twice"] += len(set(item.addresses.tolist())) < item.pixels
            if before is not None and before.lanes is lanes and not (item.start or item.maximum):
                seen["cancellation"] += bool((item.codes == -before.codes).any())
            before = item
    corners = ("raw", "unsigned", "signed", "one pixel", "twice the adder's latency", "zero block",
               "largest codes", "smallest exponent", "largest exponent", "extreme tile",
               "zero scales", "maximum", "accumulator twice", "cancellation")  # fmt: skip
    assert {corner: seen[corner] for corner in corners if seen[corner] < 5} == {}


def test_a_campaign_goes_on_after_a_cut_off_line(tmp_path: Path) -> None:
    kept = tmp_path / "campaign.jsonl"
    case = Case(7, current_sources(), "icarus", 1, 1, 2, 2, "bf16", "float32", 1, 1, 1, 1, 0)
    lines = [asdict(case), asdict(replace(case, seed=8, sources="older"))]
    kept.write_text("\n".join(map(json.dumps, lines)) + '\n{"seed": 9, "sour')
    assert finished(kept, Case) == {7: case}
    assert finished(tmp_path / "none.jsonl", Case) == {}


def test_work_of_every_seed_fits_its_engine() -> None:
    for seed in range(400):
        config = campaign_config(seed)
        job = engine_job(work_of(seed, config, passes=2), config)
        assert job.sources["i_drain"]


def test_revisits_cost_what_the_formula_says() -> None:
    # One pixel a pass: the accumulator's latency, the tile or the columns decide, each in turn.
    config = campaign_config(SEEDS[0])
    passes = random_passes(np.random.default_rng(0), config, 4, same_addresses=True)
    spec = config.engine
    first, second = engine_cycles(passes[:2], config).issued
    after = 1 if passes[1].start else spec.scale_unit.revisit
    assert second - first == max(
        passes[0].pixels, spec.load_cycles(passes[1].start), spec.pass_cycles, after
    )
