"""Utilization of a 16x16 array on whole networks, and where the other cycles go.

``python benchmarks/utilization.py resnet20 resnet18`` compiles each network, runs one image through
the simulated accelerator of ``examples/array16.toml`` (64-bit memory port at one beat a cycle, 20
cycles latency), compares every stored word with the golden machine, and prints one table. MACs are
those of the network's convolutions and linear layers. ResNet-20 and ResNet-8 are trained and need
SHIFTCORE_DATA; the others have random weights, which cost the same cycles.
"""

import json
import os
import time
from importlib.resources import as_file, files
from pathlib import Path

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.frontend.graph import Conv2d, Linear
from shiftcore.golden.config import HardwareConfig
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.sim.accelerate import run_program
from shiftcore.tests.networks import cifar10, resnet20
from shiftcore.tests.zoo.catalogue import CATALOGUE

LATENCY, GAP = 20, 0
CAUSES = ("stall_tile", "stall_ticket", "stall_empty", "stall_hazard")


def hardware() -> HardwareConfig:
    """``examples/array16.toml``."""
    with as_file(files("shiftcore.examples") / "array16.toml") as path:
        return HardwareConfig.load(path)


def network_of(name: str) -> tuple[nn.Module, np.ndarray]:
    """A network in eval mode and images for it, (N, C, H, W)."""
    if name == "resnet20":
        if "SHIFTCORE_DATA" not in os.environ:
            raise click.ClickException("resnet20 needs SHIFTCORE_DATA")
        folder = Path(os.environ["SHIFTCORE_DATA"])
        return resnet20(folder), cifar10(folder, 64, "train-20k")[0]
    if name not in CATALOGUE:
        known = ", ".join(["resnet20", *CATALOGUE])
        raise click.ClickException(f"there is no network {name!r}; known are {known}")
    torch.manual_seed(0)
    model = CATALOGUE[name].full()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images.numpy()


def macs_of(model: nn.Module, images: np.ndarray) -> int:
    """MACs of the convolutions and linear layers for one image."""
    graph = as_graph(model, images)
    shapes = graph.shapes
    total = 0
    for node in graph.nodes:
        if isinstance(node, Conv2d | Linear):
            total += node.weight.size * int(np.prod(shapes[node.name][1:]))
    return total


def measure(name: str, config: HardwareConfig) -> dict:
    """One row of the table."""
    model, images = network_of(name)
    began = time.perf_counter()
    network = quantize(model, images, QuantConfig(block=config.rows))
    quantized = time.perf_counter()
    program = compile_network(network, config)
    compiled = time.perf_counter()
    content = program.encode_input(network.encode_input(images[:1]))
    run = run_program(program, content, latency=LATENCY, gap=GAP)
    macs = macs_of(model, images)
    cycles, counters = run.cycles[0], run.counters[0]
    predicted = predict(program, latency=LATENCY, gap=GAP)
    return {
        "network": name,
        "macs": macs,
        "cycles": cycles,
        "predicted": predicted.cycles,
        "counters_exact": predicted.counters() == counters,
        "utilization": macs / (cycles * config.rows * config.cols),
        "pixels": counters["pixels"],
        **{cause: counters[cause] for cause in CAUSES},
        "compared": run.compared,
        "mismatches": run.mismatches,
        "quantize_s": quantized - began,
        "compile_s": compiled - quantized,
        "sim_cycles_per_s": cycles / run.seconds,
    }


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(names: tuple[str, ...], as_json: bool) -> None:
    """Measure and print; fail at a mismatch, or if a counter is not as predicted."""
    config = hardware()
    progress = Console(stderr=True)
    table = Table(title="One image, 16×16, 4-bit weights and activations", box=box.SIMPLE)
    headings = (
        "network", "MACs", "cycles", "predicted", "utilization", "no tile", "no ticket",
        "no pass", "hazard", "compared", "mismatches",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    rows = []
    for name in names or ("resnet20",):
        with progress.status(f"{name} …"):
            row = measure(name, config)
        rows.append(row)
        table.add_row(
            name, f"{row['macs']:,}", f"{row['cycles']:,}", f"{row['predicted']:,}",
            f"{row['utilization']:.1%}",
            *(f"{row[cause]:,}" for cause in CAUSES), f"{row['compared']:,}",
            str(row["mismatches"]),
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows))
    else:
        Console(width=max(Console().width, 130)).print(table)
    if any(row["mismatches"] or not row["counters_exact"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
