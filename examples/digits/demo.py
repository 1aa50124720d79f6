"""The main job on real handwritten digits: train -> quantize -> hardware, every number compared."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from ...estimate.cycles import engine_cycles
from ...golden.bfp import BlockTensor
from ...golden.config import HardwareConfig
from ...golden.network import QuantizedNetwork, Tensor
from ...hw.engine import Engine
from ...hw.verilog import TOP, accelerator_verilog, emit
from ...quant.convert import QuantConfig, as_graph, quantize
from ...quant.hardware import HardwareNetwork, evaluate
from ...quant.report import Report, measure
from ...sim.network import LayerRun, run_network
from ...toolchain.yosys import TARGETS, Resources, synthesize, tool_version
from . import data, model
from .report import write_report
from .train import accuracy

__all__ = ["DemoResult", "LayerRow", "hardware", "run_demo"]

CALIBRATION_IMAGES = 256
FILES = ("network.safetensors", "hardware.toml", "shiftcore.v", "test.npz", "calibration.npz")
"""What is needed to run it again; ``manifest.json`` has their SHA-256."""


@dataclass(frozen=True)
class LayerRow:
    """One layer in the demo's table; cycles and compared numbers are of all images together."""

    name: str
    shape: tuple[int, ...]
    macs: int
    cycles: int
    predicted: int
    utilization: float
    compared: int
    mismatches: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; ``cycles`` has one entry per image, top-1 figures are in percent."""

    images: int
    bit_exact: bool
    mismatches: int
    first_mismatch: str | None
    compared: int
    cycles: list[int]
    cycles_exact: bool
    macs: int
    utilization: float
    sim_cycles_per_s: float
    top1: float
    float_top1: float
    hardware_mode_top1: float
    hardware_mode_equals_golden: bool
    rows: list[LayerRow]
    area: dict[str, Resources]


def hardware() -> HardwareConfig:
    """The 16x16 array of ``examples/array16.toml``."""
    with as_file(files("shiftcore.examples") / "array16.toml") as path:
        return HardwareConfig.load(path)


def _equal(a: Tensor, b: Tensor) -> bool:
    if isinstance(a, BlockTensor):
        assert isinstance(b, BlockTensor)
        return np.array_equal(a.codes, b.codes) and np.array_equal(a.exponents, b.exponents)
    assert isinstance(b, np.ndarray)
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def _row(run: LayerRun, network: QuantizedNetwork, config: HardwareConfig) -> LayerRow:
    work = [item for program in run.programs for item in program.work]
    images = len(run.programs)
    macs = network.macs()[run.layer.name]
    total = run.total_cycles
    return LayerRow(
        run.layer.name,
        (run.layer.bias.size, *run.programs[0].size),
        macs,
        total,
        engine_cycles(work, config).total,
        images * macs / (total * config.rows * config.cols),
        run.accumulators + run.stored,
        run.mismatches,
    )


def run_demo(
    output: Path,
    images: int = 20,
    progress: Callable[[str], None] = lambda message: None,
    *,
    waves: bool = False,
) -> DemoResult:
    """Quantize the digits network, run `images` held-out images through the RTL, leave a report.

    Parameters
    ----------
    output : folder for the network, hardware, images, Verilog, plots, table and result
    images : how many of the held-out images go through the RTL, 1 to 360
    progress : told what happens
    waves : leave a waveform of each layer in ``output/waves``

    Raises ``ValueError`` for a number of images that is none, ``SimulationError`` or ``ToolError``
    if the simulator or yosys is missing.
    """
    training, held_out = data.load()
    if not 1 <= images <= len(held_out.x):
        raise ValueError(f"images must be 1 to {len(held_out.x)}, not {images}")
    tool_version("pyosys")  # needed last, after minutes
    output.mkdir(parents=True, exist_ok=True)
    config = hardware()

    progress("quantizing: 4-bit weights, 4-bit activations, blocks of 16")
    floating = model.load()
    calibration = training.x[:CALIBRATION_IMAGES]
    settings = QuantConfig(weight_bits=4, act_bits=4, block=config.rows)
    network = quantize(floating, calibration, settings)
    costs: Report = measure(floating, network, calibration)

    progress(f"hardware mode in torch on {len(held_out.x)} held-out images")
    hardware_mode = HardwareNetwork(network)
    evaluation = evaluate(hardware_mode, held_out.x, held_out.y)
    chosen = held_out.x[:images]
    in_torch, golden = hardware_mode.compute(chosen), network.compute(chosen)
    torch_equals_golden = all(_equal(in_torch[name], golden[name]) for name in golden)

    progress(f"building the simulator of the {config.rows}x{config.cols} array (once)")
    runs: list[LayerRun] = []
    simulated = 0.0
    clock = time.perf_counter()

    def tell(run: LayerRun) -> None:
        nonlocal simulated, clock
        now = time.perf_counter()
        # The first layer's time includes the build of the simulator.
        simulated += now - clock if runs else 0.0
        clock = now
        runs.append(run)
        progress(
            f"RTL {run.layer.name}: {run.mismatches} mismatches in "
            f"{run.accumulators + run.stored} numbers"
        )

    run_network(network, config, chosen, progress=tell, waves=output / "waves" if waves else None)
    rows = [_row(run, network, config) for run in runs]
    scores = np.concatenate([np.asarray(t).reshape(1, -1) for t in runs[-1].tensors])

    small = emit(Engine(HardwareConfig(rows=4, cols=4, clamp=False).engine), TOP)
    area = {}
    for target in TARGETS:
        progress(f"synthesizing a 4x4 engine for {target}")
        area[target] = synthesize(small, TOP, target)

    cycles = np.array([run.cycles for run in runs]).sum(0).tolist()
    macs = sum(network.macs().values())
    first = next((run.first for run in runs if run.first), None)
    mismatches = sum(run.mismatches for run in runs)
    result = DemoResult(
        images=images,
        bit_exact=mismatches == 0 and torch_equals_golden,
        mismatches=mismatches,
        first_mismatch=None if first is None else str(first),
        compared=sum(row.compared for row in rows),
        cycles=cycles,
        cycles_exact=all(row.cycles == row.predicted for row in rows),
        macs=macs,
        utilization=images * macs / (sum(cycles) * config.rows * config.cols),
        sim_cycles_per_s=sum(run.total_cycles for run in runs[1:]) / max(simulated, 1e-9),
        top1=100 * float((scores.argmax(1) == held_out.y[:images]).mean()),
        float_top1=accuracy(floating, held_out),
        hardware_mode_top1=evaluation.top1,
        hardware_mode_equals_golden=torch_equals_golden,
        rows=rows,
        area=area,
    )
    progress("writing Verilog, plots and report")
    network.save(output / "network.safetensors")
    np.savez_compressed(output / "test.npz", x=held_out.x, y=held_out.y)
    np.savez_compressed(output / "calibration.npz", x=calibration)
    (output / "hardware.toml").write_text(
        (files("shiftcore.examples") / "array16.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (output / "shiftcore.v").write_text(accelerator_verilog(config), encoding="utf-8")
    write_report(output, result, as_graph(floating, calibration), network, costs)
    hashes = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES}
    (output / "manifest.json").write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    return result
