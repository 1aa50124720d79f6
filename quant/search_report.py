"""What a search of bits found, as figures, tables and plots."""

import json
import math
from pathlib import Path
from typing import Any

from .accounting import account_network, total
from .documents import Table, markdown, svg, write_texts
from .search import Point, Search

__all__ = ["figures", "front_table", "write_search"]


def figures(point: Point) -> dict[str, Any]:
    """One point by name; ``weight_bits`` of every layer."""
    return {
        "bytes": point.bytes,
        "cycles": point.cycles,
        "loss": point.loss,
        "divergence": point.divergence,
        "top1": point.top1,
        "act_bits": point.config.act_bits,
        "block": point.config.block,
        "accumulator": point.config.accumulator,
        "weight_bits": point.weight_bits,
        "uniform": point.uniform,
    }


def _bits(point: Point) -> str:
    """The b of a uniform network, or the mean over its weights."""
    if point.uniform:
        return str(*set(point.weight_bits.values()))
    account = total(account_network(point.network))
    weights = sum(kernel.shape.weights for kernel in account.kernels)
    bits = sum(kernel.shape.weights * kernel.weight_bits for kernel in account.kernels)
    return f"{bits / weights:.2f}"


def front_table(found: Search) -> Table:
    """The Pareto front, by size; the chosen network has a star."""
    rows = [
        (
            f"{point.bytes:,}" + (" *" if point is found.chosen else ""),
            "" if point.cycles is None else f"{point.cycles:,}",
            str(point.config.act_bits),
            str(point.config.block),
            _bits(point),
            f"{-10 * math.log10(point.loss):.1f}" if point.loss else "exact",
            f"{point.divergence:.4f}",
            "" if point.top1 is None else f"{point.top1:.2f}",
        )
        for point in found.front
    ]
    return "Pareto front", ("bytes", "cycles", "m", "B", "mean b", "SQNR dB", "KL", "top-1 %"), rows


def _layer_table(point: Point) -> Table:
    """The widths of the chosen network."""
    rows = [
        (layer.name, str(point.weight_bits[layer.name]), f"{layer.memory.bytes:,}")
        for layer in account_network(point.network)
    ]
    return "Chosen network", ("layer", "b", "bytes"), rows


def _plot(found: Search) -> str:
    """Loss against size, and against cycles if they are known."""
    from matplotlib.figure import Figure

    costs = [("kB", lambda point: point.bytes / 1000)]
    if found.chosen.cycles is not None:
        costs.append(("thousands of cycles", lambda point: point.cycles / 1000))
    figure = Figure(figsize=(6 * len(costs), 4), layout="constrained")
    kinds = sorted({(point.config.act_bits, point.config.block) for point in found.points})
    (axes,) = figure.subplots(1, len(costs), squeeze=False, sharey=True)
    for axis, (label, cost) in zip(axes, costs, strict=True):
        for number, (m, block) in enumerate(kinds):
            own = [p for p in found.points if (p.config.act_bits, p.config.block) == (m, block)]
            for uniform, marker in ((False, "o"), (True, "s")):
                some = [point for point in own if point.uniform == uniform]
                axis.plot(
                    [cost(point) for point in some],
                    [point.loss for point in some],
                    marker,
                    color=f"C{number}",
                    fillstyle="none" if uniform else "full",
                    label=f"m = {m}, B = {block}" + (", uniform" if uniform else ""),
                )
        if len(costs) == 1:  # with cycles it is no line
            front = [(cost(point), point.loss) for point in found.front]
            axis.plot(*zip(*front, strict=True), color="gray", linewidth=1, zorder=0, label="front")
        axis.plot(
            [cost(found.chosen)], [found.chosen.loss], "*", color="black", markersize=12,
            label="chosen",
        )  # fmt: skip
        axis.set_xlabel(label)
        axis.set_yscale("log")
    axes[0].set_ylabel("error of the scores, part of their power")
    axes[-1].legend(fontsize=7)
    return svg(figure)


def write_search(folder: Path, title: str, found: Search) -> None:
    """Leave ``net.safetensors``, ``front.json``, ``front.md`` and ``front.svg`` in `folder`, which
    is made if missing. The network is written first, the plot last."""
    front = set(map(id, found.front))
    points = [figures(point) | {"front": id(point) in front} for point in found.points]
    texts = {
        "front.json": json.dumps({"chosen": figures(found.chosen), "points": points}, indent=1)
        + "\n",
        "front.md": "\n\n".join(
            [
                f"# {title}",
                markdown(front_table(found)),
                "![loss against size](front.svg)",
                markdown(_layer_table(found.chosen)),
            ]
        )
        + "\n",
    }
    folder.mkdir(exist_ok=True)
    found.chosen.network.save(folder / "net.safetensors")
    write_texts(folder, texts)
    write_texts(folder, {"front.svg": _plot(found)})
