"""The command `shiftcore compile` and the folder that it writes."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shiftcore.cli import main
from shiftcore.compiler.build import load_build
from shiftcore.compiler.network import compile_with_plan
from shiftcore.estimate.accelerator import predict
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.tests.compiler.compare import assert_computes
from shiftcore.tests.compiler.test_network import bottleneck

CONFIG = HardwareConfig(4, 4, buffer_depth=100)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    network, hardware = tmp_path / "net.safetensors", tmp_path / "hw.toml"
    bottleneck(CONFIG).save(network)
    hardware.write_text(CONFIG.dumps())
    return network, hardware


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, part: str) -> None:
    assert result.exit_code != 0
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert part in line


def test_compile(files: tuple[Path, Path], tmp_path: Path):
    network, hardware = files
    folder = tmp_path / "new" / "build"
    result = run("compile", network, "--hw", hardware, "-o", folder, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    compiled = compile_with_plan(QuantizedNetwork.load(network), CONFIG)
    program = compiled.program
    assert found["instructions"] == len(program.instructions)
    assert found["weight_bytes"] == len(program.weights)
    assert found["dram_bytes"] == compiled.read_bytes + compiled.written_bytes
    assert found["macs"] == program.macs == sum(layer["macs"] for layer in found["layers"])
    assert [layer["chunks"] for layer in found["layers"]] == [x.chunks for x in compiled.layers]
    assert [layer["on_chip"] for layer in found["layers"]] == [x.kept for x in compiled.layers]
    assert 0 < found["tensors_on_chip"] < len(compiled.layers)
    assert found["cycles"] == predict(program).cycles

    loaded, copy = load_build(folder)
    assert loaded.instructions == program.instructions
    assert_computes(loaded, copy, images=1)
    hashes = json.loads((folder / "manifest.json").read_text())
    written = {path.name for path in folder.iterdir()}
    assert written == {*hashes, "manifest.json"}
    for name, value in hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value
    assert [path.name for path in folder.parent.iterdir()] == ["build"]


def test_compile_again_over_the_folder(files: tuple[Path, Path], tmp_path: Path):
    network, hardware = files
    folder = tmp_path / "build"
    arguments = ("compile", network, "--hw", hardware, "-o", folder)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    rows = [line.strip("│ ").split("│") for line in result.stdout.splitlines() if "│" in line]
    shown = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in shown] == [*(f"layer{k}" for k in range(len(rows) - 1)), "all"]
    for column in (1, 2, *range(4, 9)):
        cells = [int(row[column]) for row in shown]
        assert sum(cells[:-1]) == cells[-1]
    assert "dram bytes" in result.stdout
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "mine.txt").write_text("stays")
    assert run(*arguments, "--json").exit_code == 0
    assert (folder / "mine.txt").read_text() == "stays"
    assert {name: (folder / name).read_bytes() for name in first} == first


def test_another_network_is_refused(files: tuple[Path, Path], tmp_path: Path):
    network, hardware = files
    folder = tmp_path / "build"
    assert run("compile", network, "--hw", hardware, "-o", folder).exit_code == 0
    bottleneck(CONFIG, 12).save(folder / "network.safetensors")
    refused(run("estimate", folder), "network.safetensors: differs from the manifest")
    (folder / "network.safetensors").unlink()
    refused(run("estimate", folder), "no network file at")
    refused(run("estimate", tmp_path), "manifest.json: cannot be read")
    for text, message in (("[1]", "names no files"), ("{", "is not JSON")):
        (folder / "manifest.json").write_text(text)
        refused(run("estimate", folder), f"manifest.json: {message}")


def test_bad_input_writes_nothing(files: tuple[Path, Path], tmp_path: Path):
    network, hardware = files
    hardware.write_text("rows = 8\ncols = 4\n")
    for arguments, part in (
        ((network, "--hw", hardware), "the network has blocks of 4 channels"),
        ((tmp_path / "none", "--hw", hardware), "no network file"),
        ((network, "--hw", tmp_path / "none"), "cannot be read"),
    ):
        refused(run("compile", *arguments, "-o", tmp_path / "build", "--json"), part)
        assert not (tmp_path / "build").exists()
