"""The prediction of cycles: against the RTL, and its own time."""

import time
from collections import Counter
from collections.abc import Sequence

import click
import numpy as np
import torch
from rich.console import Console

from shiftcore.benchmarks.models import hardware, load
from shiftcore.benchmarks.random_layers import BUILDS, KINDS, Result, draw_case, measure
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.network import estimate
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.runner import SimulationError

__all__ = ["cycles", "speed"]

LEAST = 300
"""combinations of a layer and a memory"""
SECONDS = 0.5
"""less than that for ResNet-50"""
REPEATS = 7
HEADINGS = (
    "build", "bits", "bus", "cases", "kinds", "layers", "cycles", "latency", "gap", "counters",
    "worst error",
)  # fmt: skip
SPEED_HEADINGS = (
    "network", "instructions", "cycles", "first call", "warm", "median", "CPU", "limit",
)  # fmt: skip


def summary(build: int, results: Sequence[Result], failures: Sequence[str]) -> Row:
    """One row of the table: what the cases of a build cover, and the worst of their errors."""
    config, cases = BUILDS[build], [result.case for result in results]
    worst = max(results, key=lambda result: max(result.errors.values()))
    return {
        "build": f"{config.rows}x{config.cols}",
        "bits": f"{config.weight_bits}/{config.act_bits} {config.scale}",
        "bus": config.bus_bits,
        "cases": len(cases),
        "kinds": dict(Counter(case.kind for case in cases)),
        "layers": sum(result.layers for result in results),
        "cycles": sum(result.cycles for result in results),
        "latency": [min(case.latency for case in cases), max(case.latency for case in cases)],
        "gap": [min(case.gap for case in cases), max(case.gap for case in cases)],
        "counters": sum((result.layers + 1) * len(result.errors) for result in results),
        "errors": worst.errors,
        "worst": max(worst.errors.values()),
        "worst_seed": worst.case.seed,
        "failures": list(failures),
    }


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    error = f"{row['worst']} (seed {row['worst_seed']})" if row["worst"] else "0"
    return [
        row["build"], row["bits"], f"{row['bus']}", f"{row['cases']}", f"{len(row['kinds'])}",
        f"{row['layers']}", f"{row['cycles']:,}", "{} to {}".format(*row["latency"]),
        "{} to {}".format(*row["gap"]), f"{row['counters']:,}", error,
    ]  # fmt: skip


def wrong(row: Row) -> bool:
    """Whether a counter of any case differs."""
    return row["worst"] != 0 or bool(row["failures"])


@click.command()
@click.option("--cases", default=40, show_default=True, help="Seeds 0 to this, less one, a build.")
@click.option("--build", type=click.IntRange(0, len(BUILDS) - 1), help="Only this one.")
@click.option("--seed", type=int, help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cycles(cases: int, build: int | None, seed: int | None, as_json: bool) -> None:
    """Random layers and memories against the RTL: every counter of the run and of each layer.

    A case is a layer (convolution of any kernel, stride, padding and dilation, grouped, depthwise,
    a residual or a projection, pools, linear, concatenation, shuffle) behind a convolution, and a
    memory of random latency and gap, made from the seed and the number of the build. All eleven
    counters of the simulated RTL are read at the end of the run and at the end of every layer; with
    serial control there is one, and no layer's.
    Fails at any difference, and with fewer than 300 cases unless a build or a seed is chosen.
    """
    progress = Console(stderr=True)
    rows = []
    for index in range(len(BUILDS)) if build is None else [build]:
        results, failures = [], []
        for each in range(cases) if seed is None else [seed]:
            with progress.status(f"build {index}, seed {each} …"):
                try:
                    results.append(measure(draw_case(each, index)))
                except (SimulationError, ValueError) as error:
                    failures.append(f"build {index}, seed {each}: {error}")
                    progress.print(failures[-1])
                    continue
            case, errors = results[-1].case, results[-1].errors
            if any(errors.values()):
                progress.print(f"build {index}, seed {each}, {case.kind}: {errors}")
        if results:
            rows.append(summary(index, results, failures))
    total = sum(row["cases"] for row in rows)
    found = {kind for row in rows for kind in row["kinds"]}
    title = f"Predicted counters and those of the RTL, {total} random layers and memories"
    show(rows, HEADINGS, cells, wrong, title=title, as_json=as_json)
    if build is None and seed is None and (total < LEAST or found != set(KINDS)):
        raise click.ClickException(f"{total} cases of {len(found)} kinds, not {LEAST} of all")
    if not rows:
        raise click.ClickException("no case was run to its end")


def speed_cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of SPEED_HEADINGS."""
    return [
        row["network"], f"{row['instructions']:,}", f"{row['cycles']:,}", f"{row['first_s']:.2f} s",
        f"{row['warm_s']:.3f} s", f"{row['median_s']:.3f} s", f"{row['cpu_s']:.3f} s",
        f"{SECONDS} s",
    ]  # fmt: skip


@click.command()
@click.argument("name", default="resnet50")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def speed(name: str, as_json: bool) -> None:
    """The time of `estimate` on a network of 224x224 pixels for examples/array16.toml.

    The first call compiles or loads the compiled loops; of the others the fastest counts, the
    median and the least processor time stand beside it. Fails if the fastest takes 0.5 s.
    """
    torch.manual_seed(0)
    progress = Console(stderr=True)
    with progress.status(f"compiling {name} …"):
        model, images, _ = load(name)
        network = quantize(model, images, QuantConfig(method="l2"))
        program = compile_network(network, hardware(network))
    macs = network.macs()
    seconds, processor = [], []
    for _ in range(1 + REPEATS):
        began, used = time.perf_counter(), time.process_time()
        found = estimate(program, macs)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    row: Row = {
        "network": name,
        "instructions": len(program.instructions),
        "cycles": found.total.cycles,
        "first_s": seconds[0],
        "warm_s": min(seconds[1:]),
        "median_s": float(np.median(seconds[1:])),
        "cpu_s": min(processor[1:]),
    }
    title = "Time of the prediction of one image on 16×16"
    show(
        [row], SPEED_HEADINGS, speed_cells, lambda r: r["warm_s"] >= SECONDS, title=title,
        as_json=as_json,
    )  # fmt: skip
