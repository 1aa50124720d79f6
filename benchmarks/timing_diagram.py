"""Draws docs/pass.svg from a simulation: ``python benchmarks/timing_diagram.py``.

An engine of 3x2 processing elements runs three passes and a drain in Verilator. Every box of the
picture is a value from the waveform. The operands are chosen to be read: all lanes of pixel n carry
the number n, all codes of tile t are t, scales are 1 and biases 0.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import click
import numpy as np

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.passes import Drain, Pass
from shiftcore.sim.harness import run_engine

__all__ = ["CONFIG", "draw", "record", "work"]

CONFIG = HardwareConfig(rows=3, cols=2, accumulator_depth=16)
SVG = Path(__file__).resolve().parents[1] / "docs" / "pass.svg"
# Accumulators of each pass, and whether it starts them: the second follows at once on others, the
# third has to wait for the results of the first.
PASSES = ((range(5), True), (range(5, 9), True), (range(4), False))

Wave = Callable[[str], list[int]]


def work() -> list[Pass | Drain]:
    """The passes and the drain of the picture."""
    items: list[Pass | Drain] = []
    pixel = 0
    for tile, (accumulators, start) in enumerate(PASSES, 1):
        count = len(accumulators)
        numbers = pixel + 1 + np.arange(count)
        pixel += count
        items.append(
            Pass(
                codes=np.full((CONFIG.rows, CONFIG.cols), tile, np.int8),
                scales=np.ones(CONFIG.cols, np.float32),
                biases=np.zeros(CONFIG.cols, np.float32) if start else None,
                lanes=np.repeat(numbers[:, None], CONFIG.rows, axis=1).astype(np.int16),
                # Code 1 of an unsigned block stands for 2**(field - 127 - (m - 1)): here for 1.
                exponents=np.full(count, 127 + CONFIG.act_bits - 1, np.uint8),
                addresses=np.array(accumulators),
            )
        )
    items.append(Drain(np.arange(4), "raw"))
    return items


def _samples(text: str, clock: str) -> dict[str, list[int]]:
    """Value of every signal of a VCD just before each rising edge of `clock`."""
    names: dict[str, list[str]] = {}
    scope: list[str] = []
    head, body = text.split("$enddefinitions", 1)
    for line in head.splitlines():
        words = line.split()
        if words[:1] == ["$scope"]:
            scope.append(words[2])
        elif words[:1] == ["$upscope"]:
            scope.pop()
        elif words[:1] == ["$var"]:
            names.setdefault(words[3], []).append(".".join([*scope, words[4]]))
    edge = next(key for key, aliases in names.items() if clock in aliases)
    values = dict.fromkeys(names, 0)
    sampled: dict[str, list[int]] = {key: [] for key in names}
    for step in body.split("\n#")[1:]:
        changes = {}
        for line in step.splitlines()[1:]:
            match = re.fullmatch(r"(?:b([01xz]+) |([01xz]))(\S+)", line.strip())
            if match:
                changes[match[3]] = int(re.sub("[xz]", "0", match[1] or match[2]), 2)
        if changes.get(edge) == 1 and not values[edge]:
            for key, series in sampled.items():
                series.append(values[key])
        values |= changes
    return {name: sampled[key] for key, aliases in names.items() for name in aliases}


def record() -> dict[str, list[int]]:
    """Simulate; the value of every signal in each cycle, cycle 0 being the first beat's."""
    with tempfile.TemporaryDirectory() as folder:
        waves = Path(folder) / "pass.vcd"
        run = run_engine(work(), CONFIG, waves=waves)
        signals = _samples(waves.read_text(encoding="utf-8"), "dut.clk")
    beats = zip(signals["dut.i_tile__valid"], signals["dut.i_tile__ready"], strict=True)
    reset = signals["dut.rst"]
    begin = next(t for t, beat in enumerate(beats) if all(beat) and not reset[t])
    return {name: series[begin : begin + run.total] for name, series in signals.items()}


CELL, ROW, LEFT, TOP = 20, 20, 168, 64
COLORS = ("#9ecae1", "#fdbe85", "#a1d99b")
INK, FAINT = "#1b1f24", "#8a929b"


