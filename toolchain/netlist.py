"""Netlists after synthesis, and the models of their cells, for simulation."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .yosys import CACHE, ToolError, content_hash, keep, recall, run_yosys, tool_version

__all__ = ["FAMILIES", "Family", "Netlist", "cell_models", "synthesized"]


@dataclass(frozen=True)
class Family:
    """How a family's netlist is made so that all of its cells have models.

    Parameters
    ----------
    command : the yosys pass; without the cells that yosys ships no model of
    models : file with the others, in yosys' folder of shared files
    """

    command: str
    models: str


# yosys has no model of MULT18X18D, DP16KD (ECP5) and RAMB18E1 (Xilinx 7): multipliers and memories
# become LUTs and distributed memory there. SB_MAC16, SB_RAM40_4K and DSP48E1 do have one.
FAMILIES: Mapping[str, Family] = {
    "ecp5": Family("synth_ecp5 -nobram -nodsp", "ecp5/cells_sim.v"),
    "ice40": Family("synth_ice40 -dsp", "ice40/cells_sim.v"),
    "xilinx7": Family(
        "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf -nobram", "xilinx/cells_sim.v"
    ),
}


@dataclass(frozen=True)
class Netlist:
    """A synthesized design.

    Parameters
    ----------
    verilog : module `top` of cells
    cells : number of cells of each type
    """

    verilog: str
    cells: Mapping[str, int]


def synthesized(design: str, top: str, family: str) -> Netlist:
    """Synthesize Verilog text for a key of :data:`FAMILIES`; kept in ``out/cache/synth``.

    Raises ``ValueError`` for another family, ``ToolError`` if yosys is missing or finds an error.
    """
    if family not in FAMILIES:
        raise ValueError(f"netlist must be one of {', '.join(FAMILIES)}, not {family!r}")
    command = f"{FAMILIES[family].command} -top {top}"
    kept = CACHE / f"{content_hash(tool_version('pyosys'), 'netlist', command, design)}.json"
    known = recall(kept)
    if known is None:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
            folder = Path(name)
            write = ["tee -q -o cells.json stat -json", "write_verilog -noattr netlist.v"]
            run_yosys(folder, {"design": design}, [command, *write])
            report = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
            cells = report["design"]["num_cells_by_type"]
            cells.pop("$scopeinfo", None)
            known = [(folder / "netlist.v").read_text(encoding="utf-8"), cells]
        keep(kept, known)
    return Netlist(*known)


def cell_models(family: str) -> Path:
    """The file with the models of a family's cells, as yosys ships it."""
    tool_version("pyosys")
    package = find_spec("pyosys")
    if package is None or package.origin is None:
        raise ToolError("pyosys has no folder of shared files")
    return Path(package.origin).parent / "share" / FAMILIES[family].models
