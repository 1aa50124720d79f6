"""Netlists after synthesis, and the models of their cells, for simulation."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from . import devices
from .yosys import CACHE, ToolError, content_hash, keep, recall, run_yosys, synthesis, tool_version

__all__ = [
    "FAMILIES",
    "MODELS",
    "PRIMITIVES",
    "Netlist",
    "cell_model",
    "cell_models",
    "models_hash",
    "synthesized",
    "with_primitives",
]

MODELS = Path(__file__).parent / "cells"
"""The models of cells that yosys ships none of, and of ``PRIMITIVES``."""

PRIMITIVES = ("CCU2C", "DP16KD", "MULT18X18D", "SB_MAC16")
"""Vendors' cells that the RTL instantiates where the configuration asks for them."""

FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ecp5": ("ecp5/cells_sim.v", ("block_ram.sv", "ecp5.sv", "mult18x18d.sv")),
    "ice40": ("ice40/cells_sim.v", ()),
    "xilinx7": ("xilinx/cells_sim.v", ("block_ram.sv", "xilinx7.sv")),
}
"""Families whose netlists can be simulated: yosys' file of models, and files of ``MODELS``."""


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

    The command is that of :mod:`~shiftcore.toolchain.devices`: these cells are what is counted.

    Raises ``ValueError`` for another family, ``ToolError`` if yosys is missing or finds an error.
    """
    if family not in FAMILIES:
        raise ValueError(f"netlist must be one of {', '.join(FAMILIES)}, not {family!r}")
    commands = synthesis(f"{devices.FAMILIES[family].command} -top {top}", design)
    kept = CACHE / f"{content_hash(tool_version('pyosys'), 'netlist', *commands, design)}.json"
    known = recall(kept)
    if known is None:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
            folder = Path(name)
            write = ["tee -q -o cells.json stat -json", "write_verilog -noattr netlist.v"]
            run_yosys(folder, {"design": design}, [*commands, *write])
            report = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
            cells = report["design"]["num_cells_by_type"]
            cells.pop("$scopeinfo", None)
            known = [(folder / "netlist.v").read_text(encoding="utf-8"), cells]
        keep(kept, known)
    return Netlist(*known)


def cell_models(family: str) -> list[Path]:
    """The files with the models of a family's cells; of two models of a cell the first counts."""
    tool_version("pyosys")
    package = find_spec("pyosys")
    if package is None or package.origin is None:
        raise ToolError("pyosys has no folder of shared files")
    theirs, ours = FAMILIES[family]
    return [*(MODELS / name for name in ours), Path(package.origin).parent / "share" / theirs]


def cell_model(family: str, cell: str) -> str:
    """The module of one `cell` of a family, of yosys' file of models.

    Raises ``ValueError`` if it has none.
    """
    text = cell_models(family)[-1].read_text(encoding="utf-8")
    found = re.search(rf"^module {cell} .*?^endmodule\n", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"yosys has no model of {cell} of {family}")
    return found[0]


def with_primitives(design: str) -> str:
    """Verilog with models of the vendor's cells that it instantiates itself, for any simulator."""
    found = [cell for cell in PRIMITIVES if re.search(rf"^ *{cell} #", design, re.MULTILINE)]
    models = ((MODELS / f"{cell.lower()}.sv").read_text(encoding="utf-8") for cell in found)
    return "".join((design, *models))


def models_hash() -> str:
    """Hash of what :func:`cell_models` returns."""
    return content_hash(
        tool_version("pyosys"), *(path.read_text("utf-8") for path in sorted(MODELS.iterdir()))
    )
