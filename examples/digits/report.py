"""The demo's report: tables and plots."""

import json
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
    from .demo import DemoResult

__all__ = ["write_report"]


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
    names = [layer.name for layer in costs.layers]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(names))

    # A tensor that is stored exactly has no noise and gets no bar.
    def finite(value: float | None) -> float:
        return value if value is not None and np.isfinite(value) else 0.0

    weights = [finite(layer.weight_sqnr_db) for layer in costs.layers]
    tensors = [finite(layer.output_sqnr_db) for layer in costs.layers]
    axis.bar(places - 0.2, weights, 0.4, label="weights", color="tab:blue")
    axis.bar(places + 0.2, tensors, 0.4,
             label="stored tensor", color="tab:orange")  # fmt: skip
    axis.set_xticks(places, names, rotation=30, ha="right")
    axis.set_ylabel("SQNR, dB")
    axis.legend()
    figure.savefig(path, dpi=110)


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_report(
    output: Path, result: "DemoResult", graph: Graph, network: QuantizedNetwork, costs: Report
) -> None:
    """Leave ``report.md``, its plots and ``result.json`` in the folder `output`."""
    _histograms(output / "weights.png", graph, network)
    _sqnr(output / "sqnr.png", costs)
    layers = _table(
        ("layer", "output", "MACs", "cycles measured", "predicted", "utilization", "compared",
         "mismatches"),
        [
            (row.name, "×".join(map(str, row.shape)), row.macs, row.cycles, row.predicted,
             f"{row.utilization:.1%}", row.compared, row.mismatches)
            for row in result.rows
        ],
    )  # fmt: skip
    quantization = _table(
        ("tensor", "weights, dB", "tensor, dB", "saturated"),
        [
            (
                layer.name,
                "" if layer.weight_sqnr_db is None else f"{layer.weight_sqnr_db:.1f}",
                f"{layer.output_sqnr_db:.1f}",
                f"{layer.saturated} of {layer.values}",
            )
            for layer in costs.layers
        ],
    )
    area = _table(
        ("target", "LUT", "FF", "DSP", "block RAM"),
        [(name, r.lut, r.ff, r.dsp, r.bram) for name, r in result.area.items()],
    )
    (output / "report.md").write_text(
        f"""# Handwritten digits on a 16×16 array

{result.mismatches} mismatches in {result.compared} numbers of {result.images} images.
Hardware mode in torch {"equals" if result.hardware_mode_equals_golden else "DIFFERS FROM"} the
golden model on the same images.

| | top-1 on the held-out images |
| --- | --- |
| float32 | {result.float_top1:.2f} % |
| 4-bit weights, 4-bit activations, blocks of 16 | {result.hardware_mode_top1:.2f} % |

Cycles and compared numbers are of all {result.images} images; the array waits while a layer drains.

{layers}

## Quantization

Memory: {costs.weight_bytes} bytes quantized, {costs.float_bytes} bytes in float32.

{quantization}

![signal to quantization noise](sqnr.png)

![weights, codes and reconstruction](weights.png)

## Area of a 4×4 engine (yosys, before placement)

{area}

## Again

`shiftcore demo -o DIR --images {result.images}` writes this folder. `network.safetensors` is the
quantized network, `test.npz` the held-out images, `calibration.npz` those of the calibration,
`hardware.toml` the array, and `shiftcore.v` its Verilog, which
`shiftcore verilog --hw hardware.toml -o shiftcore.v` writes again;
`shiftcore evaluate network.safetensors --data test.npz` repeats the accuracy.
""",
        encoding="utf-8",
    )
    text = json.dumps(asdict(result), indent=2, default=dict)
    (output / "result.json").write_text(text + "\n", encoding="utf-8")
