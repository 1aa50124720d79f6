"""Mixed precision: the front of ``shiftcore search-bits``, and its networks on all test images.

``python benchmarks/mixed.py`` chooses the bits of the CIFAR-10 ResNet-20 (needs SHIFTCORE_DATA) for
the array of ``examples/array16.toml`` widened to 8-bit weights, from 256 images without labels, and
measures every network of the front, and the uniform ones, on test images.

A uniform network is *beaten* if a mixed one of at most its size has a greater signal to noise ratio
(SQNR) of its scores on the test images, against the float network's. Fails if one of those between
the narrowest and the widest is not.
"""

import math
from dataclasses import replace
from functools import partial

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from shiftcore.benchmarks.models import TRAINED, hardware, load
from shiftcore.benchmarks.report import Row, show
from shiftcore.estimate.network import network_cycles
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.lower import lower
from shiftcore.quant.progress import progress_bars
from shiftcore.quant.search import Budget, Measured, Point, measure, search

HEADINGS = (
    "network",
    "bytes",
    "cycles",
    "m",
    "B",
    "b",
    "held out dB",
    "SQNR dB",
    "KL",
    "top-1 %",
    "beaten",
)
BITS = (2, 3, 4, 8)


def row(point: Point, found: Measured, labels: NDArray[np.int64]) -> Row:
    """What was measured of one network."""
    widths = list(point.weight_bits.values())
    return {
        "uniform": point.uniform,
        "bytes": point.bytes,
        "cycles": point.cycles,
        "act_bits": point.config.act_bits,
        "block": point.config.block,
        "weight_bits": widths,
        "held_out_loss": point.loss,
        "loss": found.loss,
        "divergence": found.divergence,
        "top1": 100 * float((found.classes == labels).mean()),
    }


def judge(rows: list[Row]) -> None:
    """Say of the uniform networks between the ends whether a mixed one beats them."""
    ends = {min(each["bytes"] for each in rows), max(each["bytes"] for each in rows)}
    for each in rows:
        if each["uniform"] and each["bytes"] not in ends:
            each["beaten"] = any(
                not other["uniform"]
                and other["bytes"] <= each["bytes"]
                and other["loss"] <= each["loss"]
                for other in rows
            )


def decibels(loss: float) -> str:
    """The signal to noise ratio of a loss."""
    return f"{-10 * math.log10(loss):.2f}" if loss else "exact"


def failed(row: Row) -> bool:
    """Whether a limit is missed."""
    return row.get("beaten") is False


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    widths = row["weight_bits"]
    return [
        "uniform" if row["uniform"] else "mixed",
        f"{row['bytes']:,}",
        f"{row['cycles']:,}",
        str(row["act_bits"]),
        str(row["block"]),
        str(widths[0]) if row["uniform"] else "".join(map(str, widths)),
        decibels(row["held_out_loss"]),
        decibels(row["loss"]),
        f"{row['divergence']:.4f}",
        f"{row['top1']:.2f}",
        {None: "", True: "yes", False: "no"}[row.get("beaten")],
    ]


@click.command(help=__doc__)
@click.option("--network", default="resnet20", show_default=True, type=click.Choice(list(TRAINED)))
@click.option("--act-bits", default=8, show_default=True, type=click.IntRange(2, 8), help="m")
@click.option("--points", default=8, show_default=True, type=click.IntRange(2))
@click.option("--images", default=10_000, show_default=True, help="Test images, at most.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(network: str, act_bits: int, points: int, images: int, as_json: bool) -> None:
    """Search, measure and print; fail if mixed precision gains nothing."""
    model, calibration, test = load(network)
    assert test is not None
    references = lower(as_graph(model, calibration))
    plain = quantize(model, calibration[:1], QuantConfig(method="l2"))
    config = replace(hardware(plain), weight_bits=max(BITS))
    with progress_bars(Console(stderr=True)) as progress:
        found = search(
            model,
            calibration,
            Budget(),
            weight_bits=BITS,
            act_bits=(act_bits,),
            blocks=(config.rows,),
            cycles=partial(network_cycles, config),
            points=points,
            progress=progress,
        )
        rows = []
        for done, point in enumerate(found.points):
            progress("test images", done, len(found.points))
            result = measure(point.network, references, test[0][:images])
            rows.append(row(point, result, test[1][:images]))
    judge(rows)
    show(
        rows,
        HEADINGS,
        cells,
        failed,
        title=f"{network}, {min(images, len(test[0])):,} test images",
        caption="KL: in nats an image, from the float network",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
