"""What the choice of codes and scales costs: ``python benchmarks/reconstruction.py``.

Two tables. One is the relative squared error of Gaussian weight blocks, for every recipe and
method, beside published measurements; it fails where the joint search, with and without a bias, is
not as good as what it replaces, to the digits that are printed (:data:`REPLACED`). The other
compares, layer by layer, the KL scales of ResNet-20 with those of least squares; it needs
SHIFTCORE_DATA.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from torch import nn

from shiftcore.benchmarks.models import DATA
from shiftcore.benchmarks.report import Row, show
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.golden.floats import FP32
from shiftcore.golden.vqk import Recipe
from shiftcore.quant.scales import Method, encode, encode_with_bias, kl_derivatives, kl_scale

__all__ = ["agreement", "errors", "main"]

PUBLISHED = {
    # (block, bits): recipes P, O and R, R with a bias, best clip by search
    (8, 2): (0.191, 0.143, 0.072, 0.059, 0.068),
    (8, 3): (0.0253, 0.0205, 0.0159, 0.0135, 0.0142),
    (8, 4): (0.0047, 0.0042, 0.0038, 0.0032, 0.0032),
    (32, 2): (0.323, 0.266, 0.122, 0.117, 0.110),
    (32, 3): (0.0473, 0.0398, 0.0290, 0.0281, 0.0263),
    (32, 4): (0.0091, 0.0081, 0.0071, 0.0069, 0.0066),
    (128, 2): (0.452, 0.396, 0.161, 0.160, 0.132),
    (128, 3): (0.0693, 0.0605, 0.0416, 0.0413, 0.0345),
    (128, 4): (0.0135, 0.0123, 0.0105, 0.0104, 0.0093),
}
COLUMNS = ("P", "O", "R", "R + bias", "best clip")
REPLACED = {"joint": ("R", "best clip"), "joint + bias": ("R + bias",)}
"""of ours, the published ones that it must not be above"""
OURS: dict[str, tuple[Method, Recipe, bool]] = {
    "P": ("l2", "P", False),
    "O": ("l2", "O", False),
    "R": ("l2", "R", False),
    "R KL": ("kl", "R", False),
    "joint": ("joint", "R", False),
    "R + bias": ("l2", "R", True),
    "joint + bias": ("joint", "R", True),
}
SLOPE = 1e-9
"""of the divergence, at most, on every block"""


def errors(block: int, bits: int, weights: int) -> Row:
    """Relative squared errors of `weights` Gaussian weights, by the names of :data:`OURS`.

    Their "deviations" are standard errors, since the weights are a sample.
    """
    weight = np.random.default_rng(0).normal(size=(weights // block, block, 1, 1))
    energy = (weight**2).sum((1, 2, 3))
    row: Row = {"block": block, "bits": bits, "deviations": {}}
    for name, (method, recipe, biased) in OURS.items():
        kernel, bias = encode_with_bias(
            weight,
            weight_bits=bits,
            block=block,
            method=method,
            recipe=recipe,
            scale_format=FP32,
            biased=biased,
        )
        found = kernel.reconstruct() + kernel.blocks.expand(bias)
        error = ((found - weight) ** 2).sum((1, 2, 3))
        row[name] = float(error.sum() / energy.sum())
        spread = np.std(error - row[name] * energy) / np.sqrt(energy.size)
        row["deviations"][name] = float(spread / energy.mean())
    return row


def agreement(folder: Path, bits: int, block: int) -> Iterator[Row]:
    """How far the KL scales of every convolution of ResNet-20 are from those of least squares."""
    for name, layer in resnet20(folder).named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        weight = layer.weight.detach().double().numpy()
        kernel = encode(weight, weight_bits=bits, block=block, scale_format=FP32)
        lanes, codes = kernel.blocks.lanes(weight), kernel.blocks.lanes(kernel.codes)
        filled = np.broadcast_to(kernel.blocks.filled(len(weight)), lanes.shape)
        found = kl_scale(lanes, codes, filled)
        slope, _ = kl_derivatives(found, lanes, codes, filled)
        difference = np.abs(found - kernel.scales)
        relative = difference[kernel.scales != 0] / np.abs(kernel.scales[kernel.scales != 0])
        yield {
            "layer": name,
            "blocks": found.size,
            "slope": float(np.abs(slope).max()),
            "same": float((difference < 5e-4).mean()),
            "median": float(np.median(relative)),
            "largest": float(difference.max()),
        }


def above(row: Row) -> bool:
    """Whether one of ours is above a published figure by more than half its last digit and two
    standard errors."""
    published = dict(zip(COLUMNS, PUBLISHED[row["block"], row["bits"]], strict=True))
    half = 0.0005 if row["bits"] == 2 else 0.00005
    return any(
        row[own] - 2 * row["deviations"][own] > published[name] + half
        for own, names in REPLACED.items()
        for name in names
    )


def _is_steep(row: Row) -> bool:
    return row["slope"] >= SLOPE


@click.command()
@click.option("--weights", default=1 << 20, show_default=True, help="Gaussian weights of a cell.")
@click.option(
    "--bits", type=click.IntRange(2, 8), default=3, show_default=True, help="of the KL table."
)
@click.option(
    "--block", type=click.IntRange(1), default=32, show_default=True, help="of the KL table."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(weights: int, bits: int, block: int, as_json: bool) -> None:
    """Print what the choice of codes and scales costs."""
    folder = os.environ.get(DATA)
    scales = list(agreement(Path(folder), bits, block)) if folder else []
    if not folder:
        click.echo(f"{DATA} is not set: no comparison of KL with L2", err=True)
    gaussian = [errors(block, bits, weights) for block, bits in PUBLISHED]
    if as_json:
        click.echo(json.dumps({"gaussian": gaussian, "kl": scales}))
        raise SystemExit(any(map(above, gaussian)) or any(map(_is_steep, scales)))
    if scales:
        show(
            scales,
            ["layer", "blocks", "largest |L'|", "equal to 3 decimals", "median", "largest"],
            lambda row: [
                row["layer"],
                str(row["blocks"]),
                f"{row['slope']:.1e}",
                f"{row['same']:.1%}",
                f"{row['median']:.2%}",
                f"{row['largest']:.4f}",
            ],
            _is_steep,
            title=f"KL against L2 scales of ResNet-20, {bits} bits, B = {block}",
            caption="median: relative difference; largest: absolute difference",
            as_json=False,
        )
    show(
        gaussian,
        ["B", "b", *OURS, *(f"published {name}" for name in COLUMNS)],
        lambda row: [
            str(row["block"]),
            str(row["bits"]),
            *(f"{row[name]:.4f}" for name in OURS),
            *map(str, PUBLISHED[row["block"], row["bits"]]),
        ],
        above,
        title=f"Relative squared error of {weights} Gaussian weights",
        caption="the same seed for all; published figures are of another sample",
        as_json=False,
    )


if __name__ == "__main__":
    main()
