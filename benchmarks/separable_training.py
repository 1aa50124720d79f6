"""ResNet-20 with separable convolutions, trained from scratch on CIFAR-10."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn
from torch.nn import functional

from shiftcore.benchmarks.models import GAP, LATENCY, data_folder, float_classes, hardware
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.network import network_cycles
from shiftcore.examples.zoo.cifar import cifar10, crop_and_flip
from shiftcore.examples.zoo.resnet20 import ResNet20
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.accounting import account_network
from shiftcore.quant.convert import quantize
from shiftcore.quant.hardware import evaluate
from shiftcore.quant.training import TrainingConfig, fit, process_device
from shiftcore.separable.convert import Designer, separate_
from shiftcore.separable.design import Design, best_design
from shiftcore.sim.accelerate import run_program

__all__ = ["VERSIONS", "measure", "simulate", "train"]

VERSIONS: dict[str, Designer] = {
    "conventional": Design.conventional,
    "depthwise": Design.depthwise,
    "spatial": Design.spatial,
    "two": partial(best_design, stages=2),
    "any": best_design,
}
TRAINING, TEST, CALIBRATION = 20_000, 10_000, 256
BATCH, RATE, DECAY = 64, 0.05, 1e-4
"""of stochastic gradient descent: half the batch and rate of He et al. (arXiv 1512.03385), whose
decay it is; 64,000 steps, as theirs, are 205 epochs"""
RECIPE = f"batches of {BATCH}, rate {RATE}, decay {DECAY}"
CUDA_EPOCHS, CPU_EPOCHS = 205, 6
HEADINGS = (
    "version", "seeds", "parameters", "MACs", "bits", "cycles", "top-1 float", "4/4 bits",
    "float, each seed", "4/4 bits, each seed",
)  # fmt: skip
SAME = (
    "version", "epochs", "images", "recipe", "device", "parameters", "macs", "bits", "cycles",
)  # fmt: skip
"""of all seeds of a version"""
SIMULATION = ("version", "images", "predicted", "cycles", "compared", "mismatches")

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def cross_entropy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean loss of a batch."""
    return functional.cross_entropy(model(images), labels)


