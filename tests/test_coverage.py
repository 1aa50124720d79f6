"""`shiftcore import`: every layer is listed, and so is every one that is not supported."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from shiftcore.cli import main
from shiftcore.quant.coverage import coverage


class Mixed(nn.Module):
    """Two layers that are not supported, and what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.SiLU()
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Conv2d(4, 2, 1)
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.linear = nn.Linear(2, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.up(self.act(self.conv(x))))
        return self.linear(self.pool(x).mean((2, 3)))


EXAMPLE = torch.zeros(2, 3, 8, 8)


def report(path: Path, model: nn.Module, *options: str, dynamic: bool = False) -> Result:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (EXAMPLE,), dynamic_shapes=shapes), path)
    return CliRunner().invoke(main, ["import", str(path), *options])


@pytest.mark.parametrize("dynamic", [False, True])
def test_all_that_is_not_supported_is_collected(tmp_path: Path, dynamic: bool) -> None:
    result = report(tmp_path / "mixed.pt2", Mixed(), "--json", dynamic=dynamic)
    assert result.exit_code != 0
    found = json.loads(result.stdout)
    assert set(found) == {"layers", "macs", "on_array", "unsupported"}
    problems = {entry["name"]: entry for entry in found["unsupported"]}
    assert list(problems) == ["act", "up", "pool"]
    assert problems["act"]["op"] == "aten.silu.default"
    assert problems["act"]["remedy"] == "use ReLU or ReLU6"
    assert problems["pool"]["problem"] == "count_include_pad=False is not supported"
    layers = {entry["name"]: entry for entry in found["layers"]}
    assert layers["conv"] == {
        "name": "conv", "op": "conv2d", "shape": [8, 8, 8], "macs": 64 * 8 * 27, "on_array": True,
    }  # fmt: skip
    assert layers["up"]["macs"] == 64 * 8 * 4 * 4
    assert layers["last"]["macs"] == 256 * 4 * 2
    assert layers["linear"]["macs"] == 10
    assert [name for name, layer in layers.items() if not layer["on_array"]] == list(problems)
    total = sum(layer["macs"] for layer in layers.values())
    assert found["macs"] == total
    assert found["on_array"] == (total - layers["up"]["macs"]) / total


def test_a_supported_network_succeeds(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 5))
    result = report(tmp_path / "net.pt2", model, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [layer["op"] for layer in found["layers"]] == ["conv2d", "clamp", "flatten", "linear"]
    assert found["macs"] == 36 * 4 * 27 + 720
    assert (found["on_array"], found["unsupported"]) == (1, [])
    result = report(tmp_path / "net.pt2", model)
    assert result.exit_code == 0
    assert "4 layers" in result.stdout
    assert "100.0%" in result.stdout


def test_the_table_names_the_remedies(tmp_path: Path) -> None:
    result = report(tmp_path / "mixed.pt2", Mixed())
    assert result.exit_code != 0
    assert "layer 'act' aten.silu.default: not supported; use ReLU or ReLU6\n" in result.stderr
    assert result.stderr.rstrip().endswith("mixed.pt2 are not supported")


def test_what_the_machine_cannot_compute_is_a_problem_too(tmp_path: Path) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(192), nn.Linear(192, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.norm(torch.flatten(x, 1)))

    found = coverage(Normalised().eval(), EXAMPLE)
    (problem,) = found.unsupported
    assert problem.name == "norm"
    assert "batch norm of 192 features after a flatten" in problem.problem
    assert problem.remedy == "normalise before the flatten"
    assert [layer.name for layer in found.layers if not layer.on_array] == ["norm"]


def test_a_network_with_two_results_is_a_problem() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    found = coverage(Two().eval(), EXAMPLE)
    assert [problem.problem for problem in found.unsupported] == [
        "the network must have one output, not 2"
    ]


def test_a_bad_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"no archive")
    result = CliRunner().invoke(main, ["import", str(tmp_path / "x.pt2")])
    assert result.exit_code != 0
    (line,) = result.stderr.strip().splitlines()
    assert "is no torch.export archive" in line
