"""Which shape of array suits a network: ``python benchmarks/shapes.py resnet20``.

The network is quantized for blocks of 8, 16, 32 and 64 channels, to 4-bit weights and activations,
and compiled for arrays of as many rows, which have 256 multipliers together with their columns.
Everything else is as in ``examples/array16.toml``, with PEs of carry chains and 32-bit fixed-point
accumulators. A table shows the cycles of an image by the estimator, how much of the array they use,
what yosys makes of array and scale units on ECP5, and images per second and 1,000 LUTs of these at
100 MHz. The best of each is marked with a star.

With ``--rtl`` one image runs through every simulated accelerator; a number that is not the golden
machine's, or a counter that is not the estimator's, fails.
"""

from dataclasses import replace

import click
from rich.console import Console

from shiftcore.benchmarks.area import Columns
from shiftcore.benchmarks.models import GAP, LATENCY, hardware, load
from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.hw.verilog import emit
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.accelerate import run_program
from shiftcore.toolchain.yosys import synthesize

MULTIPLIERS, BLOCKS, MHZ = 256, (8, 16, 32, 64), 100
HEADINGS = (
    "rows × columns", "cycles", "utilization", "LUT", "LUT/MAC", "DSP", "BRAM",
    "images/s per 1,000 LUTs", "simulated", "mismatches",
)  # fmt: skip


def measure(name: str, block: int, simulated: bool) -> Row:
    """One row of the table.

    Raises ``click.ClickException`` if there is no such network.
    """
    model, images, _ = load(name)
    network = quantize(model, images, QuantConfig(block=block, method="l2", accumulator="fixed32"))
    config = replace(
        hardware(network),
        rows=block,
        cols=MULTIPLIERS // block,
        multiplier="ecp5-carry",
        accumulator="fixed32",
    )
    program = compile_network(network, config)
    predicted = predict(program, latency=LATENCY, gap=GAP).counters()
    area = synthesize(emit(Columns(config), "columns"), "columns")
    cycles = predicted["cycles"]
    row: Row = {
        "rows": config.rows,
        "cols": config.cols,
        "cycles": cycles,
        "utilization": program.macs / (cycles * MULTIPLIERS),
        "lut": area.lut,
        "lut_per_mac": area.lut / MULTIPLIERS,
        "dsp": area.dsp,
        "bram": area.bram,
        "images_per_s_per_klut": MHZ * 1e6 / cycles / (area.lut / 1000),
    }
    if simulated:
        content = program.encode_input(network.encode_input(images[:1]))
        run = run_program(program, content, latency=LATENCY, gap=GAP)
        row |= {
            "simulated": run.counters[0]["cycles"],
            "counters_exact": run.counters[0] == {**run.counters[0], **predicted},
            "mismatches": run.mismatches,
        }
    return row


def failed(row: Row) -> bool:
    """Whether the simulation differs."""
    return not row.get("counters_exact", True) or bool(row.get("mismatches", 0))


def marked(rows: list[Row]) -> list[Row]:
    """Rows with the names of what they are the best in, as ``best``."""
    best = {
        "cycles": min(rows, key=lambda row: row["cycles"]),
        "lut": min(rows, key=lambda row: row["lut"]),
        "images_per_s_per_klut": max(rows, key=lambda row: row["images_per_s_per_klut"]),
    }
    return [row | {"best": [key for key, chosen in best.items() if chosen is row]} for row in rows]


def cells(row: Row) -> list[str]:
    """A row of the table as text, one cell for each of HEADINGS."""

    def star(key: str, text: str) -> str:
        return f"{text} *" if key in row["best"] else text

    return [
        f"{row['rows']} × {row['cols']}",
        star("cycles", f"{row['cycles']:,}"),
        f"{row['utilization']:.1%}",
        star("lut", f"{row['lut']:,}"),
        f"{row['lut_per_mac']:.1f}",
        str(row["dsp"]),
        str(row["bram"]),
        star("images_per_s_per_klut", f"{row['images_per_s_per_klut']:.1f}"),
        *(f"{row[key]:,}" if key in row else "" for key in ("simulated", "mismatches")),
    ]


@click.command(help=__doc__)
@click.argument("name", default="resnet20")
@click.option("--rtl", is_flag=True, help="Simulate an image on each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def main(name: str, rtl: bool, as_json: bool) -> None:
    """Measure and print; fail where the simulation differs."""
    rows = []
    with Console(stderr=True).status(f"{name} …") as status:
        for block in BLOCKS:
            status.update(f"{name}, blocks of {block} …")
            rows.append(measure(name, block, rtl))
    title = f"Shapes of {MULTIPLIERS} multipliers for {name}"
    show(marked(rows), HEADINGS, cells, failed, title=title, as_json=as_json)


if __name__ == "__main__":
    main()
