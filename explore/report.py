"""What an exploration leaves: the front as figures, table and plot, the chosen hardware."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..golden.network import QuantizedNetwork
from ..quant.convert import QuantConfig
from ..quant.documents import Table, markdown, write_texts
from ..toolchain.devices import KINDS
from .study import Exploration, Point
from .trial import image_cycles, quantized

__all__ = ["Chosen", "figures", "finish", "front_table", "problems", "write_exploration"]

_HEADINGS = {
    "images_per_s": "images/s", "cycles": "cycles", "sqnr_db": "SQNR dB", "fmax_mhz": "MHz",
    **{kind: kind.upper() for kind in KINDS},
}  # fmt: skip
_SHAPE = {"rows": "R = B", "cols": "C", "weight_bits": "b", "act_bits": "m"}


@dataclass(frozen=True)
class Chosen:
    """The chosen point and its network, quantized by the default method where it was a model.

    Parameters
    ----------
    point : of the front
    network : for its hardware
    cycles : of the network for one image, exact
    sqnr_db : of its scores on the held-out images; None if it came quantized
    """

    point: Point
    network: QuantizedNetwork
    cycles: int
    sqnr_db: float | None


def finish(found: Exploration) -> Chosen:
    """Take the chosen point, and quantize its network."""
    point, settings = found.chosen, found.settings
    config = point.config
    if settings.calibration is None:
        network, sqnr = QuantizedNetwork.load(settings.network.path), None
    else:
        own = QuantConfig(
            config.weight_bits, config.act_bits, config.rows, config.scale,
            accumulator=config.accumulator,
        )  # fmt: skip
        network, sqnr = quantized(settings.network, settings.calibration, own)
    cycles = image_cycles(network, config, settings.latency, settings.gap)
    return Chosen(point, network, cycles, sqnr)


def figures(found: Exploration, point: Point) -> dict[str, Any]:
    """One point by name: estimate, configuration, and synthesis where there was one."""
    estimated = {} if point.figures is None else asdict(point.figures)
    counted = found.synthesized.get(point.number)
    return {
        "trial": point.number,
        **estimated,
        "problem": point.problem,
        "synthesis": None if counted is None else dict(counted),
        "hardware": dict(point.values),
    }


def problems(found: Exploration) -> list[tuple[str, int]]:
    """Why trials are not on the front beside being beaten, most frequent first."""
    counts = Counter[str]()
    for point in found.points:
        if point.figures is None:
            counts[point.problem] += 1
        elif point.problem:
            counts.update(f"too much {kind}" if kind in KINDS else "too little SQNR"
                          for kind in found.settings.excess(point.figures))  # fmt: skip
    return counts.most_common()


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if name in ("sqnr_db", "fmax_mhz") else f"{value:,.0f}"


def _count(found: Exploration, point: Point, kind: str) -> str:
    """The estimate, and what synthesis took."""
    text = _cell(kind, getattr(point.figures, kind))
    counted = found.synthesized.get(point.number)
    return text if counted is None else f"{text} → {_cell(kind, counted[kind])}"


def front_table(found: Exploration) -> Table:
    """The front, the best first; the chosen point has a star. Behind an arrow is what synthesis
    took."""
    names = [name for name in _HEADINGS if name not in KINDS]
    if found.settings.calibration is None:
        names.remove("sqnr_db")
    rows = [
        (
            f"{point.number}" + (" *" if point is found.chosen else ""),
            *(str(point.values[key]) for key in _SHAPE),
            *(_cell(name, getattr(point.figures, name)) for name in names),
            *(_count(found, point, kind) for kind in KINDS),
        )
        for point in found.front
    ]
    headings = ("trial", *_SHAPE.values(), *(_HEADINGS[n] for n in names), *map(str.upper, KINDS))
    return "Pareto front", headings, rows


def _plot(found: Exploration) -> str:
    """All trials by the first two of what is sought, or by LUT, as one page that needs no other."""
    from plotly import graph_objects
    from plotly.io import to_html

    first, second = (*found.settings.sought, "lut")[:2]
    measured = [point for point in found.points if point.figures is not None]
    front = {point.number for point in found.front}
    groups: Mapping[str, tuple[list[Point], dict[str, Any]]] = {
        "keeps not everything": (
            [p for p in measured if p.problem], {"color": "lightgray", "symbol": "x"},
        ),
        "beaten": (
            [p for p in measured if not p.problem and p.number not in front],
            {"color": "steelblue"},
        ),
        "front": (list(found.front), {"color": "crimson", "size": 9}),
        "chosen": ([found.chosen], {"color": "black", "symbol": "star", "size": 15}),
    }  # fmt: skip
    figure = graph_objects.Figure()
    for name, (points, marker) in groups.items():
        some = sorted(points, key=lambda p: getattr(p.figures, second))
        figure.add_scatter(
            x=[getattr(p.figures, second) for p in some],
            y=[getattr(p.figures, first) for p in some],
            text=[
                "<br>".join(
                    [f"trial {p.number}"]
                    + [f"{k}: {v}" for k, v in figures(found, p)["hardware"].items()]
                    + [_count(found, p, kind) + f" {kind}" for kind in KINDS]
                    + ([p.problem] if p.problem else [])
                )
                for p in some
            ],
            mode="lines+markers" if name == "front" else "markers",
            hoverinfo="text", name=name, marker=marker,
        )  # fmt: skip
    figure.update_layout(
        title=f"{len(found.points)} trials on {found.settings.target}",
        xaxis_title=_HEADINGS[second], yaxis_title=_HEADINGS[first], template="plotly_white",
    )  # fmt: skip
    return to_html(figure, include_plotlyjs=True, full_html=True, div_id="front")


def write_exploration(folder: Path, title: str, found: Exploration, chosen: Chosen) -> None:
    """Leave ``hw.toml``, ``net.safetensors``, ``front.json``, ``front.md`` and ``front.html`` in
    `folder`."""
    front = {point.number for point in found.front}
    points = [figures(found, p) | {"front": p.number in front} for p in found.points]
    counts: Table = (
        "Trials that are not on the front for another reason than being beaten",
        ("reason", "trials"),
        [(reason, str(number)) for reason, number in problems(found)],
    )
    own = found.settings.plain()
    report = {
        "target": own["target"],
        "budget": own["budget"],
        "objectives": list(found.settings.sought),
        "least_sqnr": own["least_sqnr"],
        "chosen": figures(found, chosen.point)
        | {"network": {"cycles": chosen.cycles, "sqnr_db": chosen.sqnr_db}},
        "points": points,
    }
    parts = [
        f"# {title}",
        markdown(front_table(found)),
        "[All trials](front.html)",
        *([markdown(counts)] if counts[2] else []),
        "## Chosen hardware",
        f"```toml\n{chosen.point.config.dumps()}```",
    ]
    chosen.network.save(folder / "net.safetensors")
    write_texts(
        folder,
        {
            "hw.toml": chosen.point.config.dumps(),
            "front.json": json.dumps(report, indent=1) + "\n",
            "front.md": "\n\n".join(parts) + "\n",
            "front.html": _plot(found),
        },
    )
