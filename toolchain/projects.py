"""Projects of FPGA tools around the accelerator's Verilog, ready to open."""

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..golden.config import HardwareConfig
from ..hw.verilog import TOP, accelerator_ports, accelerator_verilog
from .ipxact import component_xml

__all__ = ["CLOCK", "NAME", "TOOLS", "Tool", "write_project"]


NAME = "project"
"""Of a tool's project, so that no file of the tool's takes the name of the Verilog."""


@dataclass(frozen=True)
class Tool:
    """How a tool's project is made.

    Parameters
    ----------
    doc : its name and maker
    part : the device that is taken unless another one is named; None if the project has none
    parts : what a part's name must look like
    constraints : file with the clock, and its type for Edalize; None if the project has none
    open : the command that makes and opens the project, in its folder
    backend : Edalize's module and class, None if the project is a file of ours
    scripts : what is kept of the files that Edalize writes; others are for bitstreams, which a
        design with more ports than pins does not have, or would delete the Verilog
    """

    doc: str
    part: str | None
    parts: str
    constraints: tuple[str, str] | None
    open: str
    backend: tuple[str, str] | None
    scripts: tuple[str, ...] = (f"{NAME}.tcl",)


_FAMILIES = {
    "EP4CE": "Cyclone IV E", "EP4CGX": "Cyclone IV GX", "5C": "Cyclone V", "5AG": "Arria V",
    "5AS": "Arria V", "5AGZ": "Arria V GZ", "5S": "Stratix V", "10M": "MAX 10",
    "10CL": "Cyclone 10 LP", "10CX": "Cyclone 10 GX", "10A": "Arria 10", "1S": "Stratix 10",
    "A3C": "Agilex 3", "A5E": "Agilex 5", "A5D": "Agilex 5", "AG": "Agilex 7",
}  # fmt: skip
"""Intel's, which Quartus wants to know, by how names of devices begin; the longest such counts."""

CLOCK = 100.0
"""MHz, unless another clock is asked for."""

TOOLS: Mapping[str, Tool] = {
    "vivado": Tool(
        "AMD Vivado",
        "xc7z020clg400-1",
        r"x[aceq]\w+(-\w+)*-[123]\w*(-\w+)*",
        (f"{TOP}_ooc.xdc", "xdc"),
        f"vivado -source {NAME}.tcl",
        ("edalize.flows.vivado", "Vivado"),
    ),
    "quartus": Tool(
        "Intel Quartus Prime",
        "5CSEBA6U23I7",
        rf"({'|'.join(_FAMILIES)})\w+",
        (f"{TOP}.sdc", "SDC"),
        f"quartus_sh -t {NAME}.tcl && quartus {NAME}.qpf",
        ("edalize.quartus", "Quartus"),
    ),
    "gowin": Tool(
        "Gowin EDA",
        "GW2A-LV55PG484C8/I7",
        r"GW\d\w+-\w+(/\w+)?(:[A-Z])?",
        (f"{TOP}.sdc", "SDC"),
        "gw_sh edalize_gowin_template.tcl",
        ("edalize.flows.gowin", "Gowin"),
        ("edalize_gowin_template.tcl",),
    ),
    "radiant": Tool(
        "Lattice Radiant",
        "LFCPNX-100-9LFG672C",
        r"(LIFCL|LFD2NX|LFCPNX|LFMXO5|UT24C|iCE40UP)\w*-\w+(-\w+)*",
        (f"{TOP}.sdc", "SDC"),
        f"radiantc {NAME}.tcl && radiant {NAME}.rdf",
        ("edalize.radiant", "Radiant"),
    ),
    "diamond": Tool(
        "Lattice Diamond",
        "LFE5U-85F-8BG381C",
        r"(LFE[235]|LCMXO[23]|LAE[35])\w*-\w+(-\w+)*",
        (f"{TOP}.lpf", "LPF"),
        f"diamondc {NAME}.tcl && diamond {NAME}.ldf",
        ("edalize.diamond", "Diamond"),
    ),
    "fusesoc": Tool(
        "FuseSoC", None, "", None, f"fusesoc --cores-root . run --target lint {TOP}", None
    ),
}


