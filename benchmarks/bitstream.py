"""The digits network as a standalone image: through its serial line, and through the open tools.

``python benchmarks/bitstream.py`` compiles the demo's network for ``examples/ulx3s.toml``. Held-out
images then go into the pins of the simulated image one after the other, in Verilator and at the
divisor of the board's clock; every class and every score that comes back must be the golden
machine's, bit for bit. The same gateware is synthesized, placed, routed and packed for the board.
Fails if a reply differs, or if the design does not fit or does not reach the clock.
"""

from importlib.resources import as_file, files

import click
import numpy as np
from rich.console import Console

from shiftcore.benchmarks.report import Row, show
from shiftcore.compiler.network import compile_network
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.link import Command
from shiftcore.golden.machine import Machine
from shiftcore.host.standalone import at_clock
from shiftcore.hw.standalone import Standalone
from shiftcore.hw.verilog import TOP, emit_rtlil
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.standalone import Request, talk
from shiftcore.toolchain.boards import BOARDS, implement
from shiftcore.toolchain.yosys import ToolError

HEADINGS = (
    "board", "images", "mismatches", "top-1", "ms an image", "bytes", "MHz", "clock", "LUT", "FF",
    "DSP", "BRAM",
)  # fmt: skip


def measure(board: str, images: int, baud: int, tools: bool) -> Row:
    """One row of the table; `tools` says whether the bitstream is made."""
    chosen = BOARDS[board]
    with as_file(files("shiftcore.examples") / "ulx3s.toml") as path:
        config = HardwareConfig.load(path)
    training, held_out = data.load()
    network = quantize(model.load(), training.x[:256], QuantConfig())
    program = compile_network(network, config)
    spec = at_clock(program, chosen.clock_mhz * 1e6, baud)
    content = program.encode_input(network.encode_input(held_out.x[:images]))
    scores = np.asarray(program.decode_output(Machine(program).run(content).outputs), np.float32)
    scores = scores.reshape(len(content), -1).view(np.uint32)
    requests = [
        Request(
            spec.link.request(image.tobytes(), Command.SCORES),
            spec.link.reply_bytes(Command.SCORES),
        )
        for image in content
    ]
    answers = talk(spec, requests)
    expected = [
        spec.link.compute(request.content, own)
        for request, own in zip(requests, scores, strict=True)
    ]
    wrong = sum(answer.content != own for answer, own in zip(answers, expected, strict=True))
    right = [
        answer.content[1:2] == bytes([label])
        for answer, label in zip(answers, held_out.y.tolist(), strict=False)
    ]
    line = (spec.link.image_bytes + 2 + spec.link.reply_bytes(Command.CLASS)) * (
        spec.link.uart.byte_cycles
    )
    cycles = line + max(answer.cycles for answer in answers)
    row: Row = {
        "board": board, "images": len(answers), "mismatches": wrong, "top1": 100 * np.mean(right),
        "divisor": spec.link.uart.divisor, "run_cycles": max(answer.cycles for answer in answers),
        "ms_per_image": cycles / chosen.clock_mhz / 1000, "problem": None,
    }  # fmt: skip
    if tools:
        try:
            image = implement(emit_rtlil(Standalone(spec), TOP), TOP, chosen)
        except ToolError as error:
            row["problem"] = str(error)
        else:
            row["bytes"] = len(image.bitstream)
            for name in ("fmax_mhz", "clock_mhz", "lut", "ff", "dsp", "bram"):
                row[name] = getattr(image, name)
            row["critical_path"] = str(image.critical_path)
    return row


def failed(row: Row) -> bool:
    """Whether a reply differs or the tools refuse the design."""
    return row["mismatches"] > 0 or row["problem"] is not None


def cells(row: Row) -> list[str]:
    """A row as text."""
    shown = [
        row["board"], str(row["images"]), str(row["mismatches"]), f"{row['top1']:.1f} %",
        f"{row['ms_per_image']:.2f}",
    ]  # fmt: skip
    if "bytes" not in row:
        return [*shown, "refused" if row["problem"] else "not made", *[""] * 6]
    counts = (f"{row[kind]:,}" for kind in ("lut", "ff", "dsp", "bram"))
    clock = (f"{row['fmax_mhz']:.1f}", f"{row['clock_mhz']:g}")
    return [*shown, f"{row['bytes']:,}", *clock, *counts]


@click.command()
@click.option("--board", default="ulx3s-85f", show_default=True, type=click.Choice(list(BOARDS)))
@click.option("--images", default=20, show_default=True, type=click.IntRange(1))
@click.option("--baud", default=1_000_000, show_default=True)
@click.option("--simulate-only", is_flag=True, help="Make no bitstream.")
@click.option("--json", "as_json", is_flag=True)
def main(board: str, images: int, baud: int, simulate_only: bool, as_json: bool) -> None:
    """Print the table; exit with status 1 if a limit is missed."""
    with Console(stderr=True).status("simulating, synthesizing, placing and routing"):
        row = measure(board, images, baud, not simulate_only)
    show(
        [row], HEADINGS, cells, failed, title="The digits network as a standalone image",
        caption=row["problem"]
        or "Classes and scores through the serial line against the golden machine; an image takes "
        "its way in, the run, and the class out.",
        as_json=as_json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
