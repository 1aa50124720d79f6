"""The integer kernel against float for blocks of 8 to 128 channels, next to formula (6).

``python benchmarks/block_sizes.py`` times one 3×3 convolution, 256 to 256 channels at 14×14, with
4-bit weights and activations: float torch, the compiled loops of hardware mode, and the conversion
of its activations to block floating point, by turns on as many threads as torch has.

Formula (6) of DSConv's ICCV supplementary, for one multiply-accumulate (MAC), is
T_ds = T_int (1 + η) + T_FP / B. T_FP is the float convolution's time for a MAC, and η T_int the
conversion's. T_int comes from the kernel with one block of all channels, which is no row of the
table: its time for a MAC, less the one block product in so many MACs.

Times have no limit. But it counts what the kernel was given to multiply, and fails where that is
not what the formula counts: Ci Co K² MACs and ⌈Ci/B⌉ Co K² block products a pixel.
"""

from collections.abc import Callable

import click
import numpy as np
import torch
from torch.nn import functional

from shiftcore.benchmarks.clock import medians
from shiftcore.benchmarks.report import Row, show
from shiftcore.golden.bfp import BlockFloat
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.quant.accounting import KernelShape
from shiftcore.quant.compiled import CompiledLayer, Source, encode_blocks, workers
from shiftcore.quant.hardware_kernels import FILTERS

CHANNELS, SIZE = 256, 14
BITS = 4
BLOCKS = (8, 16, 32, 64, 128)
HEADINGS = (
    "B", "MACs a pixel", "block products", "kernel, ns/MAC", "float",
    "conversion, ns/activation", "ns/MAC", "η", "speed-up with conversion", "by (6)",
)  # fmt: skip


def operations(layer: CompiledLayer) -> tuple[int, int]:
    """MACs and block products a pixel that the kernel does, counted in its list of steps."""
    (term,) = layer.terms
    return int(term.steps[:, 4].sum()) * FILTERS, len(term.steps) * FILTERS


def failed(row: Row) -> bool:
    """Whether the kernel multiplies more or less often than the formula counts."""
    shape = KernelShape("conv", row["channels"], row["channels"], taps=9)
    return (row["macs"], row["products"]) != (shape.macs, shape.products(row["block"]))


def measure(images: int, repetitions: int) -> list[Row]:
    """A row for each block size; times in ns."""
    random = np.random.default_rng(0)
    # No code is 0: the kernel would leave it out at the ends of a block.
    weight = random.uniform(0.5, 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    weight *= random.choice([-1, 1], weight.shape)
    x = torch.from_numpy(random.normal(size=(images, CHANNELS, SIZE, SIZE)).astype(np.float32))
    # Images innermost, as the kernel leaves its results; float torch has its own order.
    innermost = x.relu().permute(1, 2, 3, 0).contiguous().permute(0, 3, 1, 2)
    filters = torch.from_numpy(weight)
    tasks: dict[str, Callable[[], object]] = {}
    tasks["float"] = lambda: functional.conv2d(x, filters, padding=1)
    counted: dict[int, tuple[int, int]] = {}
    with workers(torch.get_num_threads()) as threads, torch.inference_mode():
        for block in (*BLOCKS, CHANNELS):
            kernel = VariableQuantizedKernel.quantize(weight, weight_bits=BITS, block=block)
            term = Term("x", kernel, padding=(1, 1, 1, 1))
            spec = BlockFloat(block, BITS)
            layer = CompiledLayer(Layer("conv", (term,), np.zeros(CHANNELS, np.float32)), [1])
            counted[block] = operations(layer)
            codes, fields, _ = encode_blocks(spec, innermost, threads)
            source = Source(codes, fields, [-127 - BITS + 1] * len(codes))
            tasks[f"kernel {block}"] = lambda layer=layer, source=source: layer.accumulate(
                [source], (SIZE, SIZE), threads
            )
            tasks[f"conversion {block}"] = lambda spec=spec: encode_blocks(spec, innermost, threads)
        seconds = medians(tasks, repetitions)
    macs, activations = x.numel() * CHANNELS * 9, x.numel()
    per_mac = {name: found / macs * 1e9 for name, found in seconds.items()}
    integer = per_mac[f"kernel {CHANNELS}"] - per_mac["float"] / CHANNELS
    rows = []
    for block in BLOCKS:
        kernel, conversion = per_mac[f"kernel {block}"], per_mac[f"conversion {block}"]
        products = -(-CHANNELS // block) / CHANNELS  # of a MAC
        rows.append(
            {
                "block": block,
                "channels": CHANNELS,
                "macs": counted[block][0],
                "products": counted[block][1],
                "kernel": kernel,
                "float": per_mac["float"],
                "conversion_per_activation": seconds[f"conversion {block}"] / activations * 1e9,
                "conversion": conversion,
                "integer": integer,
                "eta": conversion / integer,
                "speed_up": per_mac["float"] / (kernel + conversion),
                "formula": per_mac["float"] / (integer + conversion + products * per_mac["float"]),
            }
        )
    return rows


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""
    return [
        str(row["block"]), f"{row['macs']:,}", f"{row['products']:,}", f"{row['kernel']:.4f}",
        f"{row['float']:.4f}", f"{row['conversion_per_activation']:.2f}",
        f"{row['conversion']:.5f}", f"{row['eta']:.3f}", f"{row['speed_up']:.2f}",
        f"{row['formula']:.2f}",
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
        failed,
        title=f"Convolution {CHANNELS} to {CHANNELS}, 3×3 at {SIZE}×{SIZE}, {images} images, "
        f"{torch.get_num_threads()} threads",
        caption=f"T_int = {rows[0]['integer']:.4f} ns, T_FP = {rows[0]['float']:.4f} ns a MAC",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
