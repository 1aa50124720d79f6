"""The tables of the DSConv paper beside what follows from the layer shapes.

``python benchmarks/paper.py`` prints every table of arXiv 1901.01928 v1 and every worked example
that arithmetic reaches: the printed figure, the recomputed ones, and which way of counting gives
the printed one, if any does. Shapes are those of the networks in ``examples/zoo``, without weights.
``--write`` puts the tables into docs/paper.md.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import floor
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from shiftcore.benchmarks.module_shapes import module_kernels
from shiftcore.benchmarks.tables import filled
from shiftcore.examples.zoo.mobile import MobileNetV2
from shiftcore.examples.zoo.plain import AlexNet
from shiftcore.examples.zoo.resnet import resnet34, resnet50
from shiftcore.quant.accounting import CONVENTIONS, KernelShape, largest_int_time, speedup
from shiftcore.quant.documents import markdown_rows

__all__ = ["DOCUMENT", "TABLES", "Network", "PaperTable", "network", "parts", "reproduced"]

DOCUMENT = Path(__file__).parents[1] / "docs" / "paper.md"
SIZE = 224
"""of the images of ImageNet"""
MEGA, MEBI = 10**6, 1 << 20
V1, NO_CDS, FP32, FP16, CODES = CONVENTIONS.values()


@dataclass(frozen=True)
class PaperTable:
    """A table of text; its first column is aligned to the left."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Network:
    """A network of the paper: its kernels in order, and the number of all its parameters."""

    kernels: tuple[KernelShape, ...]
    parameters: int

    @property
    def convolutions(self) -> tuple[KernelShape, ...]:
        return tuple(k for k in self.kernels if not k.name.startswith(("linear", "classifier")))

    @property
    def classifier(self) -> tuple[KernelShape, ...]:
        return tuple(k for k in self.kernels if k not in self.convolutions)

    @property
    def macs(self) -> int:
        """Of the convolutions, for one image."""
        return sum(kernel.macs for kernel in self.convolutions)

    def float_multiplies(self, block: int) -> int:
        """Block products of the convolutions, for one image."""
        return sum(kernel.float_multiplies(block) for kernel in self.convolutions)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "AlexNet": lambda: AlexNet(groups=1),
    "ResNet34": resnet34,
    "ResNet50": resnet50,
    "MobileNetV2": MobileNetV2,
}


@cache
def network(name: str) -> Network:
    """One of :data:`NETWORKS`, from its definition."""
    with torch.device("meta"):
        model = NETWORKS[name]()
    return Network(
        module_kernels(model, (3, SIZE, SIZE)), sum(value.numel() for value in model.parameters())
    )


def reproduced(printed: str, candidates: Mapping[str, float]) -> str:
    """The labels of the candidates that the printed figure is the rounding of.

    Without any, those that it is cut off from; without any, the nearest one.
    """
    digits = len(printed.partition(".")[2])
    unit = 10**digits
    rounded = [label for label, value in candidates.items() if f"{value:.{digits}f}" == printed]
    if rounded:
        return "; ".join(rounded)
    cut = [
        x for x, value in candidates.items() if floor(value * unit) == round(float(printed) * unit)
    ]
    if cut:
        return "; ".join(f"{label}, cut off" for label in cut)
    nearest = min(candidates, key=lambda label: abs(candidates[label] - float(printed)))
    return f"none (nearest: {nearest}, {candidates[nearest]:.{max(digits, 2)}f})"


def _percents(kernels: Sequence[KernelShape], bits: int, block: int) -> dict[str, float]:
    """Percent of float32 by every convention."""
    return {c.label: 100 * c.ratio(kernels, bits, block) for c in CONVENTIONS.values()}


def printed_formula_7(kernel: KernelShape, bits: int, block: int) -> float:
    """Percent of float32 by v1 (7) as it is printed, without the factor Ci of the codes' term."""
    missing = bits * (kernel.weights - kernel.filters * kernel.taps)
    return 100 * (V1.bits(kernel, bits, block) - missing) / (32 * kernel.weights)


def worked() -> PaperTable:
    """Sizes in the running text of v1."""
    rows = []
    for filters, depth, bits, block, printed in (
        (128, 128, 2, 64, "7"), (256, 256, 6, 128, "20"), (256, 256, 3, 128, "11"),
    ):  # fmt: skip
        kernel = KernelShape("", filters, depth, taps=9)
        found = _percents([kernel], bits, block)
        rows.append(
            (
                f"({filters}, {depth}, 3, 3), b = {bits}, B = {block}", printed,
                f"{printed_formula_7(kernel, bits, block):.2f}",
                *(f"{found[c.label]:.2f}" for c in (V1, NO_CDS, FP32, FP16)),
                reproduced(printed, found),
            )
        )  # fmt: skip
    headings = (
        "kernel", "paper, %", "(7) as printed",
        *(c.label for c in (V1, NO_CDS, FP32, FP16)), "reproduced by",
    )  # fmt: skip
    return PaperTable("Worked examples: size in % of float32", headings, rows)


