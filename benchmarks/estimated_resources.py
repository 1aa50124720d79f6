"""Resources and clock, estimated and synthesized: a part of ``benchmarks/estimates.py``."""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console

from shiftcore.benchmarks.calibrate import (
    WHOLE,
    calibration_samples,
    load,
    synthesized,
    take,
    timed,
)
from shiftcore.benchmarks.report import Row, show
from shiftcore.estimate.resources import area, calibrated, covers
from shiftcore.golden.config import HardwareConfig

HELD_OUT = {"ecp5": 30, "ice40": 30, "xilinx7": 30, "gowin": 10, "xcup": 10, "cyclonev": 10}
SERIAL = 6
"""More of each family, with serial control."""
CLOCK_DRAWS = {"ecp5": 3}
"""By which draw the clock is judged: what was placed of those before calibrates now, as it has
shown which paths there are. Every third of it, from the third one on, is placed and routed: those
have 15,000 LUTs at most, and placements of larger ones take far longer."""
DRAWS = dict.fromkeys(HELD_OUT, 2) | {"gowin": 3, "cyclonev": 3}
"""By which draw each family is judged: what the draws before have shown went into rules of blocks;
into the options of Gowin's synthesis; and into a term that matters on Cyclone V."""
SEEDS = (1, 2, 3)
MEAN, WORST, CLOCK = 5.0, 15.0, 12.0
"""Limits in percent: mean and worst of LUTs and flip-flops, and of the clock's every error."""


def held_out(family: str, draw: int | None = None) -> list[HardwareConfig]:
    """The configurations that estimates of area for `family` are judged by, or those of a `draw`
    that was before."""
    name = family + ("", ", second draw", ", third draw")[(draw or DRAWS[family]) - 1]
    drawn = take(f"held out {name}", HELD_OUT[family], family=family)
    return drawn + take(f"held out serial {name}", SERIAL, family=family, control="serial")


def clocked(family: str) -> list[HardwareConfig]:
    """Those that estimates of the clock are judged by."""
    return held_out(family, CLOCK_DRAWS[family])[2::3] if family in CLOCK_DRAWS else []


def compare(family: str, samples: list[Row], missing: bool, renew: bool = False) -> Row:
    """The errors on the configurations that the calibration has not seen.

    Where `missing` is not set, only those that were synthesized before are compared; with `renew`
    they have to be of the gateware as it is. What has no estimate is left out, and missed by
    :func:`failed`.
    """
    seen = {HardwareConfig(**each["config"]) for each in calibration_samples(samples, family)}
    known = {
        HardwareConfig(**each["config"]): each.get("seeds") == [*SEEDS]
        for each in samples
        if each["unit"] == WHOLE
    }
    judged, placed = (
        [each for each in drawn if each not in seen and covers(each, family)]
        for drawn in (held_out(family), clocked(family))
    )
    calibrating = {*timed(family)}
    placed = [config for config in placed if config not in calibrating]
    if not missing:
        judged = [config for config in judged if config in known]
        placed = [config for config in placed if known.get(config)]

    errors: dict[str, list[tuple[float, str]]] = {"lut": [], "ff": [], "fmax_mhz": []}
    wrong = []
    for config in judged:
        real, guess = synthesized(samples, family, WHOLE, config, (), renew), area(config, family)
        for kind in ("lut", "ff"):
            errors[kind].append((100 * (getattr(guess, kind) / real[kind] - 1), _name(config)))
        wrong += [
            f"{_name(config)}: {kind} {getattr(guess, kind)}, not {real[kind]}"
            for kind in ("dsp", "bram")
            if getattr(guess, kind) != real[kind]
        ]
    for config in placed:
        real = synthesized(samples, family, WHOLE, config, SEEDS, renew)
        guess = area(config, family).fmax_mhz
        if guess is not None:
            error = 100 * (guess / real["fmax_mhz"] - 1)
            errors["fmax_mhz"].append((error, _name(config)))
    found = {kind: summary(each) for kind, each in errors.items()}
    return {"family": family, "configurations": len(judged), "wrong_blocks": wrong, **found}


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
    few = row["configurations"] < HELD_OUT[row["family"]] + SERIAL
    few |= (row["fmax_mhz"] or {"count": 0})["count"] < len(clocked(row["family"]))
    far = any(
        row[kind] is None or row[kind]["mean"] > MEAN or abs(row[kind]["worst"]) > WORST
        for kind in ("lut", "ff")
    )
    slow = row["fmax_mhz"] is not None and abs(row["fmax_mhz"]["worst"]) > CLOCK
    return far or slow or bool(row["wrong_blocks"]) or few


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
@click.option("--renew", is_flag=True, help="Synthesize again what is of other Verilog or tools.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def resources(families: tuple[str, ...], known: bool, renew: bool, as_json: bool) -> None:
    """LUTs, flip-flops, blocks and clock on held-out configurations; fails if a limit is missed."""
    if known and renew:
        raise click.UsageError("--known synthesizes nothing, --renew does: give one of them")
    rows = []
    with Console(stderr=True).status("synthesizing and comparing"):
        for family in families or calibrated():
            rows.append(compare(family, load(family), not known, renew))
    headings = (
        "family", "held out", "LUT, mean", "worst", "FF, mean", "worst", "Fmax, mean", "worst",
        "wrong DSP, BRAM",
    )  # fmt: skip
    title = "Errors of the resource estimates"
    show(rows, headings, cells, failed, title=title, as_json=as_json)
