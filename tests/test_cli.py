"""The command line: what it prints, and one clear line for bad input."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from shiftcore.cli import main
from shiftcore.examples.digits import data, demo, model
from shiftcore.frontend import archive
from shiftcore.golden.compare import Mismatch
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant import convert
from shiftcore.sim import accelerate
from shiftcore.sim.accelerate import AcceleratorRun
from shiftcore.tests.results import DEMO
from shiftcore.toolchain import nextpnr, yosys

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


def test_quantize_with_fixed_point_accumulators(digits: Path) -> None:
    network = digits / "net.safetensors"
    arguments = (
        "quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o", network,
        "--method", "l2", "--json",
    )  # fmt: skip
    result = run(*arguments, "--accumulator", "fixed24", "--margin-bits", 2)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["saturated_sums"] == 0
    assert QuantizedNetwork.load(network).accumulator == "fixed24"
    result = run("evaluate", network, "--data", digits / "test.npz", "--json")
    found = json.loads(result.stdout)
    assert found["top1"] >= 96
    assert found["saturated_sums"] == 0
    refused(run(*arguments, "--accumulator", "fixed41"), "'fixed20' to 'fixed40', not")
    refused(run(*arguments, "--margin-bits", 2), "--margin-bits", "--accumulator fixed32")
    fixed = ("--accumulator", "fixed32")
    refused(run(*arguments, *fixed, "--margin-bits", 9), "margin_bits must be 0 to 8, not 9")
    refused(run(*arguments, *fixed, "--scale", "fp16"), "scale must be bf16 or fp32", "'fp16'")


def learn(digits: Path, output: Path, *options: object) -> Result:
    return run(
        "quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o", output,
        "--weight-bits", 2, "--json", *options,
    )  # fmt: skip


def test_quantize_with_learning(digits: Path) -> None:
    networks = [digits / f"{name}.safetensors" for name in ("plain", "first", "again")]
    epochs = ("--epochs", 3, "--rate", 0.01, "--batch", 8, "--checkpoint", digits / "state.pt")
    found = [
        json.loads(learn(digits, network, "--method", "l2", *options).stdout)["sqnr_db"]
        for network, options in zip(networks, [(), epochs, epochs], strict=True)
    ]
    assert found[1] > found[0] + 0.5
    assert networks[1].read_bytes() == networks[2].read_bytes()  # from the checkpoint


def test_learning_needs_epochs(digits: Path) -> None:
    refused(learn(digits, digits / "net", "--rate", 0.1), "--rate is for learning", "--epochs")
    refused(learn(digits, digits / "net", "--epochs", 1, "--rate", -1), "rate must be a number")
    broken = digits / "broken.pt"
    broken.write_bytes(b"?")
    damaged = learn(digits, digits / "net", "--epochs", 1, "--checkpoint", broken)
    refused(damaged, f"checkpoint {broken} is damaged or no checkpoint")
    assert "quantizing" not in damaged.stderr
    assert not (digits / "net").exists()


def codes(network: QuantizedNetwork) -> np.ndarray:
    """Of all kernels."""
    kernels = (term.kernel for layer in network.layers for term in layer.terms)
    return np.concatenate([kernel.codes.ravel() for kernel in kernels])


def test_learning_in_two_processes(digits: Path) -> None:
    """Gradients are summed up in another order: a shadow close to a half may round otherwise."""
    output, single = digits / "net.safetensors", digits / "single.safetensors"
    options = ["--method", "l2", "--epochs", "2", "--rate", "0.1", "--batch", "8"]
    states = [digits / "two.pt", digits / "one.pt"]
    plain = digits / "plain.safetensors"
    learn(digits, plain, "--method", "l2")
    learn(digits, single, *options, "--checkpoint", states[1])
    done = subprocess.run(
        [
            sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--standalone", "-m", "shiftcore.cli", "quantize", digits / "digits.pt2", "--calib",
            digits / "calibration.npz", "-o", output, "--weight-bits", "2", "--json", *options,
            "--checkpoint", states[0],
        ],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["layers"] == 9  # printed once
    two, one, start = (QuantizedNetwork.load(path) for path in (output, single, plain))
    assert (codes(two) == codes(one)).mean() > 0.99
    assert (codes(two) != codes(start)).mean() > 0.02
    losses = [np.array(torch.load(state)["losses"]) for state in states]
    assert losses[0].shape == (16,)
    np.testing.assert_allclose(*losses, rtol=0.05)
    # The first step starts from the same network.
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)


def test_report(digits: Path) -> None:
    network, output = digits / "net.safetensors", digits / "report"
    run(
        "quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o", network,
        "--weight-bits", 3,
    )  # fmt: skip
    result = run("report", network, "-o", output, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["file_bytes"] == network.stat().st_size
    names = [layer["name"] for layer in found["layers"]]
    assert names[0] == "conv1"
    assert len(names) == 9
    total = found["total"]
    assert total["scale_bytes"] == 2 * total["blocks"]
    for key in ("blocks", "code_bytes", "scale_bytes", "bias_bytes", "macs", "float_multiplies"):
        assert total[key] == sum(layer[key] for layer in found["layers"])
    assert (total["macs"], total["weights"]) == (630_080, 39_248)
    stored = total["code_bytes"] + total["scale_bytes"] + total["bias_bytes"]
    assert total["percent"] == 100 * stored / total["float_bytes"]
    bits = 8 * (total["code_bytes"] + total["scale_bytes"])
    assert total["bits_per_weight"] == bits / total["weights"]
    assert total["percent_by"]["fp16"] < total["percent_by"]["fp32"] < total["percent_by"]["v1"]
    assert 1 < total["speedup"]["2"] < total["speedup"]["10"] < total["speedup_bound"]
    assert 0.5 < total["largest_int_time"] < 1
    slow = json.loads(run("report", network, "--eta", 1, "--json").stdout)["total"]
    assert slow["largest_int_time"] == total["largest_int_time"] / 2
    assert slow["speedup"]["2"] < total["speedup"]["2"]
    assert "largest T_int/T_FP" in (output / "report.md").read_text()
    assert run("report", network, "--eta", -1).exit_code != 0
    text = (output / "report.md").read_text()
    for image in ("size.svg", "bits.svg"):
        assert f"({image})" in text
        assert (output / image).read_text().startswith("<?xml")

    result = run("report", network, "-o", output)  # again, over the files that are there
    assert result.exit_code == 0, result.output
    assert (output / "report.md").read_text() == text
    assert sorted(path.name for path in output.iterdir()) == ["bits.svg", "report.md", "size.svg"]
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("│ all ")]
    expected = f"{total['weights']:,}", f"{total['percent']:.2f}", f"{total['macs']:,}"
    assert tuple(row[3] for row in rows) == expected


def test_report_of_a_model(digits: Path) -> None:
    result = run("report", digits / "digits.pt2", "--json")
    assert result.exit_code == 0, result.output
    default = json.loads(result.stdout)["total"]
    options = "--weight-bits", 3, "--block", 8, "--scale", "fp32"
    found = json.loads(run("report", digits / "digits.pt2", *options, "--json").stdout)["total"]
    assert found["macs"] == default["macs"] == 630_080
    assert 4 * found["code_bytes"] == 3 * default["code_bytes"]
    assert found["scale_bytes"] == 4 * found["blocks"]
    assert default["scale_bytes"] == 2 * default["blocks"]
    assert found["float_multiplies"] > default["float_multiplies"]


def test_report_refusals(digits: Path) -> None:
    model, network = digits / "digits.pt2", digits / "net.safetensors"
    refused(run("report", digits / "none.safetensors"), "no network file at", "none.safetensors")
    refused(run("report", digits / "none.pt2"), "no model file at", "none.pt2")
    refused(run("report", digits / "test.npz"), "test.npz is no safetensors file")
    refused(run("report", model, "--weight-bits", 9), "weight_bits must be 2 to 8, not 9")
    refused(run("report", model, "--scale", "int8"), "scale must be bf16 or", "'int8'")
    refused(run("report", model, "-o", digits / "a" / "b"), f"{digits / 'a'}: no such folder")
    run("quantize", model, "--calib", digits / "calibration.npz", "-o", network)
    refused(
        run("report", network, "--weight-bits", 3),
        "--weight-bits is for a model (.pt2)", "net.safetensors says how it is quantized",
    )  # fmt: skip
    assert sorted(path.name for path in digits.iterdir()) == [
        "calibration.npz", "digits.pt2", "net.safetensors", "test.npz",
    ]  # fmt: skip


def test_search_bits(digits: Path) -> None:
    output = digits / "search"
    hardware = digits / "hw.toml"
    hardware.write_text("rows = 4\ncols = 8\nweight_bits = 3\n")
    command = (
        "search-bits", digits / "digits.pt2", "--calib", digits / "test.npz", "--hw", hardware,
        "--act-bits", 4, "--blocks", 16, "--points", 2, "-o", output,
    )  # fmt: skip
    result = run(*command, "--budget-bytes", 20_000, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    chosen = found["chosen"]
    assert chosen in found["front"]
    assert chosen["bytes"] <= 20_000
    assert set(chosen["weight_bits"].values()) <= {2, 3}  # 4 and 8 are wider than the array
    assert len(set(chosen["weight_bits"].values())) == 2
    # The cycles are those of the network on an array with as many rows as its blocks.
    hardware.write_text("rows = 16\ncols = 8\nweight_bits = 3\n")
    build = "compile", output / "net.safetensors", "--hw", hardware, "-o", digits / "build"
    compiled = json.loads(run(*build, "--json").stdout)
    assert compiled["cycles"] == chosen["cycles"]

    # Scales and accumulators are those of the hardware.
    hardware.write_text('rows = 4\ncols = 8\nweight_bits = 3\naccumulator = "fixed24"\n')
    result = run(*command, "--budget-cycles", chosen["cycles"])
    assert result.exit_code == 0, result.output
    assert QuantizedNetwork.load(output / "net.safetensors").accumulator == "fixed24"
    within = json.loads((output / "front.json").read_text())["chosen"]
    assert within["bytes"] > 20_000
    assert within["cycles"] <= chosen["cycles"]
    assert f"{within['cycles']:,}" in result.stdout
    assert "*" in result.stdout
    few = within["cycles"] - 1
    refused(run(*command, "--budget-cycles", few), f"no network takes {few} cycles or less")
    refused(run(*command), "--budget-bytes", "--budget-cycles")
    refused(run(*command, "--budget-bytes", 9, "--weight-bits", "4,8"), "hw.toml", "3-bit")
    refused(run(*command, "--budget-bytes", 9, "--weight-bits", "1,2"), "weight_bits must be 2 to")
    result = run(*command, "--budget-bytes", 9, "--weight-bits", "2;3")
    assert result.exit_code == 2
    assert "'2;3' must be whole numbers with commas between them" in result.stderr
    command = (*command[:4], *command[6:])
    refused(run(*command, "--budget-cycles", 9), "--budget-cycles needs --hw")


def test_search_bits_of_fixed_point(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin moves the grids; what differs from the hardware is refused before the work."""
    command = (
        "search-bits", digits / "digits.pt2", "--calib", digits / "test.npz", "-o", digits / "s",
        "--budget-bytes", 30_000, "--act-bits", 4, "--blocks", 16, "--weight-bits", 4,
        "--accumulator", "fixed28",
    )  # fmt: skip
    exponents = []
    for margin in (0, 3):
        result = run(*command, "--margin-bits", margin, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["chosen"]["accumulator"] == "fixed28"
        layers = QuantizedNetwork.load(digits / "s" / "net.safetensors").layers
        exponents.append([layer.grid.exponent for layer in layers if layer.grid])
    assert exponents[1] == [exponent + 3 for exponent in exponents[0]]
    monkeypatch.setattr(archive, "read", lambda *_: pytest.fail("the work began"))
    hardware = digits / "hw.toml"
    hardware.write_text('rows = 16\ncols = 8\naccumulator = "fixed28"\nscale = "e8m0"\n')
    hw = (*command, "--hw", hardware)
    other = "hw.toml has accumulator = 'fixed28': --accumulator must be that, not 'fixed24'"
    refused(run(*hw, "--accumulator", "fixed24"), other)
    refused(run(*hw, "--scale", "bf16"), "scale = 'e8m0': --scale must be that, not 'bf16'")
    allowed = "accumulator must be one of 'float32', 'fixed20' to 'fixed40', not 'fixed41'"
    refused(run(*command, "--accumulator", "fixed41"), allowed)


@pytest.mark.parametrize("command", ["search-bits", "report"])
def test_plots_without_matplotlib_are_refused_before_the_work(
    digits: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(archive, "read", lambda *_: pytest.fail("the work began"))
    options = {
        "search-bits": ["--calib", digits / "calibration.npz", "--budget-bytes", 20_000],
        "report": [],
    }
    result = run(command, digits / "digits.pt2", *options[command], "-o", digits / "plots")
    refused(result, "Error: matplotlib is not installed: pip install 'shiftcore[all]'")
    assert not (digits / "plots").exists()


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
    assert found["ports"]["m_axi_rdata"] == 64


def test_project(tmp_path: Path) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 2\ncols = 2\n")
    arguments = ("project", "--hw", hardware, "-o", tmp_path / "project", "--json")
    result = run(*arguments, "--tool", "diamond", "--clock", "75")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "part": "LFE5U-85F-8BG381C",
        "open": "diamondc project.tcl && diamond project.ldf",
        "files": ["hardware.toml", "project.tcl", "shiftcore.lpf", "shiftcore.v"],
    }
    assert "75.000 MHz" in (tmp_path / "project" / "shiftcore.lpf").read_text()
    assert result.stderr == ""
    refused(run(*arguments, "--tool", "vivado"), "project is not an empty folder")
    hardware.write_text("rows = 2\ncols = 2\nscale_multiplier = 'ecp5-dsp'\n")
    for tool, target in (("vivado", "xc7z020clg400-1"), ("fusesoc", "a fusesoc project")):
        made = run("project", "--hw", hardware, "-o", tmp_path / tool, "--json", "--tool", tool)
        said = "scale_multiplier 'dsp' instead of 'ecp5-dsp'; same numbers and cycles"
        assert made.stderr == f"for {target}: {said}\n"
        assert "dsp" in (tmp_path / tool / "hardware.toml").read_text()
    refused(run(*arguments, "--tool", "ise"), "tool must be one of vivado, quartus, gowin, ")


def test_compile_and_run(digits: Path) -> None:
    network, hardware, build = digits / "net.safetensors", digits / "hw.toml", digits / "build"
    hardware.write_text("rows = 16\ncols = 4\nbuffer_depth = 4096\n")
    result = run(
        "quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o", network
    )
    assert result.exit_code == 0, result.output
    result = run("compile", network, "--hw", hardware, "-o", build, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["instructions"] > 30
    assert report["dram_bytes"] > report["weight_bytes"] > 20_000
    assert len(report["layers"]) == 9
    data = digits / "test.npz"
    result = run("run", build, "--data", data, "--on", "golden", "--json")
    assert result.exit_code == 0, result.output
    golden = json.loads(result.stdout)
    assert golden["images"] == 50
    assert golden["top1"] >= 96
    result = run("run", build, "--data", data, "--on", "rtl", "--limit", 3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["bit_exact"], found["mismatches"]) == (3, True, 0)
    assert found["compared"] > 10_000
    assert len(found["cycles"]) == 3
    assert found["utilization"] == 3 * found["macs"] / (sum(found["cycles"]) * 64)

    result = run("estimate", build, "--clock", 125, "--json")
    assert result.exit_code == 0, result.output
    estimate = json.loads(result.stdout)
    assert [estimate["cycles"]] * 3 == found["cycles"]
    assert estimate["images_per_s"] == 125e6 / estimate["cycles"]
    assert sum(layer["cycles"] for layer in estimate["layers"]) == estimate["cycles"]
    assert estimate["utilization"] == estimate["macs"] / (estimate["cycles"] * 64)
    compiled = {key: value for key, value in report.items() if key in estimate}
    for layer in compiled["layers"]:
        assert (layer.pop("chunks"), layer.pop("on_chip")) == (1, layer["name"] != "linear")
    assert compiled == {key: estimate[key] for key in compiled}
    imported = json.loads(run("import", digits / "digits.pt2", "--json").stdout)
    assert imported["macs"] == report["macs"] == golden["macs"] == found["macs"] == 630_080
    assert sum(layer["macs"] for layer in estimate["layers"]) == estimate["macs"] == 630_080
    slow = json.loads(run("estimate", build, "--latency", 200, "--gap", 3, "--json").stdout)
    assert "images_per_s" not in slow
    assert slow["cycles"] > estimate["cycles"]
    result = run("estimate", build, "--clock", 125)
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("│")] == [
        *(layer["name"] for layer in estimate["layers"]), "all",
    ]  # fmt: skip
    assert "images per s" in result.stdout
    result = run("estimate", build, "--target", "ecp5-85k-8", "--json")
    taken = json.loads(result.stdout)
    assert taken["images_per_s"] == 1e6 * taken["fmax_mhz"] / taken["cycles"]
    hardware = build / "hardware.toml"
    alone = json.loads(run("estimate", "--hw", hardware, "--target", "ecp5-85k-8", "--json").stdout)
    assert alone == {key: taken[key] for key in ("lut", "ff", "dsp", "bram", "fmax_mhz")}
    shown = run("estimate", "--hw", hardware, "--target", "ice40-up5k").stdout
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    (bram,) = (row for row in cells if "BRAM" in row)
    assert bram[3] == "30"
    assert float(bram[4].removesuffix("%")) > 100
    refused(run("estimate"), "needs a build folder or --hw, one of them")
    refused(run("estimate", build, "--hw", hardware), "needs a build folder or --hw, one of them")
    refused(run("estimate", "--hw", hardware), "--hw needs --target")
    for option, value in (("--latency", -1), ("--latency", 10**20), ("--gap", 10**6)):
        result = run("estimate", build, option, value)
        assert result.exit_code == 2
        assert f"'{option}': {value} is not in the range" in result.stderr
    for clock, reason in (("inf", "is not in the range"), (0, "is not in"), ("nan", "is no clock")):
        result = run("estimate", build, "--clock", clock)
        assert result.exit_code == 2
        assert "'--clock': " in result.stderr
        assert reason in result.stderr

    (build / "program.json").write_text("{}")
    result = run("run", build, "--data", data, "--on", "golden")
    refused(result, "program.json", "differs from the manifest; compile again")
    refused(run("run", digits / "none", "--data", data, "--on", "golden"), "manifest.json")
    refused(run("estimate", build), "program.json", "differs from the manifest; compile again")


def test_a_difference_fails_the_run(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, hardware, build = digits / "net.safetensors", digits / "hw.toml", digits / "build"
    hardware.write_text("rows = 16\ncols = 4\nbuffer_depth = 4096\n")
    calibration = digits / "calibration.npz"
    run("quantize", digits / "digits.pt2", "--calib", calibration, "-o", network)
    run("compile", network, "--hw", hardware, "-o", build)
    where = Mismatch(0, 0, "conv1", 1, 2, 3, "code", 4, 5)
    wrong = AcceleratorRun(
        np.zeros((1, 64), np.uint8), Counter(conv1=9), Counter(conv1=1), 0, where, 1235,
        ({"cycles": 10},), (0,), 1.0,
    )  # fmt: skip
    monkeypatch.setattr(accelerate, "run_program", lambda *_, **__: wrong)
    arguments = "run", build, "--data", digits / "test.npz", "--on", "rtl"
    result = run(*arguments)
    assert result.exit_code == 1
    message = "layer 'conv1', pixel (1, 2), channel 3: code must be 4, not 5 (stored at 1235 ns)"
    assert message in result.stderr
    # All words as expected, but not what is in memory.
    wrong = replace(wrong, wrong=Counter(), wrong_bytes=2, first=None)
    result = run(*arguments)
    assert result.exit_code == 1
    assert (
        "differ: image 0: 2 bytes of OUTPUT; every word that DRAIN wrote is right" in result.stderr
    )
    refused(run(*arguments, "--waves", digits / "none" / "x.vcd"), "none: no such folder")


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


@pytest.mark.parametrize("command", ["quantize", "verilog"])
def test_a_folder_that_is_missing_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    output = tmp_path / "nodir" / "file"
    monkeypatch.setattr(convert, "quantize", lambda *_: pytest.fail("the work began"))
    arguments = {
        "quantize": ["model.pt2", "--calib", tmp_path / "images.npz"],
        "verilog": ["--hw", tmp_path / "hw.toml"],
    }
    result = run(command, *arguments[command], "-o", output)
    refused(result, f"Error: {tmp_path / 'nodir'}: no such folder")
    monkeypatch.chdir(tmp_path)
    refused(run(command, *arguments[command], "-o", "nodir/file"), "Error: nodir: no such folder")
    # The current folder is there; the next thing that is missing is named.
    result = run(command, *arguments[command], "-o", "file")
    refused(result, "images.npz" if command == "quantize" else "hw.toml")


def test_a_network_that_cannot_be_written(digits: Path) -> None:
    """What the safetensors library raises is no ValueError."""
    (digits / "net.safetensors.part").mkdir()
    refused(
        run("quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o",
            digits / "net.safetensors"),
        "directory",
    )  # fmt: skip


def test_images_that_cannot_be_read(digits: Path) -> None:
    (digits / "calibration.npz").write_bytes(b"no archive")
    refused(
        run("quantize", digits / "digits.pt2", "--calib", digits / "calibration.npz", "-o",
            digits / "net.safetensors"),
        "calibration.npz is damaged or no npz archive",
    )  # fmt: skip


def test_synth(tmp_path: Path) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 1\ncols = 1\n")
    result = run("synth", "--hw", hardware, "--target", "ecp5", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["dsp"], found["bram"]) == (1, 12)
    assert 2000 < found["lut"] < 20_000
    assert found["fmax_mhz"] is found["critical_path"] is None
    assert found["utilization"] == {}
    # The same synthesis; the device only adds what it holds, and its clock is estimated.
    result = run("synth", "--hw", hardware, "--target", "ecp5-85k-8", "--json")
    on_device = json.loads(result.stdout)
    assert on_device["utilization"]["bram"] == 12 / 208
    assert 50 < on_device["estimate"].pop("fmax_mhz") < 150
    assert found["estimate"].pop("fmax_mhz") is None
    assert {**on_device, "target": "ecp5", "utilization": {}} == found
    result = run("synth", "--hw", hardware, "--target", "ecp5-85k-8")
    assert result.exit_code == 0
    assert f"{found['lut']:,}" in result.stdout
    assert "5.8%" in result.stdout


def test_synth_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 1\ncols = 1\n")
    counted = yosys.Resources(9000, 100, 0, 33, {})
    monkeypatch.setattr(yosys, "synthesize", lambda *arguments: counted)
    excess = "9000 of 7680 LUT, 33 of 32 BRAM"
    command = ("synth", "--hw", hardware, "--target", "ice40-hx8k")
    refused(run(*command, "--pnr"), f"{hardware} does not fit ice40-hx8k: {excess}")
    # What it takes is an answer where nothing has to be placed.
    counts = run(*command, "--json")
    assert (counts.exit_code, json.loads(counts.stdout)["lut"]) == (0, 9000)
    assert counts.stderr == f"{hardware} takes more than ice40-hx8k holds: {excess}\n"
    assert run(*command[:-1], "ice40").stderr == ""
    refused(
        run("synth", "--hw", hardware, "--target", "xc7a35t", "--pnr"),
        "xc7a35t cannot be placed and routed; ecp5-25k-6,",
    )


def test_an_estimate_says_what_does_not_fit(tmp_path: Path) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text('rows = 2\ncols = 2\nscale_multiplier = "dsp"\n')
    for target, blocks in (("ice40-hx8k", True), ("ice40-up5k", False)):
        result = run("estimate", "--hw", hardware, "--target", target, "--json")
        assert (result.exit_code, json.loads(result.stdout)["dsp"]) == (0, 2)
        assert result.stderr.startswith(f"{hardware} is estimated at more than {target} holds: ")
        assert ("2 of 0 DSP" in result.stderr) == blocks
    assert run("estimate", "--hw", hardware, "--target", "ice40").stderr == ""


def test_synth_reports_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hardware = tmp_path / "hw.toml"
    hardware.write_text("rows = 1\ncols = 1\n")
    monkeypatch.setattr(yosys, "synthesize", lambda *arguments: yosys.Resources(900, 100, 0, 3, {}))
    path = nextpnr.CriticalPath("engine.issue.held", "engine.array.total", 4.0, 6.0, 7)
    timing = nextpnr.Timing((100.0, 90.0, 110.0), (path, path, path))
    asked = []

    def place(design, top, target, *, seeds):
        asked.append((target, list(seeds)))
        return timing

    monkeypatch.setattr(nextpnr, "place_and_route", place)
    command = ("synth", "--hw", hardware, "--target", "ecp5-25k-8", "--pnr", "--seeds", 3)
    found = json.loads(run(*command, "--json").stdout)
    assert found["fmax_mhz"] == 100.0
    assert found["fmax_mhz_by_seed"] == [100.0, 90.0, 110.0]
    assert found["critical_path"]["end"] == "engine.array.total"
    assert asked == [("ecp5-25k-8", [1, 2, 3])]
    shown = run(*command).stdout
    assert "Fmax 100.0 MHz, 90.0 to 110.0 over 3 seeds" in shown
    assert "engine.issue.held → engine.array.total: 4.0 ns logic in 7 levels" in shown


def demo_with(monkeypatch: pytest.MonkeyPatch, *options: object, **changes: object) -> Result:
    """The demo where the run itself finds `DEMO` with `changes`."""
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: replace(DEMO, **changes))
    return run("demo", "-o", "nowhere", *options)


def test_a_good_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    result = demo_with(monkeypatch)
    assert result.exit_code == 0
    rows = [re.findall(r"[\w.%]+", x) for x in result.stdout.splitlines() if "conv1" in x]
    assert rows == [
        ["conv1", "16x8x8", "9216", "144", "25.0%", "2176", "0"],
        ["conv1", "16x8x8", "9216", "150", "150", "24.0%", "2048", "0"],
    ]
    assert "an image takes 700 cycles, predicted 700; utilization 25.0%" in result.stdout
    assert "top-1 on the accelerator 50.00 %; on all held-out images float 99.72 %" in result.stdout
    assert "0 mismatches in 4225 numbers; see nowhere/report.md" in result.stdout
    assert "4572" in result.stdout
    result = demo_with(monkeypatch, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found.keys() >= {
        "images", "bit_exact", "mismatches", "cycles", "macs", "utilization", "sim_cycles_per_s",
        "top1",
    }  # fmt: skip
    assert (found["bit_exact"], found["mismatches"], found["cycles"]) == (True, 0, [700, 700])
    assert found["rows"][0]["name"] == "conv1"


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bit_exact": False, "mismatches": 1, "difference": "image 1, layer 'conv1'"},
            "Error: hardware and golden model differ: image 1, layer 'conv1'",
        ),
        ({"counters_exact": False}, "Error: predicted and measured counters differ"),
        (
            {"cycles_exact": False},
            "Error: predicted and measured cycles of a layer by itself differ",
        ),
    ],
    ids=["mismatch", "counters", "cycles"],
)
def test_a_demo_that_fails(
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    changes: dict[str, object],
    message: str,
) -> None:
    """What was found is printed all the same; then one line says what is wrong."""
    result = demo_with(monkeypatch, *options, **changes)
    assert result.exit_code == 1
    assert "conv1" in result.stdout
    assert result.stderr.strip() == message


def test_unknown_target() -> None:
    refused(run("synth", "--hw", ARRAY16, "--target", "stratix"), "ecp5", "stratix")


def test_cells_of_another_family(tmp_path: Path) -> None:
    """Where they are not, the plain form is taken, and one line says so."""
    results = []
    for style in ("ecp5-carry", "lut"):
        hardware = tmp_path / "hw.toml"
        hardware.write_text(f"rows = 1\ncols = 1\ncontrol = 'serial'\nmultiplier = '{style}'\n")
        for command in ("synth", "estimate"):
            results.append(run(command, "--hw", hardware, "--target", "ice40", "--json"))
            assert results[-1].exit_code == 0
    line = "for ice40: multiplier 'lut' instead of 'ecp5-carry'; same numbers and cycles\n"
    assert [result.stderr for result in results] == [line, line, "", ""]
    figures = [json.loads(result.stdout) for result in results]
    assert figures[:2] == figures[2:]


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
