"""The accounts of a network as tables, figures and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .accounting import CONVENTIONS, LayerAccount, total
from .documents import Table, markdown, svg, write_texts

__all__ = ["figures", "tables", "write_account"]

RATIOS = (2, 4, 10)
"""r of the speed-ups shown: time of a float multiplication by that of an integer one"""
BLOCKS = (4, 8, 16, 32, 64, 128, 256, 512)
"""B of the plot"""


def figures(layer: LayerAccount, eta: float = 0) -> dict[str, Any]:
    """One layer, or the sum of all, by name; None where a figure needs weights.

    `eta` is that of :func:`.accounting.speedup`.
    """
    return {
        "name": layer.name,
        "weights": layer.weights,
        "blocks": layer.blocks,
        "code_bytes": layer.memory.codes,
        "scale_bytes": layer.memory.scales,
        "bias_bytes": layer.memory.biases,
        "float_bytes": layer.float_bytes,
        "bits_per_weight": layer.bits_per_weight,
        "percent": layer.percent,
        "percent_by": {name: layer.percent_by(CONVENTIONS[name]) for name in CONVENTIONS},
        "macs": layer.macs,
        "int_multiplies": layer.int_multiplies,
        "float_multiplies": layer.float_multiplies,
        "speedup_bound": layer.speedup(),
        "speedup": {str(ratio): layer.speedup(ratio, eta) for ratio in RATIOS},
        "largest_int_time": layer.largest_int_time(eta),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def tables(layers: Sequence[LayerAccount], eta: float = 0) -> tuple[Table, ...]:
    """Bytes, percentages of float32, and multiplications; the last row of each is the sum.

    `eta` is that of :func:`.accounting.speedup`.
    """
    rows = [*layers, total(layers)]
    counts = [
        (
            row.name, f"{row.weights:,}", f"{row.blocks:,}", f"{row.memory.codes:,}",
            f"{row.memory.scales:,}", f"{row.memory.biases:,}", _number(row.bits_per_weight),
        )
        for row in rows
    ]  # fmt: skip
    percents = [
        (
            row.name,
            _number(row.percent),
            *(_number(row.percent_by(convention)) for convention in CONVENTIONS.values()),
        )
        for row in rows
    ]
    operations = [
        (
            row.name, f"{row.macs:,}", f"{row.int_multiplies:,}", f"{row.float_multiplies:,}",
            _number(row.speedup()), *(_number(row.speedup(ratio, eta)) for ratio in RATIOS),
            _number(row.largest_int_time(eta)),
        )
        for row in rows
    ]  # fmt: skip
    labels = (convention.label for convention in CONVENTIONS.values())
    ratios = (f"r = {ratio}" for ratio in RATIOS)
    return (
        (
            "Memory in bytes",
            ("layer", "weights", "blocks", "codes", "scales", "biases", "bits a weight"),
            counts,
        ),
        (
            "Memory in % of float32: as stored, and by formula",
            ("layer", "stored", *labels),
            percents,
        ),
        (
            "Multiplications for one image, and the speed-up that they allow with "
            f"η = {eta:g}: S (7), (8)",
            ("layer", "MACs", "integer", "floating", "bound", *ratios, "largest T_int/T_FP"),
            operations,
        ),
    )


def _size_plot(layers: Sequence[LayerAccount]) -> str:
    """Stacked bars: kilobytes of codes, scales and biases of each layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6, 2 + 0.22 * len(layers)), 4), layout="constrained")
    axis = figure.subplots()
    below = [0.0] * len(layers)
    for label, color in (("codes", "tab:blue"), ("scales", "tab:orange"), ("biases", "tab:gray")):
        sizes = [getattr(layer.memory, label) / 1000 for layer in layers]
        axis.bar(range(len(layers)), sizes, bottom=below, label=label, color=color)
        below = [a + b for a, b in zip(below, sizes, strict=True)]
    axis.set_xticks(range(len(layers)), [layer.name for layer in layers], rotation=90, fontsize=7)
    axis.set_ylabel("kB")
    axis.legend()
    return svg(figure)


def _bits_plot(layers: Sequence[LayerAccount]) -> str:
    """Bits a weight of the whole network against B, and the network itself as a point."""
    from matplotlib.figure import Figure

    every = total(layers)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for convention in CONVENTIONS.values():
        percent = [every.percent_by(convention, block) or 0 for block in BLOCKS]
        axis.plot(BLOCKS, [0.32 * value for value in percent], label=convention.label)
    own = every.bits_per_weight
    if own is not None:
        axis.plot([every.kernels[0].block], [own], "o", color="black", label="this network")
    axis.set_xscale("log", base=2)
    axis.set_xticks(BLOCKS, [str(block) for block in BLOCKS])
    axis.set_xlabel("B, channels of a block")
    axis.set_ylabel("bits a weight")
    axis.set_ylim(0)
    axis.legend()
    return svg(figure)


def write_account(folder: Path, title: str, layers: Sequence[LayerAccount], eta: float = 0) -> None:
    """Leave ``report.md``, ``size.svg`` and ``bits.svg`` in `folder`, which is made if missing.

    `eta` is that of :func:`.accounting.speedup`. The same layers give the same bytes. All texts are
    complete before the first file is written.
    """
    texts = {
        "size.svg": _size_plot(layers),
        "bits.svg": _bits_plot(layers),
        "report.md": "\n\n".join(
            [
                f"# {title}",
                *(markdown(table) for table in tables(layers, eta)),
                "## Size by layer\n\n![size by layer](size.svg)",
                "## Bits a weight against B\n\n![bits a weight against B](bits.svg)",
            ]
        )
        + "\n",
    }
    write_texts(folder, texts)
