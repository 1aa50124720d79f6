"""The digits network on the simulated engine."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiftcore.estimate.cycles import engine_cycles
from shiftcore.examples.digits import data, demo, model
from shiftcore.examples.digits.demo import run_demo
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.sim.network import LayerRun, Mismatch, run_network
from shiftcore.sim.runner import Simulator
from shiftcore.toolchain.yosys import TARGETS, Resources

# Fewer columns than in the demo: another shape, and blocks that take four drained rows.
CONFIG = HardwareConfig(rows=16, cols=4)


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
    check(run_network(network, CONFIG, chosen, simulator=simulator), network, chosen)


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function's first result, again and again."""
    results = []

    def remembered(*arguments: Any) -> Any:
        if not results:
            results.append(function(*arguments))
        return results[0]

    return remembered


def test_the_demo_and_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole demo on a smaller array; then the same with a wrong number or cycle count."""
    kept: list[LayerRun] = []

    def run(*arguments, **options) -> list[LayerRun]:
        kept.extend(run_network(*arguments, **options))
        return kept

    monkeypatch.setattr(demo, "hardware", lambda: CONFIG)
    monkeypatch.setattr(demo, "accelerator_verilog", lambda config: f"// {config}")
    monkeypatch.setattr(demo, "synthesize", lambda *_: Resources(1, 2, 3, 4, {}))
    monkeypatch.setattr(demo, "run_network", run)
    for name in ("quantize", "measure", "evaluate"):
        monkeypatch.setattr(demo, name, once(getattr(demo, name)))
    good = run_demo(tmp_path, images=1)
    assert good.bit_exact
    assert good.cycles_exact
    assert (good.mismatches, good.first_mismatch) == (0, None)
    assert good.compared == sum(run.accumulators + run.stored for run in kept)
    assert list(good.area) == list(TARGETS)
    hashes = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert set(hashes) == {
        "network.safetensors", "hardware.toml", "shiftcore.v", "test.npz", "calibration.npz",
    }  # fmt: skip
    for name, digest in hashes.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest

    def replay(changed: LayerRun) -> demo.DemoResult:
        runs = [*kept[:3], changed, *kept[4:]]

        def repeat(*_, progress, **__) -> None:
            for run in runs:
                progress(run)

        monkeypatch.setattr(demo, "run_network", repeat)
        monkeypatch.setattr(demo, "write_report", lambda *_: None)
        return run_demo(tmp_path, images=1)

    first = Mismatch("block1.conv2", 0, (0, 3, 1, 1), 7.0, 6.0)
    wrong = replay(replace(kept[3], mismatches=1, first=first))
    assert not wrong.bit_exact
    assert wrong.cycles_exact
    assert (wrong.mismatches, wrong.first_mismatch) == (1, str(first))
    late = replay(replace(kept[3], cycles=(kept[3].total_cycles + 1,)))
    assert late.bit_exact
    assert not late.cycles_exact
