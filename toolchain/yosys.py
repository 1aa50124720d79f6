"""Synthesis with yosys: what a design costs on an FPGA."""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["TARGETS", "Resources", "Target", "ToolError", "run_yosys", "synthesize"]

CACHE = Path("out/cache/synth")

# One process for each run: yosys prints to the process's standard output, keeps global state and
# ends the process where it meets an error.
_WORKER = """\
import sys
from pyosys import libyosys
design = libyosys.Design()
for command in sys.argv[1:]:
    libyosys.run_pass(command, design)
"""


class ToolError(RuntimeError):
    """An FPGA tool is missing or refuses the design; the message is one line."""


@dataclass(frozen=True)
class Target:
    """How a device family is synthesized and how its cells are counted.

    Parameters
    ----------
    command : the yosys pass
    lut, ff, dsp, bram : pattern of a cell's name → how many units one such cell takes
    """

    command: str
    lut: Mapping[str, int]
    ff: Mapping[str, int]
    dsp: Mapping[str, int]
    bram: Mapping[str, int]


# LUTs are the family's own (4 inputs on ECP5 and iCE40, 6 on Xilinx 7), those that serve as memory
# or shift register included. Not counted: the muxes that join LUTs (PFUMX, L6MUX21, MUXF7, MUXF8),
# and carry cells that share the place of a LUT which is counted anyway (SB_CARRY, CARRY4). On ECP5
# the carry cell CCU2C is two LUTs itself, and a 16x4 memory takes four LUTs and two for its write
# port: these are nextpnr-ecp5's own totals before packing. A block RAM is the family's smallest, of
# 18 Kbit on ECP5 and Xilinx 7 and of 4 Kbit on iCE40.
TARGETS: Mapping[str, Target] = {
    "ecp5": Target(
        "synth_ecp5",
        lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
        ff={"TRELLIS_FF": 1},
        dsp={"MULT18X18D": 1},
        bram={"DP16KD": 1, "PDPW16KD": 1},
    ),
    "ice40": Target(
        "synth_ice40 -dsp",
        lut={"SB_LUT4": 1},
        ff={"SB_DFF*": 1},
        dsp={"SB_MAC16": 1},
        bram={"SB_RAM40_4K*": 1},
    ),
    "xilinx7": Target(
        "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf",
        lut={
            "LUT[1-6]": 1, "INV": 1, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
            "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4,
            "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM32M": 4, "RAM64M": 4,
        },
        ff={"FD[CPRS]E": 1, "FD[CPRS]E_1": 1},
        dsp={"DSP48E1": 1},
        bram={"RAMB18E1": 1, "RAMB36E1": 2},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What a design takes on a target, in the units of ``TARGETS``.

    Parameters
    ----------
    lut, ff, dsp, bram : totals over the whole hierarchy
    cells : number of cells of each type
    """

    lut: int
    ff: int
    dsp: int
    bram: int
    cells: Mapping[str, int]

    @classmethod
    def count(cls, cells: Mapping[str, int], target: Target) -> "Resources":
        """The totals of a netlist's `cells`."""

        def total(units: Mapping[str, int]) -> int:
            return sum(
                number * unit
                for name, number in cells.items()
                for pattern, unit in units.items()
                if fnmatchcase(name, pattern)
            )

        return cls(
            total(target.lut), total(target.ff), total(target.dsp), total(target.bram), dict(cells)
        )


def synthesize(design: str, top: str, target: str = "ecp5", *, plain: bool = False) -> Resources:
    """Synthesize Verilog or RTLIL text and count its cells.

    The hierarchy is flattened. Counts are kept in ``out/cache/synth`` by the content of the design,
    so that the same question is answered at once.

    Parameters
    ----------
    design : text of one module or several
    top : name of the one to synthesize
    target : key of ``TARGETS``
    plain : give the pass of the target no options but the top, as anyone would first; on Xilinx 7
        pads and clock buffers then come along, on iCE40 no multiplier becomes a DSP block

    Raises ``ValueError`` for a target that is not in ``TARGETS``, ``ToolError`` if yosys is missing
    or finds an error.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
    command = TARGETS[target].command
    synthesis = f"{command.split()[0] if plain else command} -top {top}"
    kept = CACHE / f"{content_hash(tool_version('pyosys'), synthesis, design)}.json"
    cells = recall(kept)
    if cells is None:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as folder:
            commands = [synthesis, "tee -q -o cells.json stat -json"]
            run_yosys(Path(folder), {"design": design}, commands)
            report = json.loads((Path(folder) / "cells.json").read_text(encoding="utf-8"))
        cells = report["design"]["num_cells_by_type"]
        cells.pop("$scopeinfo", None)  # remembers flattened modules; no hardware
        keep(kept, cells)
    return Resources.count(cells, TARGETS[target])


def run_yosys(folder: Path, sources: Mapping[str, str], commands: Sequence[str]) -> None:
    """Read `sources` (name → Verilog or RTLIL text) and run `commands`, in `folder`.

    Raises ``ToolError`` with yosys' own message.
    """
    tool_version("pyosys")
    reads = []
    for name, text in sources.items():
        rtlil = re.search(r"^(autoidx \d|attribute \\)", text, re.MULTILINE)
        file = f"{name}.il" if rtlil else f"{name}.v"
        (folder / file).write_text(text, encoding="utf-8")
        reads.append(f"{'read_rtlil' if rtlil else 'read_verilog'} {file}")
    run_tool("yosys", _WORKER, [*reads, *commands], folder)


# Whatever kills the process that runs a tool, the tool ends with it. Linux alone has such a call.
_LEASH = """\
import ctypes, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
"""


def run_tool(name: str, script: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a Python `script` that is a tool, in `folder`; its output is only used for the error."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LEASH + script, *arguments],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR:" in line]
        reason = (errors or lines or [f"exit status {done.returncode}"])[-1]
        raise ToolError(f"{name}: {reason.replace('ERROR: ', '').strip()}")


def tool_version(package: str) -> str:
    """Version of an installed tool; raises ``ToolError`` that says how to get it."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        raise ToolError(f"{package} is not installed: pip install 'shiftcore[synth]'") from None


def content_hash(*parts: str) -> str:
    """Name under which a result that depends on `parts` is kept."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def recall(file: Path) -> Any:
    """The JSON value kept in `file`, or ``None``."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(file: Path, value: Any) -> None:
    """Keep a JSON value in `file`; other processes see all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, suffix=".new", delete=False
    ) as new:
        json.dump(value, new)
    Path(new.name).replace(file)
