"""The command line: what it prints, and one clear line for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from shiftcore.cli import main
from shiftcore.examples.digits import data, model

ARRAY16 = Path(__file__).parent.parent / "examples" / "array16.toml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str) -> None:
    """Exit status, one line, and what it says."""
    assert result.exit_code != 0
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    training, held_out = data.load()
    program = torch.export.export(model.load(), (torch.from_numpy(training.x[:2]),))
    torch.export.save(program, tmp_path / "digits.pt2")
    np.savez(tmp_path / "calibration.npz", x=training.x[:64])
    np.savez(tmp_path / "test.npz", x=held_out.x[:50], y=held_out.y[:50])
    return tmp_path


def test_quantize_and_evaluate(digits: Path) -> None:
    network = digits / "net.safetensors"
    result = run(
        "quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o", network,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["layers"] == 9
    assert found["weight_bytes"] < found["float_bytes"] / 4
    assert found["sqnr_db"] > 10
    result = run("evaluate", network, "--data", digits / "test.npz", "--json")
    found = json.loads(result.stdout)
    assert found["images"] == 50
    assert found["top1"] >= 96
    assert found["images_per_s"] > 0


def test_verilog(tmp_path: Path) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 4\ncols = 2\n")
    result = run("verilog", "--hw", hardware, "-o", tmp_path / "x.v", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    text = (tmp_path / "x.v").read_text()
    assert found["top"] == "shiftcore"
    assert found["lines"] == text.count("\n")
    header = text[text.index("module shiftcore(") :].split(";")[0]
    listed = {name.strip() for name in header.split("(")[1].strip(" )").split(",")}
    assert set(found["ports"]) == listed
    assert found["ports"]["o_raw__payload"] == 2 * 32


def test_nan_weight_names_the_layer(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        network[2].weight[1, 2, 0, 0] = float("nan")
    images = torch.zeros(2, 1, 8, 8)
    torch.export.save(torch.export.export(network, (images,)), tmp_path / "bad.pt2")
    np.savez(tmp_path / "calibration.npz", x=images.numpy())
    calibration, output = tmp_path / "calibration.npz", tmp_path / "net.safetensors"
    refused(
        run("quantize", tmp_path / "bad.pt2", "--calib", calibration, "-o", output),
        "layer '2'", "NaN",
    )  # fmt: skip
    assert not output.exists()


def test_unsupported_layer_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus())
    images = torch.zeros(2, 1, 8, 8)
    torch.export.save(torch.export.export(network, (images,)), tmp_path / "bad.pt2")
    np.savez(tmp_path / "calibration.npz", x=images.numpy())
    refused(
        run("quantize", tmp_path / "bad.pt2", "--calib", tmp_path / "calibration.npz", "-o",
            tmp_path / "net.safetensors"),
        "'1'", "softplus",
    )  # fmt: skip


def test_wrong_block_size(digits: Path) -> None:
    refused(
        run("quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o",
            digits / "net.safetensors", "--block", "0"),
        "block must be", "not 0",
    )  # fmt: skip


def test_network_and_array_that_do_not_fit() -> None:
    from shiftcore.compiler.lower import check
    from shiftcore.golden.config import HardwareConfig
    from shiftcore.quant.convert import QuantConfig, quantize

    training, _ = data.load()
    network = quantize(model.load(), training.x[:16], QuantConfig(block=8))
    with pytest.raises(ValueError, match=r"blocks of 8 .* the array has 16 rows: quantize"):
        check(network, HardwareConfig.load(ARRAY16))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("rows = 4\ncols = 4\nweigth_bits = 4\n", "unknown key 'weigth_bits'; allowed are rows,"),
        ("rows = 4\n", "key 'cols' is missing"),
        (
            "rows = 4\ncols = 4\nact_bits = 9\n",
            "must be a whole number from 2 to 8, not 9",
        ),
        ("rows = 4\ncols = 4\nscale = 'int8'\n", "scale must be one of 'bf16'"),
        ("rows = \n", "is not TOML"),
    ],
)
def test_bad_hardware_file(tmp_path: Path, text: str, part: str) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text(text)
    output = tmp_path / "x.v"
    refused(run("verilog", "--hw", hardware, "-o", output), "hw.toml", part)
    assert not output.exists()


def test_missing_files(tmp_path: Path) -> None:
    refused(run("verilog", "--hw", tmp_path / "no.toml", "-o", tmp_path / "x.v"), "no.toml")
    refused(run("evaluate", tmp_path / "no.safetensors", "--data", "x.npz"), "no.safetensors")


def test_unknown_target() -> None:
    refused(run("synth", "--hw", ARRAY16, "--target", "stratix"), "ecp5", "stratix")


def test_missing_simulator(tmp_path: Path) -> None:
    """Without a compiler on the path the demo says what is missing; nothing is left running."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-P", "-m", "shiftcore.cli", "demo", "-o", "demo", "--images", "1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last == "Error: Verilator needs 'g++': apt-get install g++ make perl"
