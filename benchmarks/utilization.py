"""Utilization of a 16x16 array on whole networks, and where the other cycles go.

``python benchmarks/utilization.py resnet20 resnet18`` compiles each network for
``examples/array16.toml``, compares every tensor of the golden machine with the golden layers, runs
one image through the simulated accelerator (64-bit memory port at one beat a cycle, 20 cycles
latency), compares every stored word with the golden machine, and prints one table. MACs are those
of the network's convolutions and linear layers. With ``--golden`` nothing is simulated: the cycles
and what they were lost to are then those of the estimator, which the simulation must meet exactly.

Trained networks need SHIFTCORE_DATA; the others have random weights, which cost the same cycles,
and images of 224x224. Where a network clamps (ReLU6), the configuration has ``clamp = true``.
Fails at any difference, and below 90 % on ResNet-20, 87 % on ResNet-18, 91 % on ResNet-50.
"""

import time

import click
from rich.console import Console

from shiftcore.benchmarks.models import GAP, LATENCY, hardware, load
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.golden.compare import difference
from shiftcore.golden.machine import Machine
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.accelerate import run_program

LEAST = {"resnet20": 0.90, "resnet18": 0.87, "resnet50": 0.91}
"""utilization that must be reached"""
CAUSES = ("stall_tile", "stall_ticket", "stall_empty", "stall_hazard")
HEADINGS = (
    "network", "MACs", "cycles", "predicted", "utilization", "no tile", "no ticket", "no pass",
    "hazard", "compared", "mismatches", "golden layers",
)  # fmt: skip


def measure(name: str, simulated: bool = True) -> Row:
    """One row of the table.

    Raises ``click.ClickException`` if there is no such network.
    """
    model, images, _ = load(name)
    began = time.perf_counter()
    network = quantize(model, images, QuantConfig(method="l2"))
    quantized = time.perf_counter()
    config = hardware(network)
    program = compile_network(network, config)
    compiled = time.perf_counter()
    content = program.encode_input(network.encode_input(images[:1]))
    trace = Machine(program).run(content, trace=True).trace
    predicted = predict(program, latency=LATENCY, gap=GAP).counters()
    row: Row = {
        "network": name,
        "macs": program.macs,
        "predicted": predicted["cycles"],
        "difference": difference(program, trace, network.compute(images[:1])),
        "quantize_s": quantized - began,
        "compile_s": compiled - quantized,
    }
    counters = predicted
    if simulated:
        run = run_program(program, content, latency=LATENCY, gap=GAP)
        counters = run.counters[0]
        row |= {
            "cycles": counters["cycles"],
            "counters_exact": counters == predicted,
            "compared": run.compared,
            "mismatches": run.mismatches,
            "sim_cycles_per_s": counters["cycles"] / run.seconds,
        }
    size = config.rows * config.cols
    row["utilization"] = row["macs"] / (counters["cycles"] * size)
    return row | {name: counters[name] for name in ("pixels", *CAUSES)}


def failed(row: Row) -> bool:
    """Whether numbers differ, a counter is not as predicted, or utilization is too low."""
    exact = row.get("counters_exact", True) and not row.get("mismatches", 0)
    slow = row["utilization"] < LEAST.get(row["network"], 0)
    return not exact or slow or row["difference"] is not None


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    numbers = [f"{row[key]:,}" if key in row else "" for key in ("macs", "cycles", "predicted")]
    counts = [f"{row[key]:,}" if key in row else "" for key in (*CAUSES, "compared", "mismatches")]
    layers = row["difference"] or "equal"
    return [row["network"], *numbers, f"{row['utilization']:.1%}", *counts, layers]


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--golden", is_flag=True, help="Do not simulate: golden model and estimator only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(names: tuple[str, ...], golden: bool, as_json: bool) -> None:
    """Measure and print; fail at a difference, a counter not as predicted, or low utilization."""
    progress = Console(stderr=True)
    rows = []
    for name in names or ("resnet20",):
        with progress.status(f"{name} …"):
            rows.append(measure(name, simulated=not golden))
    title = "One image, 16×16, 4-bit weights and activations"
    show(rows, HEADINGS, cells, failed, title=title, as_json=as_json)


if __name__ == "__main__":
    main()
