"""Top-1 accuracy on CIFAR-10 in hardware mode, for every way to choose codes and scales.

``python benchmarks/accuracy.py`` needs SHIFTCORE_DATA. All 10,000 test images are classified in
hardware mode, the image in 8 bits. Quantization sees 1,024 training images at most and distillation
20,000, neither a label. It has three parts:

* calibrated: the limits that ``shiftcore quantize`` holds on ResNet-20 and MLPerf Tiny's ResNet-8.
  ResNet-20's hold without training. ResNet-8 has none as quantized; its limit is met only after
  distillation on the same 1,024 calibration images (``--epochs 8``);
* distilled: ResNet-20 before and after learning from the float network, which must not cost;
* methods: what each method brings at 4, 3 and 2 bits, and plain L2 over block sizes.

It fails where a limit is missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from shiftcore.benchmarks.models import CIFAR_TEST, data_folder
from shiftcore.benchmarks.report import Row, show
from shiftcore.examples.zoo.cifar import cifar10, raw_cifar10
from shiftcore.examples.zoo.resnet8 import resnet8
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.adapt import DistillationConfig, distill_network
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import evaluate

Network = Literal["resnet8", "resnet20"]
Part = Literal["calibrated", "distilled", "methods"]
IMAGES, MORE_IMAGES = 1024, 20_000
"""training images that quantization sees, and distillation"""
FINE = DistillationConfig(epochs=8, rate=2e-3, schedule="cosine")
"""on the images that the network was calibrated with"""
LONG = DistillationConfig(epochs=1, rate=2e-3, schedule="cosine")
HEADINGS = (
    "network", "bits", "B", "method", "distilled", "top-1 float", "top-1", "loss", "limit",
    "before",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: a configuration, and the least top-1 that it must reach.

    `least` is a top-1 in percent, or if negative the difference to that of the float network.
    """

    network: Network
    config: QuantConfig
    least: float | None = None
    distillation: DistillationConfig | None = None
    images: int = IMAGES


def _of(bits: int, act_bits: int, block: int, method: str = "compensated") -> QuantConfig:
    return QuantConfig(bits, act_bits, block, method=method)  # pyright: ignore[reportArgumentType]


CASES: dict[Part, tuple[Case, ...]] = {
    "calibrated": (
        Case("resnet20", _of(8, 8, 16), -0.2),
        Case("resnet20", _of(4, 4, 16), -0.6),
        Case("resnet20", _of(4, 4, 32), -0.6),
        Case("resnet20", _of(3, 4, 16), -0.9),
        Case("resnet20", _of(2, 4, 16), 89.5),
        Case("resnet20", _of(2, 4, 32), 89.0),
        Case("resnet8", _of(4, 4, 16)),
        Case("resnet8", _of(4, 4, 16), -1.0, FINE),
    ),
    "distilled": (
        Case("resnet20", _of(3, 4, 16), -0.5, LONG, MORE_IMAGES),
        Case("resnet20", _of(2, 4, 16), -1.0, LONG, MORE_IMAGES),
    ),
    "methods": (
        *(
            Case("resnet20", _of(bits, 4, 16, method))
            for bits in (4, 3, 2)
            for method in ("l2", "kl", "joint", "compensated")
        ),
        *(
            Case("resnet20", _of(bits, 8, block, "l2"), least)
            for bits, least in ((8, -0.3), (4, -2.0), (3, -5.0), (2, None))
            for block in (8, 32, 128)
        ),
    ),
}


@cache
def float_top1(network: Network, count: int) -> float:
    """Top-1 in percent of the float network."""
    model, (images, labels) = _model(network), images_of(network, count, "test")
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(100)
        found = np.concatenate([model(part).argmax(1).numpy() for part in parts])
    return 100 * float((found == labels).mean())


@cache
def _model(network: Network) -> torch.nn.Module:
    return {"resnet8": resnet8, "resnet20": resnet20}[network](data_folder(network))


def images_of(
    network: Network, count: int, split: str
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """`count` images (N, C, H, W) and their labels."""
    read = raw_cifar10 if network == "resnet8" else cifar10
    return read(data_folder(network), count, split)


@cache
def quantized(network: Network, config: QuantConfig) -> QuantizedNetwork:
    """The network, calibrated on IMAGES training images."""
    images, _ = images_of(network, IMAGES, "train-20k")
    return quantize(_model(network), images, config)


@cache
def _top1(network: Network, config: QuantConfig, count: int) -> float:
    images, labels = images_of(network, count, "test")
    return evaluate(quantized(network, config), images, labels, batch=100).top1


def measure(case: Case, count: int) -> Row:
    """One row, on `count` test images."""
    config, name = case.config, case.network
    network = quantized(name, config)
    before = None
    if case.distillation is not None:
        before = _top1(name, config, count)
        images, _ = images_of(name, case.images, "train-20k")
        network = distill_network(_model(name), network, images, case.distillation)
    images, labels = images_of(name, count, "test")
    return {
        "network": name,
        "bits": f"{config.weight_bits}/{config.act_bits}",
        "block": config.block,
        "method": config.method,
        "distilled": None if case.distillation is None else case.images,
        "images": len(images),
        "float_top1": float_top1(name, count),
        "top1": evaluate(network, images, labels, batch=100).top1,
        "before": before,
        "least": case.least,
    }


def limit(row: Row) -> float | None:
    """The least top-1 in percent; None without a limit."""
    least = row["least"]
    return least if least is None or least > 0 else row["float_top1"] + least


def failed(row: Row) -> bool:
    """Whether the limit is missed, or learning cost accuracy."""
    least, before = limit(row), row["before"]
    if before is not None and row["top1"] < before:
        return True
    return least is not None and row["top1"] < least - 1e-9


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    least = limit(row)
    return [
        row["network"], row["bits"], str(row["block"]), row["method"],
        "" if row["distilled"] is None else f"{row['distilled']:,}",
        f"{row['float_top1']:.2f} %", f"{row['top1']:.2f} %",
        f"{row['float_top1'] - row['top1']:.2f}", "" if least is None else f"{least:.2f} %",
        "" if row["before"] is None else f"{row['before']:.2f} %",
    ]  # fmt: skip


def measured(parts: tuple[Part, ...], count: int) -> Iterator[Row]:
    """The rows of some parts, each shown on standard error when it is there."""
    status = Console(stderr=True)
    for case in (case for part in parts for case in CASES[part]):
        row = measure(case, count)
        status.print("  ".join(cells(row)))
        yield row


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, type=click.Choice(list(CASES)))
@click.option(
    "--images", default=CIFAR_TEST, show_default=True, type=click.IntRange(1),
    help="Test images; the limits are those of all.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(parts: tuple[Part, ...], images: int, as_json: bool) -> None:
    """Measure and print; fail at a missed limit."""
    show(
        list(measured(parts or tuple(CASES), images)),
        HEADINGS,
        cells,
        failed,
        title="CIFAR-10 in hardware mode",
        caption="bits: weights/activations. distilled: training images without labels that the "
        "network learned from the float network on. loss: points of top-1",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
