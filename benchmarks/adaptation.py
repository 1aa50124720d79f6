"""What adaptation gains, in the form of tables 1 and 5 of DSConv (arXiv 1901.01928 v1).

``shifters`` is table 1: the CIFAR-10 ResNet-20 with DSConv convolutions of few bits, each scale by
L2, before and after one epoch in which only the shifters train, on the 20,000 training images with
labels. ``transfer`` is table 5: the same network learns handwritten digits, 8x8 pixels scaled up to
32x32, with a new classifier alone and with the shifters too, on the same schedule.

All top-1 figures are hardware mode's, of the network as it is exported: scales rounded to bf16,
8-bit activations, 8-bit images and an 8-bit classifier. A row fails if training does not raise the
accuracy (transfer: if the shifters do not, by 5 points), or if anything changes that is frozen.
"""

import time
from collections.abc import Callable, Sequence
from itertools import product

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn
from torch.nn import functional

from shiftcore.benchmarks.models import data_folder, float_classes
from shiftcore.benchmarks.report import Row, print_table, show
from shiftcore.examples.digits import data as digits
from shiftcore.examples.zoo.cifar import cifar10, crop_and_flip, normalised
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.quant.adapt import frozen_state, transfer, tune_shifters
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConv2d, DSConvConfig, quantize_, shifters
from shiftcore.quant.hardware import evaluate
from shiftcore.quant.training import Augment, TrainingConfig, process_device

BATCH = 250
CALIBRATION = 256
TRAINING, TEST = 20_000, 10_000
CLASSES = 10
CLASSIFIER = ("linear.weight", "linear.bias")
RATE = 3e-4
"""of Adam: the paper's 1e-5 hardly moves the scales in so few steps, 3e-3 destroys small blocks"""
CLASSIFIER_RATE = 3e-3
"""of a new classifier, alone or with the shifters, whose rate is the other one"""
LEAST_GAIN = 5.0
"""points of top-1 that the shifters must add to a new classifier's"""
STATUS = Console(stderr=True)
SHIFTERS_HEADINGS = (
    "weight bits", "block", "training images", "test images", "top-1 float", "before", "after",
    "gain", "frozen tensors", "changed", "images/s",
)  # fmt: skip
WHEN = ("before", "after")
TRANSFER_HEADINGS = (
    "weight bits", "block", "training images", "epochs", "test images", "top-1 classifier only",
    "classifier + shifters", "gain", "frozen tensors", "changed",
)  # fmt: skip

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def coded(weight_bits: int, block: int) -> nn.Module:
    """The trained ResNet-20, its convolutions DSConv layers by plain L2, its classifier float."""
    network = resnet20(data_folder("resnet20"))
    config = DSConvConfig(weight_bits, block)
    quantize_(network, config, lambda module, _: isinstance(module, nn.Conv2d))
    return network.requires_grad_(False).to(process_device())


def top1(network: nn.Module, calibration: Images, images: Images, labels: Labels) -> float:
    """Top-1 in percent of the exported network in hardware mode."""
    block = next(layer.block for layer in network.modules() if isinstance(layer, DSConv2d))
    stored = quantize(network.cpu(), calibration, QuantConfig(8, 8, block, method="l2"))
    network.to(process_device())
    return evaluate(stored, images, labels, BATCH).top1


def float_top1(images: Images, labels: Labels) -> float:
    """Top-1 in percent of the network as it was trained."""
    classes = float_classes(resnet20(data_folder("resnet20")), images)
    return 100 * float((classes == labels).mean())


def frozen(network: nn.Module, trained: Sequence[str] = ()) -> dict[str, str]:
    """Hashes of what must not change: all but the shifters and the parameters `trained`."""
    moved = {name for name, _ in shifters(network)} | set(trained)
    return {name: value for name, value in frozen_state(network).items() if name not in moved}


def differing(before: dict[str, str], after: dict[str, str]) -> int:
    """How many hashes are not the same."""
    return sum(before[name] != after.get(name) for name in before)


