"""Random engines: every number and every cycle."""

import numpy as np
import pytest

from shiftcore.estimate.cycles import closed_form, engine_cycles
from shiftcore.sim.campaign import campaign_config, run_work, work_of
from shiftcore.sim.harness import engine_job
from shiftcore.sim.random_work import random_passes
from shiftcore.sim.runner import Simulator

SEEDS = range(148, 172)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_engine(seed: int) -> None:
    config = campaign_config(seed)
    # Icarus compiles a small engine faster than Verilator; half of them suffice for each.
    simulator: Simulator = "verilator" if seed % 2 else "icarus"
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
    assert all(c.rows * c.cols <= 64 for c in configs)
    assert any(c.cols > c.rows for c in configs)
    assert any(c.cols < c.rows for c in configs)


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
