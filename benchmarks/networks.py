"""Accuracy of trained networks, and their images through the RTL, every stored word compared.

``python benchmarks/networks.py`` takes the digits network of the demo, MLPerf Tiny's ResNet-8 and
the CIFAR-10 ResNet-20; the last two need SHIFTCORE_DATA, without it only the first one runs. Each
is quantized to 4-bit weights and activations as ``shiftcore quantize`` does it, on 256 training
images without labels, and compiled for ``examples/array16.toml``.

Top-1 is over all test images. The one in 4 bits is the golden machine's, which computes what
hardware mode does, bit for bit, and here is faster. On the first 100 images hardware mode, the
golden machine and the RTL are compared in every stored tensor, their classes image by image, and
the cycles with the prediction. Any difference fails.
"""

import os
from collections.abc import Iterator

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from shiftcore.benchmarks.models import (
    DATA,
    GAP,
    LATENCY,
    TRAINED,
    float_classes,
    hardware,
    load,
)
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.golden.compare import difference
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.program import Program, scores_of
from shiftcore.quant.convert import quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.sim.accelerate import run_program

BATCH = 50
HEADINGS = (
    "network", "test images", "top-1 float", "4 bits", "RTL images", "top-1", "same class",
    "cycles", "predicted", "compared", "mismatches", "hardware mode",
)  # fmt: skip

Images = NDArray[np.float32]


def batches(images: Images, bar: Progress, what: str) -> Iterator[Images]:
    """Some images after the other, with a progress bar."""
    for first in bar.track(range(0, len(images), BATCH), description=what):
        yield images[first : first + BATCH]


def golden_classes(
    program: Program, network: QuantizedNetwork, images: Images, bar: Progress
) -> NDArray[np.int64]:
    """Classes (N,) that the golden machine finds."""
    machine, found = Machine(program), []
    for x in batches(images, bar, "golden machine"):
        outputs = machine.run(program.encode_input(network.encode_input(x))).outputs
        found.append(scores_of(program.decode_output(outputs)).argmax(1))
    return np.concatenate(found)


def hardware_mode_difference(
    program: Program, network: QuantizedNetwork, images: Images, bar: Progress
) -> str | None:
    """Where torch's hardware mode and the golden machine differ first; None if nowhere."""
    machine, in_torch = Machine(program), HardwareNetwork(network)
    for x in batches(images, bar, "hardware mode"):
        run = machine.run(program.encode_input(network.encode_input(x)), trace=True)
        found = difference(program, run.trace, in_torch.compute(x))
        if found is not None:
            return found
    return None


def measure(name: str, count: int, bar: Progress) -> Row:
    """One row of the table; `count` images go through the RTL."""
    model, calibration, test = load(name)
    assert test is not None, name
    images, labels = test
    network = quantize(model, calibration)
    program = compile_network(network, hardware(network))
    floating = float_classes(model, images)
    golden = golden_classes(program, network, images, bar)
    chosen = images[:count]
    unequal = hardware_mode_difference(program, network, chosen, bar)
    task = bar.add_task("RTL", total=len(chosen))
    run = run_program(
        program, program.encode_input(network.encode_input(chosen)), latency=LATENCY, gap=GAP,
        progress=lambda done: bar.update(task, completed=done),
    )  # fmt: skip
    found = scores_of(program.decode_output(run.outputs)).argmax(1)
    ran = len(found)
    return {
        "network": name,
        "images": len(images),
        "float_top1": 100 * float((floating == labels).mean()),
        "top1": 100 * float((golden == labels).mean()),
        "rtl_images": ran,
        "rtl_top1": 100 * float((found == labels[:ran]).mean()),
        "same_class": int((found == golden[:ran]).sum()),
        "cycles": run.cycles,
        "predicted": predict(program, latency=LATENCY, gap=GAP).cycles,
        "compared": run.compared,
        "mismatches": run.mismatches,
        "first_mismatch": None if run.first is None else str(run.first),
        "hardware_mode": unequal,
        "sim_cycles_per_s": sum(run.cycles) / run.seconds,
    }


def failed(row: Row) -> bool:
    """Whether anything differs that must be equal."""
    equal = row["same_class"] == row["rtl_images"] and set(row["cycles"]) == {row["predicted"]}
    return not equal or row["mismatches"] > 0 or row["hardware_mode"] is not None


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    cycles = " to ".join(f"{n:,}" for n in sorted({min(row["cycles"]), max(row["cycles"])}))
    return [
        row["network"], f"{row['images']:,}", f"{row['float_top1']:.2f} %", f"{row['top1']:.2f} %",
        str(row["rtl_images"]), f"{row['rtl_top1']:.2f} %", str(row["same_class"]), cycles,
        f"{row['predicted']:,}", f"{row['compared']:,}", str(row["mismatches"]),
        row["hardware_mode"] or "equal",
    ]  # fmt: skip


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice(list(TRAINED)))
@click.option(
    "--images", default=100, show_default=True, type=click.IntRange(1),
    help="Images of each network that go through the RTL.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(names: tuple[str, ...], images: int, as_json: bool) -> None:
    """Measure and print; fail at a difference."""
    status = Console(stderr=True)
    if not names:
        names = tuple(TRAINED)
        if not os.environ.get(DATA):
            status.print(f"{DATA} is not set: only {names[0]}, without {', '.join(names[1:])}")
            names = names[:1]
    rows = []
    for name in names:
        with Progress(console=status, transient=True) as bar:
            bar.console.print(name)
            rows.append(measure(name, images, bar))
    show(
        rows,
        HEADINGS,
        cells,
        failed,
        title="Trained networks, 16×16, 4-bit weights and activations",
        caption="4 bits: golden machine, all test images. hardware mode: torch against the golden "
        "machine, every tensor of the RTL's images. cycles: of each image",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