def measure(
    version: str,
    seed: int,
    epochs: int,
    training: Data,
    test: Data,
    folder: Path,
    make: Callable[[], nn.Module] = ResNet20,
) -> Row:
    """Train a version, or take what an earlier run left in `folder`: the quantized network, its
    accuracy, and a checkpoint of each epoch.

    Raises ``ValueError`` if a checkpoint is that of another training, or a network is in an older
    format.
    """
    name = f"{version}-{seed}-{epochs}-{len(training[0])}"
    file, result = folder / f"{name}.safetensors", folder / f"{name}.json"
    torch.manual_seed(seed)
    model = make()
    separate_(model, VERSIONS[version])
    modules = hashlib.sha256(repr(model).encode()).hexdigest()
    if not (file.exists() and result.exists()):
        model.to(process_device())
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        config = TrainingConfig(
            epochs, BATCH, RATE, "sgd", DECAY, "cosine", seed=seed,
            checkpoint=folder / f"{name}.pt", every=-(-len(training[0]) // BATCH),
        )  # fmt: skip
        data = [torch.from_numpy(each) for each in training]
        fit(model, cross_entropy, data, config, augment=crop_and_flip)
        model = model.cpu().eval()
        network = quantize(model, training[0][:CALIBRATION])
        network.save(file)
        tops = {
            "recipe": RECIPE,
            "modules": modules,
            "device": process_device().type,
            "float_top1": 100 * float((float_classes(model, test[0]) == test[1]).mean()),
            "top1": evaluate(network, *test).top1,
        }
        result.write_text(json.dumps(tops) + "\n", encoding="utf-8")
    tops = json.loads(result.read_text(encoding="utf-8"))
    if tops["recipe"] != RECIPE:
        raise click.ClickException(
            f"{result} is that of a training with {tops['recipe']}, not {RECIPE}; remove it"
        )
    if tops.get("modules") != modules:
        raise click.ClickException(f"{result} is that of a network of other modules; remove it")
    network = QuantizedNetwork.load(file)
    layers = [layer for layer in account_network(network) if layer.weights]
    return {
        "version": version,
        "seed": seed,
        "epochs": epochs,
        "images": len(training[0]),
        "recipe": RECIPE,
        "device": tops["device"],
        "network": str(file),
        "parameters": sum(layer.weights for layer in layers),
        "macs": sum(layer.macs for layer in layers),
        "bits": sum(8 * (layer.memory.codes + layer.memory.scales) for layer in layers),
        "cycles": network_cycles(hardware(network), network),
        "float_top1": tops["float_top1"],
        "top1": tops["top1"],
    }


def simulate(row: Row, images: NDArray[np.float32]) -> Row:
    """Some images through the network of one seed on the simulated accelerator, every stored word
    compared with the golden machine."""
    network = QuantizedNetwork.load(row["network"])
    program = compile_network(network, hardware(network))
    encoded = program.encode_input(network.encode_input(images))
    run = run_program(program, encoded, latency=LATENCY, gap=GAP)
    return {
        "version": row["version"],
        "images": len(images),
        "predicted": row["cycles"],
        "cycles": run.cycles,
        "compared": run.compared,
        "mismatches": run.mismatches,
    }


def gather(runs: Sequence[Row]) -> list[Row]:
    """One row for each version, of the runs of all its seeds."""
    rows = []
    for version in dict.fromkeys(run["version"] for run in runs):
        own = [run for run in runs if run["version"] == version]
        same = {name: own[0][name] for name in SAME}
        tops = {name: [run[name] for run in own] for name in ("float_top1", "top1")}
        rows.append(same | {"seeds": [run["seed"] for run in own]} | tops)
    return rows


def failed(row: Row) -> bool:
    """Whether a version has learnt nothing: half of the seeds' networks guess."""
    return float(np.median(row["float_top1"])) <= 15


def simulation_failed(row: Row) -> bool:
    """Whether a number differs, or an image takes other cycles than predicted."""
    return row["mismatches"] > 0 or set(row["cycles"]) != {row["predicted"]}


def simulation_cells(row: Row) -> list[str]:
    """A row of the table of simulations, one cell for each of SIMULATION."""
    numbers = (row["images"], row["predicted"], max(row["cycles"]), row["compared"])
    return [row["version"], *(f"{number:,}" for number in (*numbers, row["mismatches"]))]


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    tops = row["float_top1"], row["top1"]
    return [
        row["version"], str(len(row["seeds"])),
        *(f"{row[name]:,}" for name in ("parameters", "macs", "bits", "cycles")),
        *(f"{np.mean(each):.2f} %" for each in tops),
        *(", ".join(f"{one:.2f}" for one in each) for each in tops),
    ]  # fmt: skip


@click.command()
@click.option("--epochs", type=click.IntRange(1), help="Of each training [205 on CUDA, else 6].")
@click.option("--seeds", default=2, show_default=True, type=click.IntRange(1))
@click.option("--images", default=TRAINING, show_default=True, type=click.IntRange(BATCH))
@click.option("--version", "versions", multiple=True, type=click.Choice(list(VERSIONS)))
@click.option(
    "-o", "--output", default="out/separable", show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of finished runs and checkpoints, from which a further call goes on.",
)  # fmt: skip
@click.option(
    "--rtl", default=0, type=click.IntRange(0),
    help="Instead of the table, run so many test images through each trained network of seed 0.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train(
    epochs: int | None,
    seeds: int,
    images: int,
    versions: tuple[str, ...],
    output: Path,
    rtl: int,
    as_json: bool,
) -> None:
    """ResNet-20 on CIFAR-10, its 3×3 convolutions replaced: accuracy, size, cycles.

    The versions are the network itself, depthwise and spatial separable convolutions, and the
    designs of fewest parameters, of two stages and of any number; all are trained alike. Needs
    SHIFTCORE_DATA. Each finished run and epoch is kept. Bits are codes and scales with 4-bit
    weights in blocks of 16 as the network file stores them, cycles those of examples/array16.toml,
    top-1 of 4/4 bits that of hardware mode without further training. Parameters and MACs are those
    of convolutions and the linear layer. Fails if a version learns nothing; with --rtl, at a stored
    word that differs from the golden machine's, and at cycles that are not as predicted.
    """
    folder, device = data_folder("separable.py train"), process_device()
    epochs = epochs or (CUDA_EPOCHS if device.type == "cuda" else CPU_EPOCHS)
    training, test = cifar10(folder, images, "train-20k"), cifar10(folder, TEST)
    output.mkdir(parents=True, exist_ok=True)
    status, runs = Console(stderr=True), []
    for seed in range(1 if rtl else seeds):
        for version in versions or VERSIONS:
            status.print(f"{version}, seed {seed} …")
            runs.append(measure(version, seed, epochs, training, test, output))
    if rtl:
        show(
            [simulate(run, test[0][:rtl]) for run in runs], SIMULATION, simulation_cells,
            simulation_failed, as_json=as_json,
            title="The trained networks, 4/4 bits, on the simulated 16×16 accelerator",
        )  # fmt: skip
        return
    show(
        gather(runs), HEADINGS, cells, failed, as_json=as_json,
        title="ResNet-20 on CIFAR-10, from scratch",
        caption=f"{epochs} epochs of {len(training[0]):,} training images with random crops and "
        f"flips, {RECIPE}, {len(test[0]):,} test images, on "
        f"{' and '.join(sorted({run['device'] for run in runs}))}; the mean of the seeds"
        + ("; a short schedule" if epochs < CUDA_EPOCHS else ""),
    )  # fmt: skip