@dataclass
class _Canvas:
    cycles: int
    parts: list[str] = field(default_factory=list)
    bottom: int = TOP

    def box(
        self, cycle: int, color: str, text: str, *, cycles: int = 1, bold: bool = False
    ) -> None:
        x, y = LEFT + cycle * CELL, self.bottom
        self.parts.append(
            f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{cycles * CELL - 1}" height="{ROW - 3}" '
            f'rx="2" fill="{color}" stroke="{INK}" stroke-width="{1.8 if bold else 0.5}"/>'
        )
        size = 10 if len(text) < 3 or cycles > 1 else 9
        self.text(x + cycles * CELL / 2, y + ROW / 2 + 3, text, size=size)

    def strip(self, cycle: int, color: str) -> None:
        x, y = LEFT + cycle * CELL, self.bottom + ROW - 6
        self.parts.append(
            f'<rect x="{x + 1}" y="{y}" width="{CELL - 2}" height="3" fill="{color}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        color: str = INK,
        anchor: str = "middle",
        size: int = 10,
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}" '
            f'font-size="{size}">{escape(text)}</text>'
        )

    def span(self, first: int, last: int, text: str) -> None:
        """A dimension line from the middle of one cycle to that of another, in a row of its own."""
        x0, x1 = LEFT + (first + 0.5) * CELL, LEFT + (last + 0.5) * CELL
        y = self.bottom + 6
        self.parts.append(
            f'<path d="M{x0:g} {y - 4}v8M{x0:g} {y}H{x1:g}M{x1:g} {y - 4}v8" '
            f'stroke="{INK}" fill="none"/>'
        )
        if first < self.cycles / 3:
            self.text(x1 + 6, y + 3, text, anchor="start")
        else:
            self.text(x0 - 6, y + 3, text, anchor="end")

    def label(self, text: str) -> None:
        self.text(LEFT - 8, self.bottom + ROW / 2 + 3, text, anchor="end", size=11)

    def rule(self, text: str) -> None:
        """A gap with a heading and a thin line."""
        self.bottom += 10
        self.parts.append(
            f'<path d="M8 {self.bottom - 3.5}H{LEFT + self.cycles * CELL}" stroke="#d0d7de"/>'
        )
        self.text(8, self.bottom + ROW / 2 + 3, text, anchor="start", size=11)

    def finish(self) -> str:
        width, height = LEFT + self.cycles * CELL + 8, self.bottom + 8
        grid = "".join(
            f'<path d="M{LEFT + t * CELL} {TOP - 4}V{height - 8}" stroke="#eaeef2"/>'
            for t in range(self.cycles + 1)
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" '
            'font-family="ui-monospace, DejaVu Sans Mono, monospace">'
        )
        background = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        return "\n".join([head, background, grid, *self.parts, "</svg>"]) + "\n"


def _tile_row(canvas: _Canvas, wave: Wave) -> None:
    canvas.label("tile stream")
    valid, ready = wave("i_tile__valid"), wave("i_tile__ready")
    last = wave("i_tile__payload_last")
    tile = beat = 0
    for cycle, taken in enumerate(np.logical_and(valid, ready)):
        if not taken:
            continue
        rows = CONFIG.rows * CONFIG.tile.row_beats
        names = [f"w{CONFIG.rows - 1 - k // CONFIG.tile.row_beats}" for k in range(rows)]
        names += ["s"] * CONFIG.tile.scale_beats + ["b"] * CONFIG.tile.bias_beats
        canvas.box(cycle, COLORS[tile], names[beat])
        tile, beat = (tile + 1, 0) if last[cycle] else (tile, beat + 1)
    canvas.bottom += ROW


def _runs(cycles: Iterable[int]) -> list[tuple[int, int]]:
    """Consecutive cycles as (first, count)."""
    found: list[tuple[int, int]] = []
    for cycle in cycles:
        if found and sum(found[-1]) == cycle:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((cycle, 1))
    return found


def _issue_row(canvas: _Canvas, wave: Wave) -> list[tuple[int, int, int]]:
    """Draw the issue stage; returns (cycle, tile, accumulator) of every pixel."""
    issued, held, loaded = wave("issue.issue"), wave("issue.held"), wave("issue.i_loaded")
    first, address = wave("issue.pixel_first"), wave("issue.pixel_address")
    canvas.label("issue: accumulator")
    pixels, tile = [], -1
    for cycle in range(canvas.cycles):
        if issued[cycle]:
            tile += first[cycle]
            pixels.append((cycle, tile, address[cycle]))
            canvas.box(cycle, COLORS[tile], str(address[cycle]), bold=first[cycle] == 1)
    waits = [t for t in range(canvas.cycles) if held[t] and not issued[t]]
    for begin, count in _runs(waits):
        reason = "revisit" if loaded[begin] else "no tile"
        canvas.box(begin, "#f6f8fa", reason, cycles=count)
    canvas.bottom += ROW
    return pixels


