"""Designs of separable convolutions: what they cost, what they see, how long an array takes.

``python benchmarks/separable.py PART`` prints a table, or JSON, and fails where a limit is missed.
"""

import math
from dataclasses import replace
from itertools import product

import click
import numpy as np
import torch
from rich.console import Console

from shiftcore.benchmarks.report import Row, show
from shiftcore.benchmarks.separable_rtl import Simulated, simulate, utilization
from shiftcore.benchmarks.separable_training import train
from shiftcore.golden.config import HardwareConfig
from shiftcore.separable.cycles import design_cycles, design_network, fastest_design
from shiftcore.separable.design import Design, best_design, closed_form, free_bound
from shiftcore.separable.module import SeparableConv2d

KERNELS = (3, 5, 7)
CHANNELS = (64, 96, 128, 160, 192, 256, 320, 384, 512, 576, 640, 768, 960, 1024)
ABOVE = 0.028
"""of the closed form, at most"""
CASES = (
    (16, 3, 32, 16, 16),
    (32, 3, 16, 16, 16),
    (64, 3, 8, 16, 16),
    (64, 3, 14, 16, 16),
    (128, 3, 14, 16, 16),
    (96, 3, 14, 16, 16),
    (64, 3, 14, 8, 8),
    (32, 3, 14, 8, 16),
    (64, 5, 14, 16, 8),
    (64, 3, 14, 32, 32),
    (48, 7, 14, 16, 16),
    (64, 3, 28, 32, 16),
)
"""C, K, H = W, rows, columns"""
FASTER = 3
"""cases, at least, in which the choice is faster"""
DESIGNS = (
    "K", "C", "two stages", "parameters", "2KC^1.5", "ratio", "depthwise", "spatial", "full",
    "any N", "N", "per C", "e ln(CK²)", "support",
)  # fmt: skip
CYCLES = (
    "C", "K", "input", "array", "full", "depthwise", "N=2", "N≤3", "any N", "fewest cycles",
    "parameters", "of", "design",
)  # fmt: skip
RTL = (
    "C", "K", "input", "array", "N=2", "N≤3", "any N", "choice", "run N=2", "run N≤3", "run any N",
    "run choice", "simulated", "off", "compared", "mismatches",
)  # fmt: skip


