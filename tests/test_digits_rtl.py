"""The digits network, layer by layer on the simulated engine; the demo."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.estimate.cycles import engine_cycles
from shiftcore.examples.digits import data, demo, model
from shiftcore.examples.digits.demo import AREA_FAMILIES, run_demo
from shiftcore.golden.compare import Mismatch
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork, Tensor
from shiftcore.golden.program import Program
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.sim.accelerate import AcceleratorRun, run_program
from shiftcore.sim.network import LayerRun, run_network
from shiftcore.sim.runner import Simulator
from shiftcore.toolchain.yosys import Resources

# Fewer columns than in the demo: another shape, and blocks that take four drained rows.
CONFIG = HardwareConfig(rows=16, cols=4)
ACCELERATOR = replace(CONFIG, buffer_depth=4096)
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    training, _ = data.load()
    return quantize(model.load(), training.x[:256], QuantConfig())


def check(runs: list[LayerRun], network: QuantizedNetwork, images: np.ndarray) -> None:
    assert [run.layer.name for run in runs] == [layer.name for layer in network.layers]
    for run in runs:
        assert run.first is None
        assert run.mismatches == 0
        assert run.accumulators == len(images) * run.layer.bias.size * np.prod(run.programs[0].size)
        work = [item for program in run.programs for item in program.work]
        assert run.total_cycles == engine_cycles(work, CONFIG).total
    # The same again by another road: torch's hardware mode.
    scores = HardwareNetwork(network).compute(images)[network.layers[-1].name]
    found = np.concatenate([np.asarray(t) for t in runs[-1].tensors])
    assert np.array_equal(found.view(np.uint32), np.asarray(scores).view(np.uint32))


@pytest.mark.parametrize(("simulator", "images"), [("verilator", 3), ("icarus", 1)])
def test_every_layer(network: QuantizedNetwork, simulator: Simulator, images: int) -> None:
    _, held_out = data.load()
    chosen = held_out.x[:images]
    check(run_network(network, CONFIG, chosen, simulator), network, chosen)


def test_the_smallest_accelerator() -> None:
    """2-bit codes and serial control: what fits an iCE40 HX8K reads digits, as predicted."""
    config = HardwareConfig.load(EXAMPLES / "array4-hx8k.toml")
    training, held_out = data.load()
    settings = QuantConfig(2, 2, config.rows, config.scale, accumulator=config.accumulator)
    network = quantize(model.load(), training.x[:256], settings)
    assert evaluate(HardwareNetwork(network), held_out.x, held_out.y).top1 > 95
    program = compile_network(network, config)
    run = run_program(program, program.encode_input(network.encode_input(held_out.x[:2])))
    assert run.difference is None
    assert run.mismatches == 0
    assert run.counters == ({"cycles": predict(program).cycles},) * 2


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function's first result, again and again."""
    results = []

    def remembered(*arguments: Any) -> Any:
        if not results:
            results.append(function(*arguments))
        return results[0]

    return remembered


