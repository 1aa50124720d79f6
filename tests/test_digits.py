"""The example network: data, training, checkpoint, what quantization leaves of it, the report."""

import json
import math
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from shiftcore.examples.digits import data, demo, model, train
from shiftcore.examples.digits.data import Digits
from shiftcore.examples.digits.demo import run_demo
from shiftcore.examples.digits.report import write_report
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.report import measure
from shiftcore.tests.results import DEMO
from shiftcore.toolchain import yosys
from shiftcore.toolchain.yosys import ToolError


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return data.load()


@pytest.fixture(scope="module")
def network(digits: tuple[Digits, Digits]) -> QuantizedNetwork:
    return quantize(model.load(), digits[0].x[:256])


def test_the_split_is_fixed_and_stratified(digits: tuple[Digits, Digits]) -> None:
    training, held_out = digits
    assert (training.x.shape, held_out.x.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (training.x.dtype, training.y.dtype) == (np.float32, np.int64)
    assert np.bincount(held_out.y).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert held_out.y[:12].tolist() == data.load()[1].y[:12].tolist()
    # No held-out image was trained on, and the pixels are the 17 levels of the original.
    seen = {image.tobytes() for image in training.x}
    assert not any(image.tobytes() in seen for image in held_out.x)
    assert set(np.unique(training.x * 16)) == set(range(17))


def test_the_checkpoint_reaches_its_accuracy(digits: tuple[Digits, Digits]) -> None:
    assert train.accuracy(model.load(), digits[1]) >= 99
    assert model.CHECKPOINT.stat().st_size < 200_000


def test_training_is_reproducible_and_learns(digits: tuple[Digits, Digits]) -> None:
    some = Digits(digits[0].x[:640], digits[0].y[:640])
    first, again = (train.train(some, epochs=10) for _ in range(2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert train.accuracy(first, digits[1]) > 90


def test_the_command_writes_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = data.load()[0]
    small = Digits(images[:64], labels[:64])
    monkeypatch.setattr(train, "load", lambda: (small, small))
    train.main(["-o", str(tmp_path / "digits.safetensors"), "--epochs", "1"])
    assert capsys.readouterr().out.endswith("% of 64 held-out digits\n")
    assert not model.load(tmp_path / "digits.safetensors").training


def test_the_network_has_one_of_everything(network: QuantizedNetwork) -> None:
    layers = {layer.name: layer for layer in network.layers}
    assert list(layers) == [
        "conv1", "conv2", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2",
        "maxpool", "avgpool", "linear",
    ]  # fmt: skip
    assert [t.source for t in layers["block1.conv2"].terms] == ["block1.conv1", "conv2"]
    assert [t.source for t in layers["block2.conv2"].terms] == ["block2.conv1", "block1.conv2"]
    assert layers["maxpool"].reduce == "max"
    assert network.input.planes == 2
    assert layers["conv2"].bias.size % network.block
    stored = [layer.output.signed for layer in network.layers if layer.output]
    assert stored == [False] * 5 + [True] * 3
    assert 500_000 < sum(network.macs().values()) < 1_000_000


def test_hardware_mode_equals_golden(
    digits: tuple[Digits, Digits], network: QuantizedNetwork
) -> None:
    images = digits[1].x[:60]
    assert not different_tensors(HardwareNetwork(network).compute(images), network.compute(images))


def test_the_saved_network_computes_the_same(
    digits: tuple[Digits, Digits], network: QuantizedNetwork, tmp_path: Path
) -> None:
    network.save(tmp_path / "digits.safetensors")
    loaded = QuantizedNetwork.load(tmp_path / "digits.safetensors")
    images = digits[1].x[:10]
    again, first = HardwareNetwork(loaded).compute(images), HardwareNetwork(network).compute(images)
    assert not different_tensors(again, first)


def test_four_bits_cost_less_than_a_point(
    digits: tuple[Digits, Digits], network: QuantizedNetwork
) -> None:
    result = evaluate(network, digits[1].x, digits[1].y)
    assert result.images == 360
    assert result.top1 >= train.accuracy(model.load(), digits[1]) - 1
    three = quantize(model.load(), digits[0].x[:256], QuantConfig(weight_bits=3, act_bits=3))
    assert evaluate(three, digits[1].x, digits[1].y).top1 >= 95


def test_the_report_of_the_example(digits: tuple[Digits, Digits]) -> None:
    images = digits[0].x[:256]
    network = quantize(model.load(), images, QuantConfig(method="l2"))
    report = measure(model.load(), network, images)
    layers = {layer.name: layer for layer in report.layers}
    assert layers["input"].output_sqnr_db == float("inf")  # the pixels lie on the grid
    assert layers["input"].saturated == 0
    assert layers["avgpool"].average_error == 0
    learnt = [x.weight_sqnr_db for x in report.layers if x.weight_sqnr_db is not None]
    assert len(learnt) == 7
    assert min(learnt) > 20  # four bits in blocks of 16
    assert report.sqnr_db > 12
    assert report.weight_bytes < report.float_bytes / 5


def test_the_files_of_the_report(
    digits: tuple[Digits, Digits], network: QuantizedNetwork, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    drawn: dict[str, Figure] = {}
    save = Figure.savefig

    def remember(figure: Figure, path: Path, **options: Any) -> None:
        drawn[path.name] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    images = digits[0].x[:64]
    costs = measure(model.load(), network, images)
    write_report(tmp_path, DEMO, as_graph(model.load(), images), network, costs)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.md", "weights.png", "sqnr.png", "result.json",
    }  # fmt: skip
    for plot in ("weights.png", "sqnr.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")

    # The input is stored exactly, the pools have no weights: neither has a bar of no height.
    (axis,) = drawn["sqnr.png"].axes
    weights = [layer.weight_sqnr_db for layer in costs.layers]
    tensors = [layer.output_sqnr_db for layer in costs.layers]
    values = [v for v in weights + tensors if v is not None and math.isfinite(v)]
    assert [patch.get_height() for patch in axis.patches] == values
    assert len(values) == 16
    assert [text.get_text().strip() for text in axis.texts] == ["exact"]

    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert found["compared"] == 4225
    assert found["rows"][0]["name"] == "conv1"
    assert found["layers"][0]["predicted"] == 150
    assert found["area"]["ecp5"]["lut"] == 4572
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "computed 2 images, each from one start command, and its\nengine 1 of them" in text
    assert "layer by layer: 0 mismatches in\n4225 numbers" in text
    assert "hardware: none.\n" in text
    assert "takes 700 cycles, predicted 700; the utilization is\n25.0%" in text
    assert "| the same on the accelerator | 2 of them | 50.00 % |" in text
    assert "| conv1 | 16x8x8 | 9216 | 144 | 25.0% | 2176 | 0 |" in text
    assert "| conv1 | 16x8x8 | 9216 | 150 | 150 | 24.0% | 2048 | 0 |" in text
    assert "| ecp5 | 4572 | 4610 | 4 | 8 |" in text
    assert re.search(r"^\| input \|  \| exact \| 0 of \d+ \|$", text, re.MULTILINE)
    for image in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / image).exists()


def test_a_missing_yosys_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(yosys, "version", version)
    monkeypatch.setattr(demo, "quantize", lambda *_: pytest.fail("the work began"))
    with pytest.raises(
        ToolError, match=r"^pyosys is not installed: pip install 'shiftcore\[synth\]'"
    ):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