def write_project(
    config: HardwareConfig,
    tool: str,
    folder: Path,
    *,
    part: str | None = None,
    clock_mhz: float | None = None,
) -> list[str]:
    """Leave a project for `tool`, a key of :data:`TOOLS`, in `folder`; the names of its files.

    The same arguments give the same bytes. An error leaves nothing.

    Parameters
    ----------
    folder : which must not exist, or be empty
    part : of the device, by default the tool's of :data:`TOOLS`; with Gowin a device's version may
        follow, ``"GW1NR-LV9QN88PC6/I5:C"``
    clock_mhz : the clock that the constraints ask for, by default :data:`CLOCK`

    Forms that instantiate cells which the part lacks are plain ones instead; ``hardware.toml`` says
    what was written.

    Raises ``ValueError`` for an unknown tool, an impossible part or clock, or a `folder` that is
    not empty.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool must be one of {', '.join(TOOLS)}, not {tool!r}")
    made = TOOLS[tool]
    for name, value, has in (
        ("part", part, made.part), ("clock", clock_mhz, made.constraints),
    ):  # fmt: skip
        if value is not None and has is None:
            raise ValueError(f"a {tool} project has no {name}, not even {value}")
    part = made.part if part is None else part
    clock_mhz = CLOCK if clock_mhz is None else clock_mhz
    if part is not None and not re.fullmatch(made.parts, part):
        raise ValueError(f"part must be one of {made.doc}, such as {made.part}, not {part!r}")
    if not 1 <= clock_mhz <= 1000:
        raise ValueError(f"clock must be from 1 to 1000 MHz, not {clock_mhz:g}")
    prefixes = {"LFE5": "ecp5", "LAE5": "ecp5", "iCE4": "ice40"}
    config = config.on(prefixes.get((part or "")[:4]))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder")
    files = {f"{TOP}.v": accelerator_verilog(config), "hardware.toml": config.dumps()}
    files |= _additions(tool, config)
    if made.constraints is not None:
        files[made.constraints[0]] = _clock(made.constraints[1], clock_mhz)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        new = Path(place) / folder.name
        new.mkdir()
        if made.backend is not None:
            _edalize(made, tool, part or "", list(files), new)
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8")
        new.replace(folder)
    return sorted(path.name for path in folder.iterdir())


def _clock(kind: str, mhz: float) -> str:
    """The clock as a constraint."""
    if kind == "LPF":
        return f'FREQUENCY PORT "clk" {mhz:.3f} MHz;\n'
    return f"create_clock -name clk -period {1000 / mhz:.3f} [get_ports {{clk}}]\n"


def _additions(tool: str, config: HardwareConfig) -> dict[str, str]:
    """A tool's own files. Ports, which are more than a package has pins, stay off the pins."""
    release = version(TOP)
    if tool == "vivado":
        constraints, _ = TOOLS[tool].constraints or ("", "")
        number = ".".join(release.split(".")[:2])
        xml = component_xml(config, number, f"{TOP}.v", constraints)
        return {"component.xml": xml, "options.tcl": _VIVADO}
    if tool == "quartus":
        ports = "\n".join(f"  {name}" for name in accelerator_ports(config) if name != "clk")
        return {"options.tcl": _QUARTUS.format(ports=ports)}
    if tool == "fusesoc":
        return {f"{TOP}.core": _CORE.format(top=TOP, version=release)}
    return {}


_VIVADO = """\
# The accelerator by itself: no pads. The clock is that of this project only.
set_property -name {STEPS.SYNTH_DESIGN.ARGS.MORE OPTIONS} -value {-mode out_of_context} \\
  -objects [get_runs synth_1]
# This folder is an IP too, shiftcore:ip:shiftcore, for block designs.
set_property ip_repo_paths [list [file dirname [file normalize [info script]]]] [current_project]
update_ip_catalog
"""
_QUARTUS = """\
# The accelerator by itself: registers instead of pins.
foreach port {{
{ports}
}} {{
  set_instance_assignment -name VIRTUAL_PIN ON -to $port
}}
"""
_CORE = """\
CAPI=2:
name: ::{top}:{version}
description: Bit-exact, block-scaled integer accelerator for CNNs

filesets:
  rtl:
    files:
      - {top}.v: {{file_type: verilogSource}}

targets:
  default: &default
    filesets: [rtl]
    toplevel: {top}
  lint:
    <<: *default
    description: Verilator with every rule on
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wall]
"""


def _edalize(made: Tool, tool: str, part: str, files: Sequence[str], folder: Path) -> None:
    """Let Edalize write the project's scripts, which name `files`."""
    name, kind = made.constraints or ("", "")
    kinds = {".v": "verilogSource", ".tcl": "tclSource", Path(name).suffix: kind}
    options: dict[str, Any] = {"part": part}
    if tool == "quartus":
        prefix = max((p for p in _FAMILIES if part.startswith(p)), key=len)
        options = {"family": _FAMILIES[prefix], "device": part}
    elif tool == "gowin":
        device, _, made_of = part.partition(":")
        options = {"part": device, "part_version": made_of, "pnr": "none"}
    edam = {
        "name": NAME,
        "toplevel": TOP,
        "files": [
            {"name": file, "file_type": kinds[Path(file).suffix]}
            for file in files
            if Path(file).suffix in kinds
        ],
        "flow_options": options,
        "tool_options": {tool: options},
    }
    module, backend = made.backend or ("", "")
    with _quiet():
        getattr(import_module(module), backend)(edam, str(folder)).configure()
    for path in folder.iterdir():
        if path.name not in made.scripts:
            path.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Edalize's remarks: that a vendor's tool is not installed here, and the like."""
    log = logging.getLogger("edalize")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
