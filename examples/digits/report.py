"""The demo's report: tables and plots."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from ...frontend.graph import Graph
from ...golden.network import QuantizedNetwork
from ...quant.lower import lower
from ...quant.report import Report

if TYPE_CHECKING:
    from .demo import DemoResult, LayerRow

__all__ = ["tables", "write_report"]


def _histograms(path: Path, graph: Graph, network: QuantizedNetwork) -> None:
    """Weights, VQK codes and reconstruction of each learnt layer (v1, figure 2)."""
    chosen = [
        (layer.name, reference.weight, stored.kernel)
        for layer, stored_layer in zip(lower(graph), network.layers, strict=True)
        for reference, stored in zip(layer.terms, stored_layer.terms, strict=True)
        if not reference.constant
    ]
    figure = Figure(figsize=(9, 1.7 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for (name, weight, kernel), (left, middle, right) in zip(chosen, axes, strict=True):
        limit = float(np.abs(weight).max())
        bins = np.linspace(-limit, limit, 81).tolist()
        left.hist(np.ravel(weight), bins, color="tab:gray")
        low = -(1 << (kernel.weight_bits - 1))
        codes = np.arange(low, -low)
        counts = [int((kernel.codes == code).sum()) for code in codes]
        middle.bar(codes, counts, color="tab:blue")
        right.hist(np.ravel(kernel.reconstruct()), bins, color="tab:green")
        left.set_ylabel(name)
    for axis, title in zip(axes[0], ("weights W", "VQK codes", "reconstruction"), strict=True):
        axis.set_title(title)
    figure.savefig(path, dpi=110)


def _sqnr(path: Path, costs: Report) -> None:
    """Signal to noise of weights and tensors; what is stored exactly has no bar and says so."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    weights = [layer.weight_sqnr_db for layer in costs.layers]
    tensors = [layer.output_sqnr_db for layer in costs.layers]
    for shift, label, color, values in (
        (-0.2, "weights", "tab:blue", weights),
        (0.2, "stored tensor", "tab:orange", tensors),
    ):
        known = [(k, v) for k, v in enumerate(values) if v is not None and math.isfinite(v)]
        axis.bar(
            [k + shift for k, _ in known], [v for _, v in known], 0.4, label=label, color=color
        )
        for place in (k for k, v in enumerate(values) if v == math.inf):
            axis.text(place + shift, 0, " exact", rotation=90, ha="center", va="bottom")
    names = [layer.name for layer in costs.layers]
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_ylabel("SQNR, dB")
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=110)


def _decibels(value: float | None) -> str:
    if value is None:
        return ""
    return "exact" if value == math.inf else f"{value:.1f}"


def tables(result: "DemoResult") -> list[tuple[tuple[str, ...], list[tuple[object, ...]]]]:
    """Header and rows of three tables: the layers in the whole network on the accelerator, each
    layer by itself on the engine, the area."""

    def header(*cycles: str) -> tuple[str, ...]:
        return "layer", "output", "MACs", *cycles, "utilization", "compared", "mismatches"

    def cells(row: "LayerRow", *cycles: int) -> tuple[object, ...]:
        shape, used = "x".join(map(str, row.shape)), f"{row.utilization:.1%}"
        return row.name, shape, row.macs, *cycles, used, row.compared, row.mismatches

    return [
        (header("cycles"), [cells(row, row.cycles) for row in result.rows]),
        (
            header("cycles", "predicted"),
            [cells(row, row.cycles, row.predicted) for row in result.layers],
        ),
        (
            ("target", "LUT", "FF", "DSP", "block RAM"),
            [(name, r.lut, r.ff, r.dsp, r.bram) for name, r in result.area.items()],
        ),
    ]


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_report(
    output: Path, result: "DemoResult", graph: Graph, network: QuantizedNetwork, costs: Report
) -> None:
    """Leave ``report.md``, its plots and ``result.json`` in the folder `output`."""
    _histograms(output / "weights.png", graph, network)
    _sqnr(output / "sqnr.png", costs)
    network_table, layer_table, area_table = (_table(*table) for table in tables(result))
    quantization = _table(
        ("tensor", "weights, dB", "tensor, dB", "saturated"),
        [
            (
                layer.name,
                _decibels(layer.weight_sqnr_db),
                _decibels(layer.output_sqnr_db),
                f"{layer.saturated} of {layer.values}",
            )
            for layer in costs.layers
        ],
    )
    (output / "report.md").write_text(
        f"""# Handwritten digits on a 16×16 accelerator

The simulated accelerator computed {result.images} images, each from one start command, and its
engine {result.engine_images} of them layer by layer: {result.mismatches} mismatches in
{result.compared} numbers. First difference between torch's hardware mode, the golden model and the
hardware: {result.difference or "none"}.
An image takes {max(result.cycles)} cycles, predicted {result.predicted}; the utilization is
{result.utilization:.1%}.

| | images | top-1 |
| --- | --- | --- |
| float32 | all held out | {result.float_top1:.2f} % |
| 4-bit weights and activations, in torch | all held out | {result.hardware_mode_top1:.2f} % |
| the same on the accelerator | {result.images} of them | {result.top1:.2f} % |

## The whole network on the accelerator

MACs and cycles are of one image. A layer's cycles end when its last pixel enters the array; they
add up to the image's. Compared are the numbers that the layer stored, of all images.

{network_table}

## Each layer by itself on the engine

Every layer, {result.engine_images} images back to back. Compared are every accumulated value and
every number that the layer stored.

{layer_table}

## Quantization

Memory: {costs.weight_bytes} bytes quantized, {costs.float_bytes} bytes in float32.

{quantization}

![signal to quantization noise](sqnr.png)

![weights, codes and reconstruction](weights.png)

## Area of a 4×4 engine (yosys, before placement)

{area_table}

## Again

`shiftcore demo -o DIR --images {result.images}` writes this folder. `network.safetensors` is the
quantized network, `test.npz` the held-out images, `calibration.npz` those of the calibration,
`hardware.toml` the accelerator, `shiftcore.v` its Verilog and `build` the compiled program. In this
folder

```sh
shiftcore evaluate network.safetensors --data test.npz
shiftcore compile network.safetensors --hw hardware.toml -o build
shiftcore run build --data test.npz --on rtl --limit {result.images}
shiftcore verilog --hw hardware.toml -o shiftcore.v
```

repeat accuracy, program, run and Verilog.
""",
        encoding="utf-8",
    )
    text = json.dumps(asdict(result), indent=2, default=dict)
    (output / "result.json").write_text(text + "\n", encoding="utf-8")