def test_the_demo_and_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demo with fewer columns; then the same with something wrong."""
    kept: list[AcceleratorRun] = []
    layers: list[LayerRun] = []

    def run(*arguments, **options) -> AcceleratorRun:
        kept.append(run_program(*arguments, **options))
        return kept[0]

    def by_layer(*arguments) -> list[LayerRun]:
        layers.extend(run_network(*arguments))
        return layers

    monkeypatch.setattr(demo, "hardware", lambda: ACCELERATOR)
    monkeypatch.setattr(demo, "accelerator_verilog", lambda config: f"// {config}")
    monkeypatch.setattr(demo, "emit", lambda *_: "")
    monkeypatch.setattr(demo, "Engine", lambda *_: None)
    monkeypatch.setattr(demo, "synthesize", lambda *_: Resources(1, 2, 3, 4, {}))
    monkeypatch.setattr(demo, "run_program", run)
    monkeypatch.setattr(demo, "run_network", by_layer)
    for name in ("quantize", "measure", "evaluate", "compile_network", "predict", "estimate"):
        monkeypatch.setattr(demo, name, once(getattr(demo, name)))
    good = run_demo(tmp_path, images=3)
    assert (good.images, good.bit_exact, good.mismatches, good.difference) == (3, True, 0, None)
    assert (good.counters_exact, good.cycles_exact, good.engine_images) == (True, True, 3)
    assert good.cycles == [good.predicted] * 3
    assert good.compared == sum(row.compared for row in [*good.rows, *good.layers]) > 10_000
    for rows in (good.rows, good.layers):
        assert good.macs == sum(row.macs for row in rows)
        assert [row.name for row in rows] == list(kept[0].stored)
        assert all(0 < row.utilization < 1 for row in rows if row.macs)
    for row in good.layers:
        assert row.cycles == row.predicted > 0
        stored = 0 if row.name == "linear" else kept[0].stored[row.name]
        assert row.compared == 3 * np.prod(row.shape) + stored
    assert HardwareConfig.load(tmp_path / "hardware.toml") == ACCELERATOR
    assert tuple(good.area) == AREA_FAMILIES
    hashes = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert set(hashes) == {
        "network.safetensors", "hardware.toml", "shiftcore.v", "test.npz", "calibration.npz",
    }  # fmt: skip
    for name, digest in hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    program = Program.load(tmp_path / "build")
    assert program.macs == good.macs

    def replay(changed: LayerRun | None = None, **changes: object) -> demo.DemoResult:
        runs = [changed if changed and run.layer is changed.layer else run for run in layers]
        monkeypatch.setattr(demo, "run_network", lambda *_: runs)
        monkeypatch.setattr(demo, "run_program", lambda *_, **__: replace(kept[0], **changes))
        monkeypatch.setattr(demo, "write_report", lambda *_: None)
        return run_demo(tmp_path, images=3)

    first = Mismatch(4, 0, "block1.conv2", 3, 1, 1, "code", 7, 6)
    wrong = replay(wrong=Counter({"block1.conv2": 1}), first=first, time=1235)
    assert (wrong.bit_exact, wrong.counters_exact, wrong.mismatches) == (False, True, 1)
    assert wrong.difference == f"{first} (stored at 1235 ns)"
    assert [row.mismatches for row in wrong.rows] == [row.name == first.layer for row in wrong.rows]

    late = [*kept[0].counters[:2], kept[0].counters[2] | {"stall_tile": 1 << 20}]
    slow = replay(counters=tuple(late))
    assert (slow.bit_exact, slow.counters_exact) == (True, False)

    outputs = kept[0].outputs.copy()
    outputs[1, 0] ^= 1
    other = replay(outputs=outputs)
    assert (other.bit_exact, other.difference) == (False, "the scores of the compiled program")

    alone = "layer 'conv2' by itself, image 2, code (0, 5, 1) must be 7, not 6"
    unequal = replay(replace(layers[1], mismatches=4, first=alone))
    assert (unequal.bit_exact, unequal.mismatches, unequal.cycles_exact) == (False, 4, True)
    assert unequal.difference == alone
    assert [row.mismatches for row in unequal.layers] == [0, 4, *[0] * 7]

    longer = (layers[2].cycles[0] + 1, *layers[2].cycles[1:])
    behind = replay(replace(layers[2], cycles=longer))
    assert (behind.bit_exact, behind.counters_exact, behind.cycles_exact) == (True, True, False)

    compute = HardwareNetwork.compute

    def altered(self: HardwareNetwork, images: np.ndarray) -> dict[str, Tensor]:
        tensors = compute(self, images)
        codes = tensors["maxpool"].codes
        codes[0, 0, 0, 0, 0] ^= 1
        return tensors

    monkeypatch.setattr(HardwareNetwork, "compute", altered)
    torn = replay()
    assert (torn.bit_exact, torn.difference) == (False, "layer 'maxpool' in torch's hardware mode")
