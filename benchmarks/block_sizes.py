"""The integer kernel against float for blocks of 8 to 128 channels, next to formula (6).

``python benchmarks/block_sizes.py`` times one 3×3 convolution, 256 to 256 channels at 14×14, with
4-bit weights and activations: float torch, the compiled loops of hardware mode, and the conversion
of its activations to block floating point, by turns on as many threads as torch has.

Formula (6) of DSConv's ICCV supplementary, for one multiply-accumulate (MAC), is
T_ds = T_int (1 + η) + T_FP / B. T_FP is the float convolution's time for a MAC, and η T_int the
conversion's. T_int is what the kernel takes beside its blocks: the constant of a straight line
through its times over 1 / B.
"""

from collections.abc import Callable
from statistics import linear_regression

import click
import numpy as np
import torch
from torch.nn import functional

from shiftcore.benchmarks.clock import medians
from shiftcore.benchmarks.report import Row, show
from shiftcore.golden.bfp import BlockFloat
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.quant.compiled import CompiledLayer, Source, encode_blocks, workers

CHANNELS, SIZE = 256, 14
BITS = 4
BLOCKS = (8, 16, 32, 64, 128)
HEADINGS = (
    "B", "kernel, ns/MAC", "float", "conversion, ns/activation", "ns/MAC", "η",
    "speed-up with conversion", "by (6)",
)  # fmt: skip


def measure(images: int, repetitions: int) -> list[Row]:
    """A row for each block size; times in ns."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    x = torch.from_numpy(random.normal(size=(images, CHANNELS, SIZE, SIZE)).astype(np.float32))
    # Images innermost, as the kernel leaves its results; float torch has its own order.
    innermost = x.relu().permute(1, 2, 3, 0).contiguous().permute(0, 3, 1, 2)
    filters = torch.from_numpy(weight)
    tasks: dict[str, Callable[[], object]] = {}
    tasks["float"] = lambda: functional.conv2d(x, filters, padding=1)
    with workers(torch.get_num_threads()) as threads, torch.inference_mode():
        for block in BLOCKS:
            kernel = VariableQuantizedKernel.quantize(weight, weight_bits=BITS, block=block)
            term = Term("x", kernel, padding=(1, 1, 1, 1))
            spec = BlockFloat(block, BITS)
            layer = CompiledLayer(Layer("conv", (term,), np.zeros(CHANNELS, np.float32)), [1])
            codes, fields, _ = encode_blocks(spec, innermost, threads)
            source = Source(codes, fields, [-127 - BITS + 1] * len(codes))
            tasks[f"kernel {block}"] = lambda layer=layer, source=source: layer.accumulate(
                [source], (SIZE, SIZE), threads
            )
            tasks[f"conversion {block}"] = lambda spec=spec: encode_blocks(spec, innermost, threads)
        seconds = medians(tasks, repetitions)
    macs, activations = x.numel() * CHANNELS * 9, x.numel()
    per_mac = {name: found / macs * 1e9 for name, found in seconds.items()}
    kernels = [per_mac[f"kernel {block}"] for block in BLOCKS]
    integer = linear_regression([1 / block for block in BLOCKS], kernels).intercept
    rows = []
    for block, kernel in zip(BLOCKS, kernels, strict=True):
        conversion = per_mac[f"conversion {block}"]
        rows.append(
            {
                "block": block,
                "kernel": kernel,
                "float": per_mac["float"],
                "conversion_per_activation": seconds[f"conversion {block}"] / activations * 1e9,
                "conversion": conversion,
                "integer": integer,
                "eta": conversion / integer,
                "speed_up": per_mac["float"] / (kernel + conversion),
                "formula": per_mac["float"] / (integer + conversion + per_mac["float"] / block),
            }
        )
    return rows


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    return [
        str(row["block"]), f"{row['kernel']:.4f}", f"{row['float']:.4f}",
        f"{row['conversion_per_activation']:.2f}", f"{row['conversion']:.5f}", f"{row['eta']:.3f}",
        f"{row['speed_up']:.2f}", f"{row['formula']:.2f}",
    ]  # fmt: skip


@click.command(help=__doc__)
@click.option("--images", default=16, show_default=True, type=click.IntRange(1))
@click.option("--repetitions", default=9, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(images: int, repetitions: int, as_json: bool) -> None:
    """Measure and print."""
    rows = measure(images, repetitions)
    show(
        rows,
        HEADINGS,
        cells,
        lambda row: False,
        title=f"Convolution {CHANNELS} to {CHANNELS}, 3×3 at {SIZE}×{SIZE}, {images} images, "
        f"{torch.get_num_threads()} threads",
        caption=f"T_int = {rows[0]['integer']:.4f} ns, T_FP = {rows[0]['float']:.4f} ns a MAC",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
