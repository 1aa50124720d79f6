"""Place and route with nextpnr: the clock a design reaches, and the path that limits it."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .devices import DEVICES, FAMILIES, Device, Router, find
from .yosys import (
    CACHE,
    ToolError,
    content_hash,
    keep,
    recall,
    run_tool,
    run_yosys,
    synthesis,
    tool_version,
)

__all__ = [
    "CriticalPath",
    "Timing",
    "check_routable",
    "place_and_route",
    "read_report",
    "run_packaged",
    "source_name",
]

_WORKER = """\
import sys
from {module} import {function} as run
sys.exit(run(sys.argv[1:]))
"""
# The cell that yosys or nextpnr made of a signal is called after it, then after its type and port.
_MADE = re.compile(
    r"_(?:SB_|TRELLIS_|LUT\d|CCU2C|PFUMX|L6MUX21|MULT|DP16KD|PDPW16KD|DPR16X4|LC$|\$).*$"
)


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path from register to register.

    Parameters
    ----------
    start, end : its registers, as submodules and signal of the gateware, ``engine.issue.valid``
    logic_ns, routing_ns : where its time goes; clock-to-output and setup are logic
    levels : cells on the way
    """

    start: str
    end: str
    logic_ns: float
    routing_ns: float
    levels: int

    def __str__(self) -> str:
        return (
            f"{self.start} → {self.end}: {self.logic_ns:.1f} ns logic in {self.levels} levels, "
            f"{self.routing_ns:.1f} ns routing"
        )


