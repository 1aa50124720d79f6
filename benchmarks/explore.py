"""An exploration on a cluster that loses a worker and a driver, and its synthesis.

``python benchmarks/explore.py`` lets ``shiftcore explore`` search hardware for the digits network
on two local workers, within a budget of LUTs of an ECP5. It kills a worker when a fifth of the
trials is finished, the driver when two fifths are, and runs the same command again. Fails if

* a trial that was finished is lost or changed, or any number is missing at the end;
* a process is left behind by the driver that was killed, or by the one that ended;
* synthesis of the chosen hardware needs more than the budget, or is further from the estimate than
  the limits of the table.
"""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import psutil
import torch
from rich.console import Console

from shiftcore.benchmarks.models import load
from shiftcore.benchmarks.report import Row, show
from shiftcore.toolchain.devices import KINDS

LIMITS = {"lut": 0.1, "ff": 0.1, "dsp": 0.0, "bram": 0.0}
"""part of what synthesis takes by which an estimate may differ"""
HEADINGS = ("", "wanted", "found", "kept")
PATIENCE = 60
"""seconds in which a process must end when its driver has"""


def finished(folder: Path) -> dict[int, str]:
    """Number of every trial that is finished → what came of it, by the study's database."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/study.db?mode=ro", 60, uri=True)) as database:
            rows = database.execute(
                "select number, state || value_json from trials join trial_user_attributes"
                " using (trial_id) where state != 'RUNNING'"
            )
            return dict(rows.fetchall())
    except sqlite3.OperationalError:  # not made yet, or locked
        return {}


class Driver:
    """A running ``shiftcore explore``, and every process that it ever started."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = psutil.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        self.family: set[psutil.Process] = set()

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for something; False if the driver ended before."""
        while not condition():
            self.family |= set(self._children())
            if self.process.poll() is not None:
                return condition()
            time.sleep(0.2)
        return True

    def _children(self) -> list[psutil.Process]:
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Those of Dask."""
        return [p for p in self._children() if "spawn_main" in " ".join(p.cmdline())]

    def left(self) -> int:
        """How many of its processes are still there after a while."""
        _, alive = psutil.wait_procs(list(self.family), timeout=PATIENCE)
        return len(alive)


def row(name: str, wanted: object, found: object, kept: bool) -> Row:
    """One line of the table."""
    return {"name": name, "wanted": str(wanted), "found": str(found), "kept": kept}


def attempt(command: Sequence[str], study: Path, trials: int) -> tuple[list[Row], dict[str, Any]]:
    """Run the command, with its accidents; what was seen, and what it printed at last."""
    rows = []
    first = Driver(command)
    first.until(lambda: len(finished(study)) >= trials // 5)
    killed = first.workers()[0]
    killed.kill()
    first.until(lambda: len(finished(study)) >= 2 * trials // 5)
    alive = first.process.poll() is None
    rows.append(row("driver after a killed worker", "runs", "runs" if alive else "ended", alive))
    first.process.kill()
    first.process.communicate()
    left = first.left()
    rows.append(row("processes after a killed driver", 0, left, not left))
    stored = finished(study)
    second = Driver(command)
    # What it prints is less than a pipe holds.
    second.until(lambda: False)
    output, _ = second.process.communicate()
    left = second.left()
    rows.append(row("processes after the last driver", 0, left, not left))
    status = second.process.returncode
    rows.append(row("exit status", 0, status, status == 0))
    last = finished(study)
    kept = sum(last.get(number) == text for number, text in stored.items())
    rows.append(row("trials kept by the resumed study", len(stored), kept, kept == len(stored)))
    rows.append(row("trials", trials, len(last), sorted(last) == list(range(trials))))
    return rows, json.loads(output) if status == 0 else {}


def compare(chosen: dict[str, Any], budget: int) -> list[Row]:
    """The chosen hardware: estimate beside synthesis."""
    rows, counted = [], chosen["synthesis"]
    for kind in KINDS:
        error = abs(chosen[kind] - counted[kind])
        within = error <= LIMITS[kind] * counted[kind]
        share = chosen[kind] / counted[kind] - 1 if counted[kind] else 0.0
        text = f"{counted[kind]:,}, estimate {chosen[kind]:,} ({share:+.1%})"
        rows.append(row(f"{kind.upper()} of the chosen", f"± {LIMITS[kind]:.0%}", text, within))
    lut = counted["lut"]
    rows.append(row("LUT by synthesis", f"≤ {budget:,}", f"{lut:,}", lut <= budget))
    network = chosen["network"]
    same = network["cycles"] == chosen["cycles"]
    rows.append(row("cycles of its network", chosen["cycles"], network["cycles"], same))
    hardware = chosen["hardware"]
    shape = {key: hardware[key] for key in ("rows", "cols", "weight_bits", "act_bits")}
    figures = f"{chosen['images_per_s']:,.0f} images/s, {network['sqnr_db']:.1f} dB"
    rows.append(row("chosen", ", ".join(f"{k} {v}" for k, v in shape.items()), figures, True))
    return rows


@click.command(help=__doc__)
@click.option("--trials", default=200, show_default=True, type=click.IntRange(10))
@click.option("--target", default="ecp5-85k-8", show_default=True)
@click.option("--budget", default=60_000, show_default=True, help="LUTs.")
@click.option("--clock", default=75.0, show_default=True, help="MHz.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(trials: int, target: str, budget: int, clock: float, as_json: bool) -> None:
    """Explore, kill, resume, compare and print."""
    model = load("digits")
    with TemporaryDirectory(prefix="shiftcore-") as name:
        folder = Path(name)
        images = torch.from_numpy(model.calibration[:2])
        torch.export.save(torch.export.export(model.network, (images,)), folder / "digits.pt2")
        np.savez(folder / "calibration.npz", x=model.calibration)
        study = folder / "study"
        command = [
            sys.executable, "-P", "-m", "shiftcore.cli", "explore", str(folder / "digits.pt2"),
            "--calib", str(folder / "calibration.npz"), "--target", target, "--budget",
            f"lut={budget}", "--clock", str(clock), "--trials", str(trials), "--synthesize", "1",
            "-o", str(study), "--json",
        ]  # fmt: skip
        with Console(stderr=True).status("exploring"):
            begin = time.monotonic()
            rows, found = attempt(command, study, trials)
            took = time.monotonic() - begin
    if found:
        rows += compare(found["chosen"], budget)
    show(
        rows,
        HEADINGS,
        lambda each: [each["name"], each["wanted"], each["found"], "yes" if each["kept"] else "NO"],
        lambda each: not each["kept"],
        title=f"digits on {target}, {trials} trials, 2 workers",
        caption=f"{took:.0f} s, synthesis included",
        as_json=as_json,
    )


if __name__ == "__main__":
    main()
