"""Bitstreams: every board's plan, a small design all the way, and what is refused."""

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from click.testing import CliRunner

from shiftcore.cli import main
from shiftcore.compiler.build import save_build
from shiftcore.compiler.network import compile_network
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.link import Fault
from shiftcore.tests.test_standalone import network
from shiftcore.toolchain import boards, yosys
from shiftcore.toolchain.boards import BOARDS, Board, find_board, implement
from shiftcore.toolchain.yosys import ToolError

ECHO = """
module echo(input clk, rst, i_line, output reg o_line);
  reg [3:0] delay;
  always @(posedge clk)
    if (rst) {o_line, delay} <= 5'b11111; else {o_line, delay} <= {delay, i_line};
endmodule
"""
MEMORY = """
module much(input clk, rst, i_line, output reg o_line);
  reg memory [0:500000];
  reg [18:0] at;
  always @(posedge clk) begin
    at <= {at, i_line};
    if (i_line) memory[at] <= rst;
    o_line <= memory[~at];
  end
endmodule
"""


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_plans(board: Board):
    """Amaranth knows every board's pins, clock and commands, all of which are known here too."""
    plan = board.plan(ECHO, "echo", 1)
    commands = json.loads(plan.files["build_top.json"])["commands"]
    assert commands[0][0] == "yosys"
    assert {command[0] for command in commands[1:]} <= set(boards._TOOLS)
    assert "report.json" in commands[1]
    pins = next(
        text.decode() if isinstance(text, bytes) else text
        for name, text in plan.files.items()
        if name.endswith((".lpf", ".pcf"))
    )
    assert "uart_0__rx" in pins
    assert "uart_0__tx" in pins
    assert "FREQUENCY" in pins.upper()
    assert board.clock_mhz in (12, 25, 50)


def test_pins_of_the_ulx3s():
    """As https://github.com/emard/ulx3s has them: the FTDI's transmitter is on M1."""
    pins = BOARDS["ulx3s-85f"].plan(ECHO, "echo", 1).files["top.lpf"]
    text = pins.decode() if isinstance(pins, bytes) else pins
    for name, site in (("clk25_0__io", "G2"), ("uart_0__rx__io", "M1"), ("uart_0__tx__io", "L4")):
        assert f'LOCATE COMP "{name}" SITE "{site}";' in text


def test_a_bitstream():
    image = implement(ECHO, "echo", BOARDS["ulx3s-12f"])
    assert image.suffix == ".bit"
    # The preamble of an ECP5 bitstream.
    assert b"\xff\xff\xbd\xb3" in image.bitstream[:400]
    assert len(image.bitstream) > 10_000
    assert image.clock_mhz == 25 < image.fmax_mhz
    # Two more registers hold Amaranth's reset after power-on.
    assert (image.ff, image.dsp, image.bram) == (5 + 2, 0, 0)
    assert image == implement(ECHO, "echo", BOARDS["ulx3s-12f"])


def test_a_clock_that_is_too_fast(monkeypatch):
    monkeypatch.setattr(Board, "clock_mhz", 5000.0)
    message = (
        r"^ulx3s-12f: the design reaches [\d.]+ MHz, the board's clock has 5000; critical path "
        r"\S+ → \S+: [\d.]+ ns logic in \d+ levels, [\d.]+ ns routing$"
    )
    with pytest.raises(ToolError, match=message):
        implement(ECHO, "echo", BOARDS["ulx3s-12f"])


def test_a_design_that_is_too_large():
    message = r"^icebreaker is too small: the design takes \d+ of 30 BRAM$"
    with pytest.raises(ToolError, match=message):
        implement(MEMORY, "much", BOARDS["icebreaker"])


def test_tools_that_are_missing(monkeypatch, tmp_path: Path):
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(yosys, "version", version)
    message = r"^amaranth-boards is not installed: pip install 'shiftcore\[synth\]'$"
    with pytest.raises(ToolError, match=message):
        implement(ECHO, "echo", replace(BOARDS["ulx3s-25f"]))  # which knows no platform yet


def test_unknown_board():
    with pytest.raises(ValueError, match=r"^board must be one of ulx3s-12f, .*, not 'ulx4s'$"):
        find_board("ulx4s")


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["bitstream", *arguments])
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    return line