BLOCKS = (128, 32, 8)
TABLE_1 = {
    ("ResNet50", "no"): {4: (72.8, 74.4, 75.4), 3: (34.9, 58.9, 71.4), 2: (0.1, 0.2, 3.3)},
    ("ResNet50", "yes"): {4: (75.6, 75.3, 75.6), 3: (74.6, 75.2, 75.2), 2: (25.1, 67.4, 74.0)},
    ("ResNet34", "no"): {4: (70.4, 71.3, 72.7), 3: (46.6, 62.0, 69.2), 2: (0.1, 0.2, 14.4)},
    ("ResNet34", "yes"): {4: (72.7, 72.6, 72.2), 3: (72.2, 72.6, 72.3), 2: (43.4, 66.0, 71.5)},
}
"""Top-1 in % at B = 128, 32 and 8, by network, whether it was fine-tuned, and bits."""
TABLE_1_FLOAT = {"ResNet50": 76.1, "ResNet34": 73.1}


def table_1() -> PaperTable:
    """Top-1 on ImageNet, and what the text says about it."""
    rows = [
        (
            f"{name}, b = {bits}", tuned, *map(str, figures),
            f"{TABLE_1_FLOAT[name] - min(figures):.1f}",
            "yes" if list(figures) == sorted(figures) else "no",
        )
        for (name, tuned), by_bits in TABLE_1.items()
        for bits, figures in by_bits.items()
    ]  # fmt: skip
    headings = (
        "network", "fine-tuned", *(f"B = {block}" for block in BLOCKS), "largest loss",
        "rises as B shrinks",
    )  # fmt: skip
    return PaperTable("Table 1: top-1 in %, as printed", headings, rows)


def table_1_memory() -> PaperTable:
    """Size of the convolutions of the networks of Table 1."""
    rows = []
    for bits in (4, 3, 2):
        for block in BLOCKS:
            sizes = [
                f"{100 * convention.ratio(network(name).convolutions, bits, block):.1f}"
                for name in TABLE_1_FLOAT
                for convention in (V1, FP32, FP16)
            ]
            rows.append((f"b = {bits}, B = {block}", *sizes))
    headings = [f"{name}: {c.label}" for name in TABLE_1_FLOAT for c in (V1, FP32, FP16)]
    return PaperTable("Size of the convolutions in % of float32", ("", *headings), rows)


def table_2() -> PaperTable:
    """AlexNet on ImageNet."""
    original = 56.5
    rows = [("float32", str(original), "", "100")]
    for bits, top1 in ((3, 54.1), (2, 47.5)):
        size = 100 * FP16.ratio(network("AlexNet").convolutions, bits, 128)
        rows.append((f"b = {bits}, B = 128", str(top1), f"{original - top1:.1f}", f"{size:.2f}"))
    headings = ("AlexNet", "top-1, %", "loss", f"convolutions, {FP16.label}, %")
    return PaperTable("Table 2: top-1 in %, as printed", headings, rows)


def table_3() -> PaperTable:
    """Other networks on ImageNet."""
    rows = [
        ("MobileNet 1.0-224", "70.6", "569", "", "4.2", "16.0"),
        ("MobileNetV2", "72.0", "300", "", "3.4", "13.0"),
        ("MobileNetV2 (1.4)", "71.8", "585", "", "6.9", "26.3"),
        ("GoogLeNet", "69.8", "1550", "", "6.8", "25.9"),
        ("VGG16", "71.5", "15300", "", "138", "526.4"),
        ("ResNet34, b = 3", "72.2", "28", "3600", "21.5", "8.3"),
        ("ResNet50, b = 3", "74.6", "30", "3800", "25.6", "9.8"),
        ("MobileNetV2, b = 4", "70.1", "2.7", "300", "3.7", "1.8"),
        ("MobileNetV2, b = 3", "66.3", "2.7", "300", "3.7", "1.4"),
    ]
    headings = ("B = 128", "top-1, %", "M floating", "M integer", "M parameters", "MB")
    return PaperTable("Table 3, as printed", headings, rows)


