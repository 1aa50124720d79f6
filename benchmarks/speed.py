"""Speed of hardware mode and of conversion: quantized and float torch by turns, in one run.

``python benchmarks/speed.py`` runs the CIFAR-10 ResNet-20 (needs SHIFTCORE_DATA) with 4-bit weights
and activations: the float network in both memory formats, hardware mode with the compiled loops and
with torch's operations, on as many threads as torch has; where there is CUDA, the float network and
torch's hardware mode there too. Each takes the batch that is fastest for it. The scores of hardware
mode must be equal, bit for bit. Then it converts ResNet-50 with random weights, its export and the
calibration with one image included.

Fails if the compiled mode reaches less than 1/4 and the other less than 1/10 of the float network's
images per second on the CPU (medians), or if the conversion takes 10 s.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import click
import torch

from shiftcore.benchmarks.clock import medians
from shiftcore.benchmarks.models import load
from shiftcore.benchmarks.report import Row, show
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork

COMPILED, TORCH = 1 / 4, 1 / 10
"""least images per second, of the float network's"""
SECONDS = 10
"""less than that for the conversion"""
BATCHES = {"cpu": (16, 32, 64, 128), "cuda": (256, 512, 1024, 2048)}
HEADINGS = ("what", "batch", "measured", "of float", "limit")

Scores = Callable[[torch.Tensor], torch.Tensor]


def classify(mode: Scores, images: torch.Tensor, batch: int) -> torch.Tensor:
    """Scores of all images."""
    with torch.inference_mode():
        parts = [mode(part).flatten(1).cpu() for part in images.split(batch)]
    return torch.cat(parts)


def fastest(mode: Scores, images: torch.Tensor, batches: Sequence[int]) -> int:
    """The batch that is best for the mode."""
    tasks = {str(n): partial(classify, mode, images[: batches[-1]], n) for n in batches}
    seconds = medians(tasks, 1)
    return int(min(seconds, key=lambda name: seconds[name]))


def float_modes(network: torch.nn.Module, device: str) -> dict[str, Scores]:
    """The float network on `device`, in both memory formats."""
    modes = {}
    for name, layout in (("", torch.contiguous_format), (", NHWC", torch.channels_last)):
        placed = deepcopy(network).to(device)
        for parameter in placed.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        modes[f"float torch{name}"] = lambda x, placed=placed, layout=layout: placed(
            x.to(device).contiguous(memory_format=layout)
        )
    return modes


def inference(images: int, repetitions: int) -> list[Row]:
    """A row for every way to run ResNet-20."""
    model, calibration, test = load("resnet20")
    assert test is not None
    network = quantize(model, calibration, QuantConfig(method="l2"))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rows = []
    for device in devices:
        x = torch.from_numpy(test[0][: images * BATCHES[device][0] // BATCHES["cpu"][0]])
        modes = float_modes(model, device)
        if device == "cpu":
            modes["hardware mode, compiled"] = HardwareNetwork(network)
        modes["hardware mode, torch"] = HardwareNetwork(network, device, compiled=False)
        batches = {name: fastest(mode, x, BATCHES[device]) for name, mode in modes.items()}
        tasks = {name: partial(classify, mode, x, batches[name]) for name, mode in modes.items()}
        seconds = medians(tasks, repetitions)
        base = min(found for name, found in seconds.items() if name.startswith("float"))
        limits = {"hardware mode, compiled": COMPILED, "hardware mode, torch": TORCH}
        rows += [
            {
                "what": f"{name} ({device})",
                "batch": batches[name],
                "images_per_s": len(x) / found,
                "of_float": base / found,
                "least": limits.get(name) if device == "cpu" else None,
            }
            for name, found in seconds.items()
        ]
        bits = [tasks[name]() for name in modes if name.startswith("hardware")]
        if not all(torch.equal(bits[0], other) for other in bits):
            raise click.ClickException("the scores of hardware mode differ")
    return rows


def conversion() -> Row:
    """The row of ResNet-50."""
    model, calibration, _ = load("resnet50")
    begin = time.perf_counter()
    quantize(model, calibration[:1], QuantConfig(method="l2"))
    return {
        "what": "conversion of ResNet-50",
        "seconds": time.perf_counter() - begin,
        "below_s": SECONDS,
    }


def failed(row: Row) -> bool:
    """Whether a limit is missed."""
    if "seconds" in row:
        return row["seconds"] >= row["below_s"]
    return row["least"] is not None and row["of_float"] < row["least"]


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    if "seconds" in row:
        return [row["what"], "", f"{row['seconds']:.1f} s", "", f"< {row['below_s']} s"]
    limit = "" if row["least"] is None else f"≥ {row['least']:.2f}"
    speed = f"{row['images_per_s']:,.0f} images/s"
    return [row["what"], str(row["batch"]), speed, f"{row['of_float']:.2f}", limit]


@click.command(help=__doc__)
@click.option(
    "--images", default=256, show_default=True, type=click.IntRange(BATCHES["cpu"][-1], 625),
    help="Test images on the CPU; with CUDA 16 times as many.",
)  # fmt: skip
@click.option("--repetitions", default=5, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(images: int, repetitions: int, as_json: bool) -> None:
    """Measure and print; fail where a limit is missed."""
    rows: Sequence[Row] = [*inference(images, repetitions), conversion()]
    show(
        rows,
        HEADINGS,
        cells,
        failed,
        title=f"Speed, {torch.get_num_threads()} threads",
        caption="ResNet-20 with 4-bit weights and activations. of float: of the faster float row",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