def _element_row(canvas: _Canvas, wave: Wave, row: int, column: int) -> None:
    element = f"array.pe_{row}_{column}"
    canvas.label(f"PE {row},{column}")
    valid = wave("issue.o_wave_valid")
    operand, weight = wave(f"{element}.i_act"), wave(f"{element}.weight")
    shadow, swap = wave(f"{element}.shadow"), wave(f"{element}.i_swap")
    for cycle in range(canvas.cycles):
        # The wave is one cycle from the array's port to the first element, then one an element.
        sent = cycle - 1 - row - column
        if sent >= 0 and valid[sent]:
            color = COLORS[weight[cycle] - 1]
            canvas.box(cycle, color, str(operand[cycle]), bold=swap[cycle - 1] == 1)
        if shadow[cycle] != weight[cycle]:
            canvas.strip(cycle, COLORS[shadow[cycle] - 1])
    canvas.bottom += ROW


def _foot_rows(canvas: _Canvas, wave: Wave, column: int, pixels: list) -> None:
    unit = f"scale_unit_{column}"
    read = CONFIG.scale_unit.read_stage
    rows = (
        ("block sum", f"{unit}.wave_valid", f"o_sums_{column}"),
        ("accumulator read", f"{unit}.valid_{read}", f"{unit}.fetch__addr"),
        ("accumulator write", f"{unit}.store__en", f"{unit}.store__addr"),
    )
    for label, enable, value in rows:
        canvas.label(label)
        shown = iter(pixels)
        for cycle, (on, number) in enumerate(zip(wave(enable), wave(value), strict=True)):
            if on:
                canvas.box(cycle, COLORS[next(shown)[1]], str(number))
        canvas.bottom += ROW


def _drain_rows(canvas: _Canvas, wave: Wave) -> int:
    """Draw the drain; returns the cycle of its first read."""
    reads = [
        t
        for t, taken in enumerate(np.logical_and(wave("i_drain__valid"), wave("i_drain__ready")))
        if taken
    ]
    canvas.label("accumulator")
    for cycle in reads:
        canvas.box(cycle, "#dadaeb", str(wave("i_drain__payload_address")[cycle]))
    canvas.bottom += ROW
    canvas.label("raw, column 0")
    bits = np.array(wave("o_raw__payload"), object) & 0xFFFFFFFF
    values = np.array(bits.tolist(), np.uint32).view(np.float32)
    for cycle, on in enumerate(wave("o_raw__valid")):
        if on:
            canvas.box(cycle, "#dadaeb", f"{values[cycle]:g}")
    canvas.bottom += ROW
    return reads[0]


def draw(signals: Mapping[str, list[int]]) -> str:
    """The picture of what :func:`record` returned, as SVG text."""

    def wave(name: str) -> list[int]:
        return signals[f"dut.{name}"]

    canvas = _Canvas(len(signals["dut.clk"]))
    canvas.text(
        8, 20, f"Three passes on {CONFIG.rows}×{CONFIG.cols} processing elements, one cycle a box",
        anchor="start", size=14,
    )  # fmt: skip
    canvas.text(
        8, 38, "PE: the number is its operand, the color the tile of its active weight, the strip "
        "the tile of the next weight in its shadow register; bold: first pixel after a swap",
        color="#57606a", anchor="start", size=11,
    )  # fmt: skip
    for cycle in range(0, canvas.cycles, 5):
        canvas.text(LEFT + (cycle + 0.5) * CELL, TOP - 8, str(cycle), FAINT)
    canvas.text(LEFT - 8, TOP - 8, "cycle", FAINT, anchor="end")

    _tile_row(canvas, wave)
    pixels = _issue_row(canvas, wave)
    for column in range(CONFIG.cols):
        canvas.rule(f"column {column}")
        for row in range(CONFIG.rows):
            _element_row(canvas, wave, row, column)
        _foot_rows(canvas, wave, column, pixels)
    canvas.rule("drain")
    drained = _drain_rows(canvas, wave)

    canvas.rule("distances")
    begun = [next(p for p in pixels if p[1] == tile) for tile in range(len(PASSES))]
    sums = wave("scale_unit_0.wave_valid").index(1)
    for start, end, text in (
        (0, begun[0][0], "load of tile 1: beats"),
        (begun[0][0], sums, "issue to block sum of column 0: R + 3"),
        (begun[0][0], begun[1][0], "pass 1: max(pixels, load of tile 2)"),
        (begun[0][0], begun[2][0], "revisit of accumulator 0"),
        (pixels[-1][0], drained, "last issue to drain: retire_cycles"),
    ):
        canvas.span(start, end, f"{end - start} cycles, {text}")
        canvas.bottom += 17
    return canvas.finish()


@click.command(help=__doc__)
@click.option(
    "-o", "--output", default=SVG, type=click.Path(path_type=Path, dir_okay=False), help="SVG file."
)
def main(output: Path) -> None:
    """Simulate and draw."""
    output.write_text(draw(record()), encoding="utf-8")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
