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

from .devices import FAMILIES, KINDS, Family, find

__all__ = ["Resources", "ToolError", "run_yosys", "synthesize"]

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
class Resources:
    """What a design takes on a family, in the units of ``FAMILIES``.

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
    def count(cls, cells: Mapping[str, int], family: Family) -> "Resources":
        """The totals of a netlist's `cells`."""

        def total(units: Mapping[str, int]) -> int:
            return sum(
                number * unit
                for name, number in cells.items()
                for pattern, unit in units.items()
                if fnmatchcase(name, pattern)
            )

        lut, ff, dsp, bram = (total(getattr(family, kind)) for kind in KINDS)
        return cls(lut, ff, dsp, bram, dict(cells))


def synthesize(design: str, top: str, target: str = "ecp5", *, plain: bool = False) -> Resources:
    """Synthesize Verilog or RTLIL text and count its cells.

    The hierarchy is flattened. Counts are kept in ``out/cache/synth`` by the content of the design,
    so that the same question is answered at once.

    Parameters
    ----------
    design : text of one module or several
    top : name of the one to synthesize
    target : name of a device or a family, see :mod:`~shiftcore.toolchain.devices`
    plain : give the pass of the target no options but the top, as anyone would first; on Xilinx 7
        pads and clock buffers then come along, on iCE40 no multiplier becomes a DSP block

    Raises ``ValueError`` for a target that does not exist, ``ToolError`` if yosys is missing or
    finds an error.
    """
    family = FAMILIES[find(target).family]
    command = family.command.split()[0] if plain else family.command
    commands = synthesis(f"{command} -top {top}", design)
    kept = CACHE / f"{content_hash(tool_version('pyosys'), *commands, design)}.json"
    cells = recall(kept)
    if cells is None:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as folder:
            commands.append("tee -q -o cells.json stat -json")
            run_yosys(Path(folder), {"design": design}, commands)
            report = json.loads((Path(folder) / "cells.json").read_text(encoding="utf-8"))
        cells = report["design"]["num_cells_by_type"]
        cells.pop("$scopeinfo", None)  # remembers flattened modules; no hardware
        keep(kept, cells)
    return Resources.count(cells, family)


def synthesis(command: str, design: str) -> list[str]:
    """What yosys is told so that it synthesizes `design` with `command`.

    ``synth_ice40 -dsp`` takes an instanced SB_MAC16 for the product of two numbers and makes that
    of it, whatever else the block does: it has another name meanwhile.
    """
    if "SB_MAC16" not in design or not command.startswith("synth_ice40"):
        return [command]
    return [
        "read_verilog -lib +/ice40/cells_sim.v",
        "rename SB_MAC16 SHIFTCORE_MAC16",
        "chtype -set SHIFTCORE_MAC16 t:SB_MAC16",
        command,
        "chtype -set SB_MAC16 t:SHIFTCORE_MAC16",
    ]


def run_yosys(folder: Path, sources: Mapping[str, str], commands: Sequence[str]) -> None:
    """Read `sources` (name → Verilog or RTLIL text) and run `commands`, in `folder`.

    Raises ``ToolError`` with yosys' own message.
    """
    tool_version("pyosys")
    reads = []
    for name, text in sources.items():
        file = f"{name}{suffix(text)}"
        (folder / file).write_text(text, encoding="utf-8")
        reads.append(f"{'read_rtlil' if file.endswith('.il') else 'read_verilog'} {file}")
    run_tool("yosys", _WORKER, [*reads, *commands], folder)


def suffix(design: str) -> str:
    """Of a file with Verilog or RTLIL text."""
    return ".il" if re.search(r"^(autoidx \d|attribute \\)", design, re.MULTILINE) else ".v"


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
        if not errors and done.returncode < 0:
            reason = f"ended by signal {-done.returncode} after {reason.strip()!r}"
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
