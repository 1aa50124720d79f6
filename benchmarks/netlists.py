"""The RTL's tests on synthesized netlists: ``python benchmarks/netlists.py``."""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import click
from rich.console import Console

from shiftcore.benchmarks.report import Row, show
from shiftcore.toolchain.netlist import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = {
    "PE": "tests/hw/test_pe.py",
    "array": "tests/hw/test_array.py",
    "scale unit": "tests/hw/test_scale_unit.py",
    "fixed point": "tests/hw/test_fixed.py",
    "scale unit 512": "tests/hw/test_netlists.py::test_scale_unit_in_block_ram",
    "requantizer": "tests/hw/test_requantizer.py",
    "memories": "tests/hw/test_cells.py::test_memories",
    "accelerator 2x2": "tests/hw/test_netlists.py::test_a_whole_accelerator",
}
"""What is tested, and where."""


def measure(component: str, family: str) -> Row:
    """Run a component's tests on its netlist for a family."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shiftcore-") as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "-q", f"--junitxml={report}",
             COMPONENTS[component]],
            cwd=ROOT, env=os.environ | {"SHIFTCORE_NETLIST": family}, stdout=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        suite = ET.parse(report).getroot()[0] if report.exists() else ET.Element("testsuite")
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    found = {each.get("name"): int(each.get("value", 0)) for each in suite.iter("property")}
    return {
        "component": component,
        "family": family,
        "tests": counts["tests"] - counts["skipped"],
        "failed": counts["failures"] + counts["errors"],
        "cells": found.get("cells"),
        "compared": found.get("compared"),
        "seconds": round(time.monotonic() - begin, 1),
    }


@click.command(help=__doc__)
@click.option("--family", "families", multiple=True, type=click.Choice(list(FAMILIES)))
@click.option("--component", "components", multiple=True, type=click.Choice(list(COMPONENTS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(families: tuple[str, ...], components: tuple[str, ...], as_json: bool) -> None:
    """Run, print, and fail if a test fails or none ran."""
    progress, rows = Console(stderr=True), []
    for component in components or COMPONENTS:
        for family in families or FAMILIES:
            with progress.status(f"{component} on {family} …"):
                rows.append(measure(component, family))
    keys = ("component", "family", "tests", "failed", "cells", "compared", "seconds")
    show(
        rows,
        keys,
        lambda row: ["" if row[key] is None else f"{row[key]}" for key in keys],
        lambda row: row["failed"] or not row["tests"],
        title="Tests of the RTL on netlists of yosys; cells and numbers compared of whole designs",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