WIDE = HardwareConfig(4, 1, bus_bits=256, weight_fifo=32)


def built(folder: Path, config: HardwareConfig) -> Path:
    """A build folder of a network that is small."""
    net = network()
    net.save(folder / "net.safetensors")
    program = compile_network(net, config)
    save_build(program, folder / "net.safetensors", folder / "build")
    return folder / "build"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For hardware with a memory that is not small."""
    return built(tmp_path_factory.mktemp("boards"), WIDE)


def test_the_command_refuses_in_one_line(build: Path, tmp_path: Path):
    out = str(tmp_path / "out")
    line = refusal(str(build), "--board", "none", "-o", out)
    assert line.startswith("Error: board must be one of ulx3s-12f")
    line = refusal(str(build), "--board", "ulx3s-85f", "-o", str(tmp_path / "a" / "b"))
    assert line == f"Error: {tmp_path / 'a'}: no such folder"
    line = refusal(str(build), "--board", "ulx3s-85f", "--baud", "20000000", "-o", out)
    assert line.startswith("Error: baud 20000000 cannot be made of a clock of 25 MHz")
    line = refusal(str(tmp_path), "--board", "ulx3s-85f", "-o", out)
    assert line.endswith("manifest.json: cannot be read: No such file or directory")
    assert not Path(out).exists()


def test_cells_that_the_board_lacks(tmp_path: Path, monkeypatch):
    """The plain form goes on to the tools, which have too little memory here."""
    folder = built(tmp_path, replace(WIDE, multiplier="ecp5-carry"))
    monkeypatch.setattr(Board, "memory_bytes", 1000)
    arguments = ["bitstream", str(folder), "--board", "icebreaker", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    first, second = result.stderr.splitlines()
    said = "multiplier 'lut' instead of 'ecp5-carry'; same numbers and cycles"
    assert first == f"for icebreaker: {said}"
    assert second.startswith(f"Error: {folder} does not fit icebreaker: ")


def test_a_network_that_does_not_fit(build: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Board, "memory_bytes", 1000)
    line = refusal(str(build), "--board", "icebreaker", "-o", str(tmp_path / "out"))
    begin = f"Error: {build} does not fit icebreaker: program, weights and an image take "
    assert line.startswith(begin)
    assert line.endswith(" bytes of block RAM, there are 1000")


def test_the_command_writes_the_files(build: Path, tmp_path: Path, monkeypatch):
    """With the tools' result for another design: theirs takes minutes."""
    image = implement(ECHO, "echo", BOARDS["ulx3s-12f"])
    seen = []

    def instead(design: str, top: str, board: Board) -> boards.Image:
        seen.append((design, top, board.name))
        return image

    monkeypatch.setattr(boards, "implement", instead)
    out = tmp_path / "out"
    arguments = ["bitstream", str(build), "--board", "ulx3s-85f", "-o", str(out), "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert list(values) == [
        "board", "file", "bytes", "fmax_mhz", "clock_mhz", "critical_path", "lut", "ff", "dsp",
        "bram",
    ]  # fmt: skip
    assert values["file"] == str(out / "ulx3s-85f.bit")
    assert (out / "ulx3s-85f.bit").read_bytes() == image.bitstream
    assert values["bytes"] == len(image.bitstream)
    ((design, top, board),) = seen
    assert (top, board) == ("shiftcore", "ulx3s-85f")
    assert "module \\shiftcore\n" in design
    assert "module shiftcore(" in (out / "shiftcore.v").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """Rows of the table in docs/boards.md that is marked so."""
    document = Path(__file__).resolve().parents[1] / "docs" / "boards.md"
    _, _, rest = document.read_text(encoding="utf-8").partition(f"<!-- {name} -->")
    lines = rest.partition("<!-- end -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_document_lists_the_boards():
    rows = [
        [
            f"`{name}`", board.part, f"{board.clock_mhz:g}",
            f"{board.device.capacity['lut']:,}", f"{board.memory_bytes:,}",
        ]
        for name, board in BOARDS.items()
    ]  # fmt: skip
    assert table("boards") == rows


def test_the_document_lists_the_faults():
    rows = table("faults")
    assert [row[:2] for row in rows] == [[str(each.value), f"`{each.name}`"] for each in Fault]