def tuned(
    weight_bits: int,
    block: int,
    x: Images,
    y: Labels,
    test: tuple[Images, Labels],
    rate: float,
    augment: Augment | None = None,
) -> Row:
    """One row of the table of shifters, but for the float network."""
    network = coded(weight_bits, block)
    row: Row = {
        "weight_bits": weight_bits, "block": block, "images": len(x), "test_images": len(test[0]),
        "rate": rate, "before": top1(network, x[:CALIBRATION], *test),
    }  # fmt: skip
    state = frozen(network)
    config = TrainingConfig(batch=32, rate=rate, schedule="cosine")
    start = time.perf_counter()
    tune_shifters(network, x, y, config, augment=augment)
    return row | {
        "images_per_s": len(x) / (time.perf_counter() - start),
        "frozen": len(state),
        "changed": differing(state, frozen(network)),
        "after": top1(network, x[:CALIBRATION], *test),
    }


def transferred(
    weight_bits: int,
    block: int,
    images: int | None,
    test_images: int | None,
    epochs: int,
    rate: float,
) -> Row:
    """One row of the table of transfer."""
    training, test = digits.load()
    x, y = enlarged(training.x)[:images], training.y[:images]
    labels = test.y[:test_images]
    test_x = enlarged(test.x[:test_images])
    row: Row = {
        "weight_bits": weight_bits, "block": block, "images": len(x), "epochs": epochs,
        "rate": rate, "test_images": len(test_x), "frozen": 0, "changed": 0,
    }  # fmt: skip
    config = TrainingConfig(epochs=epochs, batch=32, rate=rate, schedule="cosine")
    for name, with_shifters in (("classifier", False), ("both", True)):
        network = coded(weight_bits, block)
        state = frozen(network, CLASSIFIER)
        transfer(
            network, CLASSES, x, y, config,
            with_shifters=with_shifters, classifier_rate=CLASSIFIER_RATE,
        )  # fmt: skip
        row["frozen"] = len(state)
        row["changed"] += differing(state, frozen(network, CLASSIFIER))
        row[name] = top1(network, x[:CALIBRATION], test_x, labels)
    return row


def enlarged(images: Images) -> Images:
    """Digits (N, 1, 8, 8) of 0 to 1 as the network takes images, (N, 3, 32, 32)."""
    large = functional.interpolate(
        torch.from_numpy(images), (32, 32), mode="bilinear", align_corners=False
    )
    return normalised(large.expand(-1, 3, -1, -1).numpy())


def tuned_failed(row: Row) -> bool:
    """Whether accuracy did not rise, or something frozen has changed."""
    return row["changed"] > 0 or row["after"] <= row["before"]


def transferred_failed(row: Row) -> bool:
    """Whether the shifters did not help clearly, or something frozen has changed."""
    return row["changed"] > 0 or row["both"] < row["classifier"] + LEAST_GAIN


def tuned_cells(row: Row) -> list[str]:
    """A row as text, one cell for each of SHIFTERS_HEADINGS."""
    return [
        str(row["weight_bits"]), str(row["block"]), f"{row['images']:,}", f"{row['test_images']:,}",
        f"{row['float_top1']:.2f} %", f"{row['before']:.2f} %", f"{row['after']:.2f} %",
        f"{row['after'] - row['before']:+.2f}", str(row["frozen"]), str(row["changed"]),
        f"{row['images_per_s']:.0f}",
    ]  # fmt: skip


def table_1(rows: Sequence[Row]) -> None:
    """Print rows of shifters as the paper's table 1: bits by block sizes, before and after."""
    top1 = {(row["weight_bits"], row["block"], when): row[when] for row in rows for when in WHEN}
    bits, blocks = (sorted({key[n] for key in top1}, reverse=True) for n in (0, 1))
    columns = [(block, when) for when in WHEN for block in blocks]

    def cells(row: Row) -> list[str]:
        found = (top1.get((row["bits"], *column)) for column in columns)
        return [str(row["bits"]), *("" if x is None else f"{x:.2f}" for x in found)]

    print_table(
        [{"bits": number} for number in bits],
        ["bits", *(f"{when}, B = {block}" for block, when in columns)],
        cells,
        title="Top-1 in % before and after the epoch, as in table 1 of DSConv",
        caption=f"float: {rows[0]['float_top1']:.2f} %",
    )