def _stride_first(found: Network) -> Network:
    """ResNet50 as first published: the stride of a stage is in its first 1x1 convolution."""
    depths, first, firsts = (3, 4, 6, 3), 0, set()
    for depth in depths[:-1]:
        first += depth
        firsts.add(f"stages.{first}.main.0.0")
    kernels = tuple(
        replace(k, pixels=k.pixels // 4) if k.name in firsts else k for k in found.kernels
    )
    return replace(found, kernels=kernels)


def operations() -> PaperTable:
    """Multiplications of Table 3."""
    rows = []
    for name, found, integer, floating in (
        ("ResNet34", network("ResNet34"), "3600", "28"),
        ("ResNet50", network("ResNet50"), "3800", "30"),
        ("ResNet50, stride in the 1x1", _stride_first(network("ResNet50")), "3800", "30"),
        ("MobileNetV2", network("MobileNetV2"), "300", "2.7"),
    ):
        done = found.float_multiplies(128) / MEGA
        rows.append(
            (
                name, integer, f"{found.macs / MEGA:.1f}", floating,
                f"{found.macs / 128 / MEGA:.2f}", f"{done:.1f}", f"{done / float(floating):.1f}",
            )
        )  # fmt: skip
    headings = (
        "B = 128", "paper, integer", "MACs", "paper, floating", "MACs / 128", "block products",
        "block products / paper",
    )  # fmt: skip
    return PaperTable("Table 3: millions of multiplications of the convolutions", headings, rows)


SIZES = (
    ("ResNet34", 3, "8.3"), ("ResNet50", 3, "9.8"), ("MobileNetV2", 4, "1.8"),
    ("MobileNetV2", 3, "1.4"),
)  # fmt: skip
"""network, b, printed MB; B = 128"""


def _size_candidates(found: Network, bits: int) -> dict[str, float]:
    """Sizes by every way of counting, in millions of bytes and in units of 2**20; B = 128."""
    classifier = 4 * sum(kernel.weights for kernel in found.classifier)
    candidates = {}
    for convention in (CODES, FP16, FP32, V1):
        layers = {kernel.name: convention.bits(kernel, bits, 128) / 8 for kernel in found.kernels}
        convolutions = sum(layers[kernel.name] for kernel in found.convolutions)
        for scope, size in (
            ("conv", convolutions),
            ("all", sum(layers.values())),
            ("conv + float classifier", convolutions + classifier),
        ):
            for unit, divisor in (("MB", MEGA), ("MiB", MEBI)):
                candidates[f"{scope}, {convention.label}, {unit}"] = size / divisor
    return candidates


def sizes() -> PaperTable:
    """File sizes of Table 3."""
    shown = (
        *(f"conv, {c.label}, MB" for c in (CODES, FP16, FP32, V1)),
        f"conv, {FP32.label}, MiB", f"all, {FP16.label}, MB", f"all, {FP16.label}, MiB",
        f"conv + float classifier, {V1.label}, MB",
    )  # fmt: skip
    rows = []
    for name, bits, printed in SIZES:
        found = _size_candidates(network(name), bits)
        cells = (f"{found[label]:.2f}" for label in shown)
        rows.append((f"{name}, b = {bits}", printed, *cells, reproduced(printed, found)))
    return PaperTable("Table 3: sizes", ("B = 128", "paper", *shown, "reproduced by"), rows)


def float_sizes() -> PaperTable:
    """The sizes of the networks in float32 that Table 3 compares with."""
    rows = []
    for name, millions, printed in (
        ("MobileNet 1.0-224", 4.2, "16.0"), ("MobileNetV2", 3.4, "13.0"),
        ("MobileNetV2 (1.4)", 6.9, "26.3"), ("GoogLeNet", 6.8, "25.9"), ("VGG16", 138, "526.4"),
    ):  # fmt: skip
        found = {"MB": 4 * millions, "MiB": 4 * millions * MEGA / MEBI}
        cells = (f"{value:.1f}" for value in found.values())
        rows.append((name, str(millions), printed, *cells, reproduced(printed, found)))
    headings = ("float32", "paper, M parameters", "paper, MB", "MB", "MiB", "reproduced by")
    return PaperTable("Table 3: sizes in float32", headings, rows)


def parameters() -> PaperTable:
    """The parameters of Table 3."""
    rows = []
    for name, printed in (("ResNet34", "21.5"), ("ResNet50", "25.6"), ("MobileNetV2", "3.7")):
        found = network(name)
        convolutions = sum(kernel.weights for kernel in found.convolutions)
        classifier = sum(kernel.weights + kernel.filters for kernel in found.classifier)
        scales = sum(kernel.blocks(128) for kernel in found.convolutions)
        channels = sum(kernel.filters for kernel in found.convolutions)
        counts = {
            "conv": convolutions,
            "network": found.parameters,
            "network without classifier, one scale": found.parameters - classifier + scales,
            "network, all shifters": found.parameters + 2 * scales + 2 * channels,
        }
        candidates = {label: count / MEGA for label, count in counts.items()}
        cells = (f"{value:.2f}" for value in candidates.values())
        rows.append((name, printed, *cells, reproduced(printed, candidates)))
        headings = ("B = 128", "paper", *candidates, "reproduced by")
    return PaperTable("Table 3: millions of parameters", headings, rows)


TABLE_4 = {
    2: ("22.91", "7.03", "6.77", "6.64", "6.64", "6.88"),
    3: ("26.04", "10.16", "9.90", "9.77", "9.77", "10.00"),
    4: ("49", "14", "14", "13", "13", "13.75"),
}
"""Percent of float32 by bits: the five convolutions of AlexNet, and all of them; B = 128."""
TABLE_4_PARAMETERS = ("0.743", "9.83", "21.2", "28.3", "18.9", "79.0")


def alexnet_layers() -> dict[str, tuple[KernelShape, ...]]:
    """The rows of Table 4."""
    kernels = network("AlexNet").convolutions
    return {f"conv{n}": (kernel,) for n, kernel in enumerate(kernels, 1)} | {"overall": kernels}


def table_4() -> PaperTable:
    """Sizes of AlexNet's convolutions."""
    rows = []
    for bits, column in TABLE_4.items():
        for (name, kernels), printed in zip(alexnet_layers().items(), column, strict=True):
            found = _percents(kernels, bits, 128)
            cells = (f"{found[c.label]:.2f}" for c in (V1, FP32, FP16))
            rows.append((f"{name}, b = {bits}", printed, *cells, reproduced(printed, found)))
    headings = ("B = 128", "paper", *(c.label for c in (V1, FP32, FP16)), "reproduced by")
    return PaperTable("Table 4: AlexNet, size in % of float32", headings, rows)


def table_4_parameters() -> PaperTable:
    """The column of Table 4 that is headed by millions of parameters."""
    rows = []
    for (name, kernels), printed in zip(alexnet_layers().items(), TABLE_4_PARAMETERS, strict=True):
        weights = sum(kernel.weights for kernel in kernels)
        found = {"M parameters": weights / MEGA, "Mbit in float32": 32 * weights / MEGA}
        cells = (f"{value:.3f}" for value in found.values())
        rows.append((name, printed, *cells, reproduced(printed, found)))
    headings = ("", "paper", "M parameters", "Mbit in float32", "reproduced by")
    return PaperTable('Table 4: "Original Mil. Parameters"', headings, rows)


def table_5() -> PaperTable:
    """Transfer to CIFAR-10."""
    rows = [
        (f"b = {bits}", str(only), str(both), f"{both - only:.1f}", f"{94.0 - both:.1f}")
        for bits, only, both in ((3, 47.2, 86.2), (4, 49.2, 89.6), (5, 55.1, 91.1), (6, 54.7, 92.1))
    ]
    headings = ("ResNet50, B = 128", "classifier only", "with shifters", "gain", "below float32")
    return PaperTable("Table 5: top-1 in % on CIFAR-10, as printed", headings, rows)


def speedups() -> PaperTable:
    """The time formulas of the supplementary material for one layer of 256 channels."""
    rows = []
    layer = KernelShape("", 256, 256, taps=9)
    for block in BLOCKS:
        for eta in (0, 1):
            times = [f"{speedup([layer], block, r, eta):.2f}" for r in (2, 4, 10)]
            limit = largest_int_time(256, block, eta)
            rows.append((f"B = {block}, η = {eta}", *times, f"{limit:.3f}"))
    headings = ("Ci = 256", "r = 2", "r = 4", "r = 10", "T_int / T_FP without gain, (8)")
    return PaperTable("Speed-up by S (5) and (6), T_int = T_FP / r", headings, rows)


TABLES: dict[str, Callable[[], PaperTable]] = {
    "worked": worked,
    "table-1": table_1,
    "table-1-memory": table_1_memory,
    "table-2": table_2,
    "table-3": table_3,
    "operations": operations,
    "sizes": sizes,
    "float-sizes": float_sizes,
    "parameters": parameters,
    "table-4": table_4,
    "table-4-parameters": table_4_parameters,
    "table-5": table_5,
    "speedups": speedups,
}
"""Every table, under the name of its place in docs/paper.md."""


def parts() -> dict[str, str]:
    """The generated parts of docs/paper.md."""
    tables = {name: table() for name, table in TABLES.items()}
    return {name: markdown_rows(each.headings, each.rows) for name, each in tables.items()}


@click.command(help=__doc__)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--write", is_flag=True, help="Bring docs/paper.md up to date.")
def main(as_json: bool, write: bool) -> None:
    """Print every table."""
    if write:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(filled(text, parts()), encoding="utf-8")
        return
    tables = {name: make() for name, make in TABLES.items()}
    if as_json:
        rows = {
            name: [dict(zip(table.headings, row, strict=True)) for row in table.rows]
            for name, table in tables.items()
        }
        click.echo(json.dumps(rows))
        return
    console = Console(width=max(Console().width, 160))
    for table in tables.values():
        shown = Table(title=table.title, box=box.SIMPLE)
        for number, heading in enumerate(table.headings):
            shown.add_column(heading, justify="right" if number else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


if __name__ == "__main__":
    main()