@dataclass(frozen=True)
class Timing:
    """Fmax of a placed and routed design, in MHz, and its critical path, one of each per seed."""

    fmax_mhz: tuple[float, ...]
    paths: tuple[CriticalPath, ...]

    @property
    def median(self) -> float:
        return median(self.fmax_mhz)

    @property
    def critical_path(self) -> CriticalPath:
        """That of the seed in the middle; of two in the middle, of the slower one."""
        order = sorted(range(len(self.paths)), key=lambda k: self.fmax_mhz[k])
        return self.paths[order[(len(order) - 1) // 2]]


def check_routable(target: str) -> Device:
    """The device of that name. Raises ``ValueError`` if designs cannot be placed on it."""
    device = find(target)
    if not device.routable:
        able = ", ".join(name for name, each in DEVICES.items() if each.routable)
        raise ValueError(f"{target} cannot be placed and routed; {able} can")
    return device


def place_and_route(
    design: str,
    top: str,
    target: str = "ecp5-85k-8",
    *,
    seeds: Sequence[int] = (1, 2, 3),
    clock: str = "clk",
) -> Timing:
    """Place and route Verilog or RTLIL text on a device of
    :data:`~shiftcore.toolchain.devices.DEVICES`.

    Such designs have more ports than the package has pins, and the way to a pin says nothing about
    the design as a part of a larger one. Therefore a register drives every input bit except `clock`
    and a register reads every output bit; chains end at two pins, on small devices with a register
    for several outputs. Fmax thus covers the paths from the inputs and to the outputs too.

    Results are kept in ``out/cache/synth``. Raises ``ToolError`` if a tool is missing or fails,
    ``ValueError`` if the device has no router or the design no input `clock`.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    device = check_routable(target)
    family = FAMILIES[device.family]
    router = family.router
    assert router is not None
    commands = [*synthesis(f"{family.command} -top harness", design), "write_json harness.json"]
    chain = [f"{router.shared} outputs a link"] if router.shared > 1 else []
    tools = " ".join(
        (tool_version("pyosys"), tool_version(router.package), *commands, *router.arguments,
         *device.arguments, "with critical path", *chain)
    )  # fmt: skip
    kept = {
        seed: CACHE / f"{content_hash(tools, str(seed), top, clock, design)}.json" for seed in seeds
    }
    found = {seed: known for seed, file in kept.items() if (known := recall(file)) is not None}
    missing = [seed for seed in kept if seed not in found]
    if missing:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
            folder = Path(name)
            run_yosys(folder, {"design": design}, [f"tee -q -o ports.txt portlist {top}"])
            ports = (folder / "ports.txt").read_text(encoding="utf-8")
            sources = {"design": design, "harness": _harness(ports, top, clock, router.shared)}
            run_yosys(folder, sources, commands)
            for seed in missing:
                fmax, path = _route(folder, router, device, seed)
                found[seed] = {"fmax_mhz": fmax, "path": asdict(path)}
                keep(kept[seed], found[seed])
    return Timing(
        tuple(found[seed]["fmax_mhz"] for seed in seeds),
        tuple(CriticalPath(**found[seed]["path"]) for seed in seeds),
    )


def _harness(ports: str, top: str, clock: str, shared: int) -> str:
    """Verilog with a register at each port bit of `top`; `ports` is what yosys lists of it."""
    found = re.findall(r"^(input|output) \[(\d+):(\d+)\] (\S+)$", ports, re.MULTILINE)
    if ("input", "0", "0", clock) not in found:
        raise ValueError(f"{top} has no input {clock!r}")
    used = {"input": 0, "output": 0}
    connections = [f".{clock}(clk)"]
    for direction, high, low, name in found:
        if name != clock:
            width = int(high) - int(low) + 1
            connections.append(f".{name}({direction}s[{used[direction]} +: {width}])")
            used[direction] += width
    links = -(-(used["output"] + 1) // shared)
    return f"""\
module harness(input clk, input first, output last);
  reg [{used["input"]}:0] inputs;
  wire [{shared * links - 1}:0] outputs;
  reg [{shared * links - 1}:0] read;
  reg [{links - 1}:0] chain;
  {top} design({", ".join(connections)});
  assign outputs[{shared * links - 1}:{used["output"]}] = inputs[{used["input"]}];
  assign last = chain[{links - 1}];
  integer k;
  always @(posedge clk) begin
    inputs <= {{inputs, first}};
    read <= outputs;
    chain[0] <= ^read[{shared - 1}:0];
    for (k = 1; k < {links}; k = k + 1)
      chain[k] <= chain[k - 1] ^ (^read[{shared} * k +: {shared}]);
  end
endmodule
"""


def _route(folder: Path, router: Router, device: Device, seed: int) -> tuple[float, CriticalPath]:
    """Place and route ``harness.json`` in `folder`; MHz and the critical path."""
    # nextpnr opens files only by relative paths; every pin is where the tool likes.
    arguments = [
        *device.arguments, *router.arguments, "--json", "harness.json", "--report", "report.json",
        "--seed", str(seed), "--timing-allow-fail", "--quiet",
    ]  # fmt: skip
    run_packaged(router.tool, router.package, arguments, folder)
    return read_report(folder / "report.json", router.tool)


def run_packaged(tool: str, package: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a `tool` of a YoWASP `package` in `folder`. Raises ``ToolError`` if it fails."""
    module, function = (name.replace("-", "_") for name in (package, f"run_{tool}"))
    run_tool(tool, _WORKER.format(module=module, function=function), arguments, folder)


def read_report(file: Path, tool: str) -> tuple[float, CriticalPath]:
    """MHz and the critical path of nextpnr's report. Raises ``ToolError`` unless of one clock."""
    report = json.loads(file.read_text(encoding="utf-8"))
    if len(report["fmax"]) != 1:
        clocks = ", ".join(report["fmax"]) or "none"
        raise ToolError(f"{tool}: one clock expected, not {clocks}")
    ((name, clock),) = report["fmax"].items()
    return clock["achieved"], _critical(report["critical_paths"], name)


def _critical(paths: Sequence[Mapping[str, Any]], clock: str) -> CriticalPath:
    """The slowest of nextpnr's paths within `clock`."""
    inside = [path["path"] for path in paths if path["from"] == path["to"] == f"posedge {clock}"]
    steps = max(inside, key=lambda path: sum(step["delay"] for step in path))
    routing = sum(step["delay"] for step in steps if step["type"] == "routing")
    return CriticalPath(
        source_name(steps[0]["from"]["cell"]),
        source_name(steps[-1]["to"]["cell"]),
        sum(step["delay"] for step in steps) - routing,
        routing,
        sum(step["type"] == "logic" for step in steps),
    )


def source_name(cell: str) -> str:
    """Submodules and signal of the gateware for a `cell` of the netlist in the harness."""
    name = cell.removeprefix("design.")
    return _MADE.sub("", name) if name != cell else f"register at a port ({_MADE.sub('', cell)})"
