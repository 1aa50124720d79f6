"""Fixed-point accumulators beside float32 on CIFAR-10, in hardware mode at 4/4 bits and B = 16.

``python benchmarks/accumulators.py`` needs SHIFTCORE_DATA. ResNet-20 and MLPerf Tiny's ResNet-8 are
quantized once; every width gets the exponents of its grids from the same 1,024 training images,
with the default margin. Top-1 and saturations are those of whole networks on the test images. The
share of stored values that differ is found layer by layer: each layer with fixed-point accumulators
gets the inputs that it has in the float32 network.

It fails where top-1 at 32 bits is more than 0.1 points from that of float32, or a sum saturates
there.
"""

from collections import Counter

import click
import torch

from shiftcore.benchmarks.accuracy import IMAGES, Network, images_of, quantized
from shiftcore.benchmarks.models import CIFAR_TEST
from shiftcore.benchmarks.report import Row, show
from shiftcore.golden.fixed import FixedFormat
from shiftcore.quant.accumulators import fix_accumulators
from shiftcore.quant.compiled import Workers, workers
from shiftcore.quant.convert import QuantConfig
from shiftcore.quant.hardware import HardwareLayer, HardwareNetwork, Result, exact_arithmetic

WIDTHS = (20, 24, 28, 32, 40)
CHECKED = 32
"""width whose accuracy is checked"""
CLOSEST = 0.1
"""points of top-1 that it may be away from float32"""
BATCH = 100
HEADINGS = (
    "network", "accumulator", "exponents", "top-1", "difference", "saturated sums",
    "stored values that differ",
)  # fmt: skip


def different_values(
    layers: list[HardwareLayer], results: dict[str, Result], pool: Workers | None
) -> tuple[int, int]:
    """How many stored values of layers differ from `results`, which they read too; of how many."""
    tensors = {name: r.stored for name, r in results.items() if r.stored is not None}
    differing = values = 0
    for layer in layers:
        if layer.layer.name in tensors:
            found, wanted = layer.result(tensors, pool).stored, tensors[layer.layer.name]
            assert found is not None
            differing += int((found.decode() != wanted.decode()).sum())
            values += wanted.decode().numel()
    return differing, values


def measure(name: Network, count: int) -> list[Row]:
    """The rows of a network, float32 first, on `count` test images."""
    plain = quantized(name, QuantConfig())
    calibration, _ = images_of(name, IMAGES, "train-20k")
    networks = {"float32": plain}
    for bits in WIDTHS:
        networks[f"fixed{bits}"] = fix_accumulators(plain, calibration, FixedFormat(bits))
    modes = {form: HardwareNetwork(network) for form, network in networks.items()}
    planes = plain.input.planes
    layers = {
        form: [HardwareLayer(layer, planes) for layer in network.layers]
        for form, network in networks.items()
        if network is not plain
    }
    images, labels = images_of(name, count, "test")
    right, saturated, differing, values = (Counter[str]() for _ in range(4))
    with exact_arithmetic(), workers(torch.get_num_threads()) as pool:
        for first in range(0, len(images), BATCH):
            x, y = (part[first : first + BATCH] for part in (images, labels))
            wanted = modes["float32"].results(torch.from_numpy(x))
            for form, mode in modes.items():
                results = mode.results(torch.from_numpy(x)) if form in layers else wanted
                scores = results[plain.layers[-1].name].raw[:, :, 0, 0]
                right[form] += int((scores.argmax(0).numpy() == y).sum())
                saturated[form] += sum(result.saturated for result in results.values())
                if form in layers:
                    found = different_values(layers[form], wanted, pool)
                    differing[form] += found[0]
                    values[form] += found[1]
    rows = []
    for form, network in networks.items():
        exponents = [layer.grid.exponent for layer in network.layers if layer.grid is not None]
        rows.append(
            {
                "network": name,
                "accumulator": form,
                "images": len(images),
                "exponents": [min(exponents), max(exponents)] if exponents else None,
                "right": right[form],
                "right_float32": right["float32"],
                "top1": 100 * right[form] / len(images),
                "difference": 100 * (right[form] - right["float32"]) / len(images),
                "saturated_sums": saturated[form],
                "differing": differing[form] / values[form] if values[form] else None,
            }
        )
    return rows


def failed(row: Row) -> bool:
    """Whether a sum saturated, or the accuracy of the checked width is too far from float32's."""
    far = 100 * abs(row["right"] - row["right_float32"]) > CLOSEST * row["images"]
    return row["saturated_sums"] > 0 or (far and row["accumulator"] == f"fixed{CHECKED}")


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    exponents, share = row["exponents"], row["differing"]
    return [
        row["network"], row["accumulator"],
        "" if exponents is None else f"{exponents[0]} to {exponents[1]}",
        f"{row['top1']:.2f} %", "" if share is None else f"{row['difference']:+.2f}",
        "" if share is None else f"{row['saturated_sums']:,}",
        "" if share is None else f"{100 * share:.2g} %",
    ]  # fmt: skip


@click.command(help=__doc__)
@click.argument("networks", nargs=-1, type=click.Choice(["resnet8", "resnet20"]))
@click.option(
    "--images", default=CIFAR_TEST, show_default=True, type=click.IntRange(1),
    help="Test images; the limits are those of all.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(networks: tuple[Network, ...], images: int, as_json: bool) -> None:
    """Measure and print; fail at a missed limit."""
    show(
        [row for name in networks or ("resnet8", "resnet20") for row in measure(name, images)],
        HEADINGS,
        cells,
        failed,
        title="Accumulators on CIFAR-10 in hardware mode, 4/4 bits, B = 16",
        caption="exponents: of the layers' grids. difference: points of top-1 from float32. stored "
        "values that differ: of layers that read what the float32 network stored",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
