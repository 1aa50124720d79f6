"""Resources and clock, estimated and synthesized: a part of ``benchmarks/estimates.py``."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from shiftcore.benchmarks.calibrate import WHOLE, calibration_samples, load, synthesized, take
from shiftcore.benchmarks.report import Row, show
from shiftcore.estimate.resources import area, calibrated, covers
from shiftcore.golden.config import HardwareConfig

HELD_OUT = {"ecp5": 30, "ice40": 30, "xilinx7": 30, "gowin": 10, "xcup": 10, "cyclonev": 10}
SERIAL = 6
"""More of each family, with serial control."""
CLOCKS = {"ecp5": 12}
SEEDS = (1, 2, 3)
MEAN, WORST, CLOCK = 5.0, 15.0, 12.0
"""Limits in percent: mean and worst of LUTs and flip-flops, and of the clock's every error."""


def compare(
    family: str, samples: list[Row], count: int, clocks: int, missing: bool, renew: bool = False
) -> Row:
    """The errors on `count` configurations that the calibration has not seen, and on `SERIAL` more.

    Where `missing` is not set, only those that were synthesized before are compared; with `renew`
    they have to be of the gateware as it is. What has no estimate is left out, and missed by
    :func:`failed`.
    """
    known = {HardwareConfig(**sample["config"]) for sample in calibration_samples(samples, family)}
    drawn = take(f"held out {family}", count, family=family)
    drawn += take(f"held out serial {family}", SERIAL, family=family, control="serial")
    held_out = [config for config in drawn if config not in known and covers(config, family)]
    if not missing:
        done = [HardwareConfig(**each["config"]) for each in samples if each["unit"] == WHOLE]
        held_out = [config for config in held_out if config in done]
    row: Row = {"family": family, "configurations": len(held_out)}
    errors: dict[str, list[tuple[float, str]]] = {"lut": [], "ff": [], "fmax_mhz": []}
    wrong = []
    for index, config in enumerate(held_out):
        seeds = SEEDS if missing and index < clocks else ()
        real = synthesized(samples, family, WHOLE, config, seeds, renew)
        guess = area(config, family)
        name = _name(config)
        for kind in errors:
            if real.get(kind) and getattr(guess, kind):
                error = 100 * (getattr(guess, kind) / real[kind] - 1)
                errors[kind].append((error, name))
        wrong += [
            f"{name}: {kind} {getattr(guess, kind)}, not {real[kind]}"
            for kind in ("dsp", "bram")
            if getattr(guess, kind) != real[kind]
        ]
    for kind, found in errors.items():
        row[kind] = summary(found)
    row["wrong_blocks"] = wrong
    return row


def _name(config: HardwareConfig) -> str:
    """The configuration in a few words."""
    return (
        f"{config.rows}x{config.cols}, {config.weight_bits}/{config.act_bits} bit, "
        f"{config.multiplier}, {config.scale}, bus {config.bus_bits}"
        f"{', serial' if config.control == 'serial' else ''}"
    )


def summary(errors: Sequence[tuple[float, str]]) -> dict[str, Any] | None:
    """Mean and worst absolute error in percent, and which configuration is the worst."""
    if not errors:
        return None
    worst, name = max(errors, key=lambda each: abs(each[0]))
    return {
        "mean": sum(abs(error) for error, _ in errors) / len(errors),
        "worst": worst,
        "of": name,
        "count": len(errors),
    }


def failed(row: Row) -> bool:
    """Whether a limit is missed, or fewer configurations were compared than there must be."""
    wanted = HELD_OUT[row["family"]] + SERIAL, CLOCKS.get(row["family"], 0)
    done = row["configurations"], (row["fmax_mhz"] or {}).get("count", 0)
    far = any(
        row[kind] is None or row[kind]["mean"] > MEAN or abs(row[kind]["worst"]) > WORST
        for kind in ("lut", "ff")
    )
    slow = row["fmax_mhz"] is not None and abs(row["fmax_mhz"]["worst"]) > CLOCK
    return far or slow or bool(row["wrong_blocks"]) or done < wanted


def cells(row: Row) -> list[str]:
    """A line of the table."""
    shown = [row["family"], str(row["configurations"])]
    for kind in ("lut", "ff", "fmax_mhz"):
        found = row[kind]
        shown.append("" if found is None else f"{found['mean']:.1f} %")
        shown.append("" if found is None else f"{found['worst']:+.1f} %, {found['of']}")
    return [*shown, str(len(row["wrong_blocks"]))]


@click.command()
@click.option(
    "--family", "families", multiple=True, type=click.Choice(list(HELD_OUT)),
    help="Only these; all calibrated by default.",
)  # fmt: skip
@click.option("--known", is_flag=True, help="Synthesize nothing; compare what was synthesized.")
@click.option("--renew", is_flag=True, help="Synthesize again what is of other Verilog.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def resources(families: tuple[str, ...], known: bool, renew: bool, as_json: bool) -> None:
    """LUTs, flip-flops, blocks and clock on held-out configurations; fails if a limit is missed."""
    if known and renew:
        raise click.UsageError("--known synthesizes nothing, --renew does: give one of them")
    rows = []
    with Console(stderr=True).status("synthesizing and comparing"):
        for family in families or calibrated():
            count, clocks = HELD_OUT[family], CLOCKS.get(family, 0)
            rows.append(compare(family, load(family), count, clocks, not known, renew))
    headings = (
        "family", "held out", "LUT, mean", "worst", "FF, mean", "worst", "Fmax, mean", "worst",
        "wrong DSP, BRAM",
    )  # fmt: skip
    title = "Errors of the resource estimates"
    show(rows, headings, cells, failed, title=title, as_json=as_json)