def transferred_cells(row: Row) -> list[str]:
    """A row as text, one cell for each of TRANSFER_HEADINGS."""
    return [
        str(row["weight_bits"]), str(row["block"]), f"{row['images']:,}", str(row["epochs"]),
        str(row["test_images"]), f"{row['classifier']:.2f} %", f"{row['both']:.2f} %",
        f"{row['both'] - row['classifier']:+.2f}", str(row["frozen"]), str(row["changed"]),
    ]  # fmt: skip


@click.group(help=__doc__)
def main() -> None:
    """Measure and print; fail where nothing is gained."""


_bits = click.option(
    "--bits", "-b", type=click.IntRange(2, 8), multiple=True, help="Weight bits; may be repeated."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _rate(default: float) -> Callable:
    return click.option(
        "--rate", default=default, show_default=True, help="First learning rate, of Adam."
    )


@main.command("shifters")
@_bits
@click.option(
    "--block", "-B", "blocks", type=click.IntRange(1), multiple=True, default=(8, 32, 128),
    show_default=True, help="Block sizes; may be repeated.",
)  # fmt: skip
@click.option("--images", type=click.IntRange(CALIBRATION, TRAINING), default=TRAINING)
@click.option("--test-images", type=click.IntRange(1, TEST), default=TEST)
@_rate(RATE)
@click.option("--augment", is_flag=True, help="Crop and mirror the training images at random.")
@_json
def shifters_command(
    bits: tuple[int, ...],
    blocks: tuple[int, ...],
    images: int,
    test_images: int,
    rate: float,
    augment: bool,
    as_json: bool,
) -> None:
    """Table 1: one epoch for the shifters alone."""
    folder = data_folder("resnet20")
    x, y = cifar10(folder, images, "train-20k")
    test = cifar10(folder, test_images)
    floating = float_top1(*test)
    rows = []
    for weight_bits, block in product(bits or (2, 3), blocks):
        row = tuned(weight_bits, block, x, y, test, rate, crop_and_flip if augment else None)
        rows.append(row | {"float_top1": floating})
        STATUS.print(*tuned_cells(rows[-1]))
    if not as_json:
        table_1(rows)
    show(
        rows,
        SHIFTERS_HEADINGS,
        tuned_cells,
        tuned_failed,
        title="ResNet-20 on CIFAR-10, weights by plain L2: one epoch for the shifters alone",
        caption="top-1 in hardware mode, 8-bit activations and images",
        as_json=as_json,
    )


@main.command("transfer")
@_bits
@click.option("--block", "-B", type=click.IntRange(1), default=128, show_default=True)
@click.option("--images", type=click.IntRange(CALIBRATION), help="Digits to train on; default all.")
@click.option("--test-images", type=click.IntRange(1), help="Digits to test; default all.")
@click.option("--epochs", type=click.IntRange(1), default=5, show_default=True)
@_rate(RATE)
@_json
def transfer_command(
    bits: tuple[int, ...],
    block: int,
    images: int | None,
    test_images: int | None,
    epochs: int,
    rate: float,
    as_json: bool,
) -> None:
    """Table 5: another task, with a new classifier alone and with the shifters."""
    rows = []
    for weight_bits in bits or (3, 4, 5, 6):
        rows.append(transferred(weight_bits, block, images, test_images, epochs, rate))
        STATUS.print(*transferred_cells(rows[-1]))
    show(
        rows,
        TRANSFER_HEADINGS,
        transferred_cells,
        transferred_failed,
        title="ResNet-20 of CIFAR-10 learns handwritten digits",
        caption="top-1 in hardware mode, 8-bit activations and images",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
