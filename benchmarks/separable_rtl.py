"""Grouped convolutions on the simulated accelerator."""

from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from shiftcore.benchmarks.models import GAP, LATENCY, hardware
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict, predict_layers
from shiftcore.estimate.network import estimate
from shiftcore.examples.zoo.blocks import calibrated, conv_norm
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.accelerate import memory_bytes, run_program
from shiftcore.sim.probe import count_differences
from shiftcore.sim.system import SimulatedSystem

__all__ = ["Simulated", "grouped_stack", "measure", "simulate", "utilization"]

DEPTHS = (32, 16, 8, 4, 1)
CHANNELS, SIZE, LAYERS = 128, 28, 12
"""of the networks: filters of each layer, its height and width, and how many there are"""
LEAST = {16: 0.90, 8: 0.45, 1: 0.95 / 16}
"""utilization of 16×16 that must be reached; depthwise, 95 % of a product a row and cycle"""
CAUSES = ("stall_tile", "stall_ticket", "stall_empty", "stall_hazard")
HEADINGS = (
    "depth", "MACs", "cycles", "predicted", "used", "limit", "ceiling", "layers", "one a tile",
    "no tile", "no ticket", "no pass", "hazard", "off", "compared", "mismatches",
)  # fmt: skip


class Simulated(NamedTuple):
    """One image on the RTL.

    Parameters
    ----------
    cycles : of the run, as its counter says
    counters : all of them
    difference : how far a counter is from its prediction at most, after the run; and the one of
        pixels in the cycles in which each layer should end, and before
    compared, mismatches : stored words' numbers
    """

    counters: dict[str, int]
    difference: int
    compared: int
    mismatches: int

    @property
    def cycles(self) -> int:
        return self.counters["cycles"]


def simulate(
    network: QuantizedNetwork, image: NDArray[np.float32], config: HardwareConfig
) -> Simulated:
    """Run one image (1, C, H, W); compare every stored word with golden, and the end of every layer
    with its prediction."""
    program = compile_network(network, config)
    run = run_program(
        program, program.encode_input(network.encode_input(image)), latency=LATENCY, gap=GAP
    )
    whole = predict(program, latency=LATENCY, gap=GAP)
    shares = predict_layers(program, latency=LATENCY, gap=GAP)
    with SimulatedSystem(config, memory_bytes(program), latency=LATENCY, gap=GAP) as system:
        errors = count_differences(program, system, whole, shares, names=())
    return Simulated(run.counters[0], max(errors.values()), run.compared, run.mismatches)


def grouped_stack(depth: int, channels: int, size: int, layers: int) -> nn.Module:
    """A first layer, 3×3 convolutions whose groups have `depth` channels, and a global average."""
    torch.manual_seed(0)
    first = conv_norm(3, channels, 1)
    grouped = [conv_norm(channels, channels, 3, groups=channels // depth) for _ in range(layers)]
    return calibrated(nn.Sequential(first, *grouped, nn.AdaptiveAvgPool2d(1)), size)


def measure(depth: int, channels: int = CHANNELS, size: int = SIZE, layers: int = LAYERS) -> Row:
    """One row of the table."""
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    network = quantize(
        grouped_stack(depth, channels, size, layers), images, QuantConfig(method="l2")
    )
    config = hardware(network)
    run = simulate(network, images[:1], config)
    found = estimate(compile_network(network, config), network.macs(), latency=LATENCY, gap=GAP)
    _, *grouped, _ = found.layers.values()
    area = config.rows * config.cols
    macs = sum(layer.macs for layer in grouped)
    # If every group had tiles of its own, each of them would see every pixel at every tap.
    tiles = channels // depth * (-(-depth // config.rows) * -(-depth // config.cols))
    apart = layers * tiles * 9 * size * size
    return {
        "depth": depth,
        "groups": channels // depth,
        "macs": macs,
        "cycles": run.cycles,
        "predicted": found.total.cycles,
        "utilization": macs / (run.cycles * area),
        "ceiling": min(depth, config.rows) / config.rows,
        "layers_only": macs / (sum(layer.cycles for layer in grouped) * area),
        "apart": macs / (apart * area),
        "difference": run.difference,
        "compared": run.compared,
        "mismatches": run.mismatches,
        **{name: run.counters[name] for name in CAUSES},
    }


def failed(row: Row) -> bool:
    """Whether numbers differ, a counter is not as predicted, or utilization is too low."""
    slow = row["utilization"] < LEAST.get(row["depth"], 0)
    return slow or row["difference"] > 0 or row["mismatches"] > 0


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    least = LEAST.get(row["depth"])
    return [
        str(row["depth"]),
        *(f"{row[name]:,}" for name in ("macs", "cycles", "predicted")),
        f"{row['utilization']:.2%}", "" if least is None else f"{least:.2%}",
        *(f"{row[name]:.2%}" for name in ("ceiling", "layers_only", "apart")),
        *(f"{row[name]:,}" for name in (*CAUSES, "difference", "compared", "mismatches")),
    ]  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def utilization(as_json: bool) -> None:
    """Groups of 32, 16, 8, 4 and 1 channels on the simulated 16×16 array.

    Each network is one of twelve 3×3 layers of 128 channels and 28×28 pixels between a first layer
    and a global average, on examples/array16.toml. Every stored word is compared with the golden
    machine. "Used" is the utilization of the whole run, from start to done, with the MACs of the
    grouped layers alone; the ceiling is what the zeros in tiles of several groups leave, and "one a
    tile" the ceiling of a mapping that gives every group tiles of its own. Fails at any difference,
    at a counter that is not as predicted, below 90 % for 16 channels, 45 % for 8, and 95 % of 16
    MACs a cycle for one, a depthwise convolution.
    """
    rows = []
    for depth in DEPTHS:
        with Console(stderr=True).status(f"groups of {depth} …"):
            rows.append(measure(depth))
    show(
        rows, HEADINGS, cells, failed, as_json=as_json,
        title=f"{LAYERS} grouped 3×3 convolutions, {CHANNELS} channels, {SIZE}×{SIZE}, on 16×16",
        caption="used: utilization of the whole run; layers: without the first and the last one; "
        "off: the largest difference of a counter from its prediction",
    )  # fmt: skip
