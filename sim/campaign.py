"""The long run: random work on many random engines, resumable."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from ..golden.compare import count_mismatches
from ..golden.config import HardwareConfig
from ..golden.passes import Drain, Engine, Pass
from .harness import EngineRun, run_engine
from .random_work import random_config, random_drains, random_feet, random_passes
from .resume import current_sources, resume
from .runner import Simulator

__all__ = ["Case", "campaign_config", "run_work", "work_of"]

_LARGE = {
    0: HardwareConfig(rows=16, cols=16),
    1: HardwareConfig(rows=32, cols=32),
    2: HardwareConfig(rows=16, cols=16, weight_bits=2, act_bits=8, scale="e8m0"),
    3: HardwareConfig(rows=32, cols=8, weight_bits=8, act_bits=8, multiplier="dsp"),
    4: HardwareConfig(rows=16, cols=16, accumulator="fixed32"),
}


@dataclass(frozen=True)
class Case:
    """The outcome of one seed."""

    seed: int
    sources: str
    simulator: str
    rows: int
    cols: int
    weight_bits: int
    act_bits: int
    scale: str
    accumulator: str
    passes: int
    pixels: int
    cycles: int
    compared: int
    mismatches: int


def campaign_config(seed: int) -> HardwareConfig:
    """The configuration of a seed: the first few are large, the others random and small."""
    if seed in _LARGE:
        return _LARGE[seed]
    rng = np.random.default_rng(seed)
    config = random_config(rng, macs=int(rng.choice([4, 16, 32, 64])))
    return random_feet(np.random.default_rng([seed, 3]), config)


def work_of(seed: int, config: HardwareConfig, passes: int = 24) -> list[Pass | Drain]:
    """Random passes, drains of everything, fewer passes on what is left, and drains again."""
    rng = np.random.default_rng([seed, 1])
    work: list[Pass | Drain] = [*random_passes(rng, config, passes), *random_drains(rng, config)]
    return [*work, *random_passes(rng, config, passes // 3), *random_drains(rng, config)]


def run_work(
    work: Sequence[Pass | Drain],
    config: HardwareConfig,
    *,
    stall: float,
    seed: int,
    simulator: Simulator = "verilator",
) -> tuple[EngineRun, int, int]:
    """Do `work` on the simulated engine; the run, numbers compared, numbers that differ."""
    run = run_engine(work, config, stall=stall, seed=seed, simulator=simulator)
    compared, mismatches = count_mismatches(Engine(config.engine).run(work), run.results)
    return run, compared, mismatches


def _cases(seeds: range) -> list[Case]:
    return [_case(seed) for seed in seeds]


def _case(seed: int) -> Case:
    config = campaign_config(seed)
    # Icarus compiles a small engine faster than Verilator; both see each kind of engine.
    simulator = "verilator" if seed in _LARGE or seed % 4 == 0 else "icarus"
    compared = mismatches = cycles = 0
    work = work_of(seed, config)
    for stall in (0.0, 0.4):
        run, numbers, wrong = run_work(work, config, stall=stall, seed=seed, simulator=simulator)
        compared, mismatches, cycles = compared + numbers, mismatches + wrong, cycles + run.total
    passes = [item for item in work if isinstance(item, Pass)]
    return Case(
        seed=seed,
        sources=current_sources(),
        simulator=simulator,
        rows=config.rows,
        cols=config.cols,
        weight_bits=config.weight_bits,
        act_bits=config.act_bits,
        scale=config.scale,
        accumulator=config.accumulator,
        passes=2 * len(passes),
        pixels=2 * sum(item.pixels for item in passes),
        cycles=cycles,
        compared=compared,
        mismatches=mismatches,
    )


def _summary(cases: Iterable[Case]) -> Table:
    cases = list(cases)
    table = Table(title=f"{len(cases)} engines", show_header=False)
    sizes = Counter(f"{c.rows}x{c.cols}" for c in cases)
    largest = max(cases, key=lambda c: c.rows * c.cols)
    table.add_row("shapes", f"{len(sizes)}, largest {largest.rows}x{largest.cols}")
    for name in ("weight_bits", "act_bits", "scale", "accumulator", "simulator"):
        counts = Counter(getattr(c, name) for c in cases)
        table.add_row(name, ", ".join(f"{k}: {counts[k]}" for k in sorted(counts)))
    for name in ("passes", "pixels", "cycles", "compared", "mismatches"):
        table.add_row(name, f"{sum(getattr(c, name) for c in cases):,}")
    return table


@click.command()
@click.option("--cases", default=200, show_default=True, help="Seeds 0 to this, less one.")
@click.option("--jobs", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option(
    "-o", "--output", default=Path("out/campaign.jsonl"), show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
)  # fmt: skip
def main(cases: int, jobs: int, output: Path) -> None:
    """Run random work on random engines and on 16x16 and 32x32 ones; every number must agree.

    Finished cases are kept in a file; a further run goes on where this one stopped, unless the
    gateware, the golden model or the simulations have changed.
    """
    chosen, failed = resume(output, Case, _cases, cases, title="engines", jobs=jobs)
    Console().print(_summary(chosen))
    for seed, reason in sorted(failed.items()):
        click.echo(f"seed {seed}: {reason}", err=True)
    wrong = [case.seed for case in chosen if case.mismatches]
    if wrong or failed:
        raise click.ClickException(f"mismatches at seeds {wrong}, failures at {sorted(failed)}")


if __name__ == "__main__":
    main()