def unbounded(channels: int, kernel: int) -> int:
    """The fewest parameters of two stages: all groups, all splits of the kernel, none left out."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    splits = list(product(range(1, kernel + 1), repeat=2))
    return min(
        channels * (n1 * h * v + n2 * (kernel - h + 1) * (kernel - v + 1))
        for n1, n2 in product(divisors, divisors)
        if n1 * n2 >= channels
        for h, v in splits
    )


@torch.inference_mode()
def support(design: Design, batch: int = 64) -> int:
    """Entries of the stages' Jacobian, of K×K outputs by one input pixel, that are not 0.

    Without normalisation the stages are linear: its columns are the answers to unit vectors.
    """
    torch.manual_seed(0)
    layer = SeparableConv2d(design, norm=None)
    kh, kw = design.kernel
    found = 0
    for channels in torch.arange(design.in_channels).split(batch):
        x = torch.zeros(len(channels), design.in_channels, kh, kw)
        x[torch.arange(len(channels)), channels, kh // 2, kw // 2] = 1
        found += int(layer(x).count_nonzero())
    return found


def without_shuffle(design: Design, number: int) -> Design:
    """The design with the result of one stage left as it is."""
    stages = list(design.stages)
    stages[number] = replace(stages[number], shuffle=1)
    return Design(tuple(stages))


def measure_design(channels: int, kernel: int) -> Row:
    """A row of the first table."""
    two, free = best_design(channels, kernel=kernel, stages=2), best_design(channels, kernel=kernel)
    entries = channels * channels * kernel * kernel
    return {
        "kernel": kernel,
        "channels": channels,
        "design": ", ".join(f"{s.kernel[0]}×{s.kernel[1]} g={s.groups}" for s in two.stages),
        "parameters": two.parameters,
        "unbounded": unbounded(channels, kernel),
        "closed_form": closed_form(channels, kernel, 2),
        "depthwise": Design.depthwise(channels, channels, kernel).parameters / two.parameters,
        "spatial": Design.spatial(channels, channels, kernel).parameters / two.parameters,
        "full": Design.conventional(channels, channels, kernel).parameters / two.parameters,
        "free": free.parameters,
        "free_stages": len(free.stages),
        "free_bound": free_bound(channels, kernel),
        "support": min(support(design) for design in (two, free)) / entries,
        "support_without": [
            support(without_shuffle(design, number)) / entries
            for design in (two, free)
            for number, stage in enumerate(design.stages)
            if stage.shuffle > 1
        ],
    }


def design_failed(row: Row) -> bool:
    """Whether a design is not the best one, is too dear, or does not see everything."""
    channels, octaves = row["channels"], math.log2(row["channels"])
    whole = octaves.is_integer()
    return (
        row["parameters"] != row["unbounded"]
        or row["parameters"] > (1 + ABOVE) * row["closed_form"]
        or row["free"] < row["free_bound"]
        or (whole and row["free"] != (2 * row["kernel"] + 2 * octaves) * channels)
        or row["support"] != 1
        or not row["support_without"]
        or any(share == 1 for share in row["support_without"])
    )


def exponents(rows: list[Row]) -> dict[int, float]:
    """Of every K, the exponent of C with which the parameters of two stages grow."""
    found = {}
    for kernel in dict.fromkeys(row["kernel"] for row in rows):
        own = [row for row in rows if row["kernel"] == kernel]
        x, y = (np.log([row[key] for row in own]) for key in ("channels", "parameters"))
        found[kernel] = float(np.polyfit(x, y, 1)[0])
    return found


def design_cells(row: Row) -> list[str]:
    """A row of the first table as text."""
    support = f"{row['support']:.0%}"
    if row["support_without"]:
        support += f", {max(row['support_without']):.0%} unshuffled"
    per_channel = row["free"] / row["channels"], row["free_bound"] / row["channels"]
    return [
        str(row["kernel"]), str(row["channels"]), row["design"], f"{row['parameters']:,}",
        f"{row['closed_form']:,.0f}", f"{row['parameters'] / row['closed_form']:.3f}",
        *(f"{row[name]:.2f}x" for name in ("depthwise", "spatial", "full")), f"{row['free']:,}",
        str(row["free_stages"]), *(f"{value:.1f}" for value in per_channel), support,
    ]  # fmt: skip


def measure_cycles(
    channels: int, kernel: int, side: int, rows: int, cols: int, rtl: bool = False
) -> Row:
    """A row of the second table."""
    config, size = HardwareConfig(rows, cols), (side, side)
    fastest = fastest_design(config, channels, kernel=kernel, size=size)
    fewest = {
        "two": best_design(channels, kernel=kernel, stages=2),
        "three": best_design(channels, kernel=kernel, stages=(1, 2, 3)),
        "any": best_design(channels, kernel=kernel),
    }
    others = {
        "full": Design.conventional(channels, channels, kernel),
        "depthwise": Design.depthwise(channels, channels, kernel),
        **fewest,
    }
    row: Row = {
        "channels": channels,
        "kernel": kernel,
        "side": side,
        "rows": rows,
        "cols": cols,
        **{name: design_cycles(design, config, size) for name, design in others.items()},
        "cycles": fastest.cycles,
        "parameters": fastest.design.parameters,
        "enumerated": fastest.enumerated,
        "design": str(fastest.design),
    }
    if rtl:
        runs: dict[Design, Simulated] = {}
        for design in (fastest.design, *fewest.values()):
            if design not in runs:
                network, image = design_network(design, config, size)
                runs[design] = simulate(network, image, config)
        row["rtl"] = {
            "designs": len(runs),
            "cycles": {name: runs[design].cycles for name, design in fewest.items()}
            | {"cycles": runs[fastest.design].cycles},
            "differences": max(run.difference for run in runs.values()),
            "compared": sum(run.compared for run in runs.values()),
            "mismatches": sum(run.mismatches for run in runs.values()),
        }
    return row


def _fewest(row: Row) -> list[int]:
    """The cycles of the designs of fewest parameters."""
    return [row["two"], row["three"], row["any"]]


def cycles_failed(row: Row) -> bool:
    """Whether a design of fewest parameters is faster than the choice, or the RTL differs."""
    rtl = row.get("rtl")
    if rtl and (rtl["differences"] or rtl["mismatches"]):
        return True
    return row["cycles"] > min(_fewest(row))


def cycles_cells(row: Row) -> list[str]:
    """A row of the second table as text."""
    case = [
        str(row["channels"]), str(row["kernel"]), f"{row['side']}×{row['side']}",
        f"{row['rows']}×{row['cols']}",
    ]  # fmt: skip
    if rtl := row.get("rtl"):
        names = ("two", "three", "any", "cycles")
        counted = [*(row[name] for name in names), *(rtl["cycles"][name] for name in names)]
        counted += [rtl[name] for name in ("designs", "differences", "compared", "mismatches")]
        return [*case, *(f"{number:,}" for number in counted)]
    names = ("full", "depthwise", "two", "three", "any", "cycles", "parameters", "enumerated")
    return [*case, *(f"{row[name]:,}" for name in names), row["design"]]


@click.group(help=__doc__)
def main() -> None:
    """One command for each table."""


@main.command("designs")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def designs_table(as_json: bool) -> None:
    """Let the designer replace K×K convolutions of C channels by two stages and by any number.

    Fails unless the parameters of two stages are those of a search without any bound, over all
    groups and all ways to split the kernel, and at most 2.8 % above 2KC^1.5; their growth has an
    exponent of 1.5 ± 0.01, and any number of stages takes (2K + 2 log2 C) C parameters where C is a
    power of two; in torch the Jacobians of both have all C·C·K² entries, and fewer after
    any one of the shuffles is removed.
    """
    rows = [measure_design(channels, kernel) for kernel, channels in product(KERNELS, CHANNELS)]
    grown = exponents(rows)
    show(
        rows, DESIGNS, design_cells, design_failed, as_json=as_json,
        title="K×K convolutions of C channels by grouped convolutions",
        caption="parameters of two stages grow with C to the power of "
        + ", ".join(f"{grown[kernel]:.3f} (K={kernel})" for kernel in grown),
    )  # fmt: skip
    if any(abs(exponent - 1.5) > 0.01 for exponent in grown.values()):
        raise SystemExit(1)


@main.command("cycles")
@click.option("--rtl", is_flag=True, help="Run the designs on the simulated accelerator, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cycles_table(rtl: bool, as_json: bool) -> None:
    """Let the designer choose for an array.

    It chooses among all designs of up to three stages with no more parameters than the depthwise
    separable convolution. Cycles are those of the stages in a network, by the estimator that equals
    the RTL. Fails if the choice is slower in any case than a design of fewest parameters, of two
    stages, of one to three or of any number, or is faster than all of them in fewer than three.

    With --rtl the choice and the designs of fewest parameters are simulated. It fails at a word
    that differs from the golden machine, a counter of the run that is not as predicted, and a layer
    whose last pixel does not enter the array in the predicted cycle: then the cycles of the stages
    are those of the RTL. Beside them the table has those of the whole networks, which also have a
    layer before and one after the stages, as the RTL counts them.
    """
    rows = []
    for case in CASES:
        with Console(stderr=True).status(f"{case} …"):
            rows.append(measure_cycles(*case, rtl=rtl))
    faster = sum(row["cycles"] < min(_fewest(row)) for row in rows)
    caption = f"faster than every design of fewest parameters in {faster} of {len(rows)}"
    if rtl:
        runs = [row["rtl"]["cycles"] for row in rows]
        ahead = sum(run["cycles"] < min(_fewest(run)) for run in runs)
        behind = sum(run["cycles"] > min(_fewest(run)) for run in runs)
        caption += f"; of whole networks faster in {ahead}, slower in {behind}"
    show(
        rows, RTL if rtl else CYCLES, cycles_cells, cycles_failed, as_json=as_json,
        title="Cycles of the stages on an array", caption=caption,
    )  # fmt: skip
    if faster < FASTER:
        raise SystemExit(1)


main.add_command(utilization)
main.add_command(train)


if __name__ == "__main__":
    main()
