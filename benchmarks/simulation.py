"""Simulation speed: the whole accelerator at 16x16 beside the bare array, cycles per second.

``python benchmarks/simulation.py`` builds both with Verilator in the same way and lets them run by
turns: the array of ``examples/array16.toml`` on random pixels with a new tile every 64 cycles, and
the accelerator around it with its memory on the digits network (``resnet8`` and ``resnet20``
need SHIFTCORE_DATA). Both run freely; their test benches are compiled with them. The outputs of
the accelerator must be the golden machine's. Fails if the ratio of the medians is below 0.4.
"""

import json
import subprocess
import time
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from shiftcore.benchmarks.models import TRAINED, hardware, load
from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.golden.array import ArraySpec
from shiftcore.golden.machine import Machine
from shiftcore.golden.program import Program
from shiftcore.host.driver import Accelerator
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.verilog import emit
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.sim.accelerate import memory_bytes
from shiftcore.sim.system import SimulatedSystem, build_bench

LEAST = 0.4
"""of the bare array's speed"""
CYCLES = 300_000
"""of each run, about"""

# Pixels and weight rows come from tables, which costs next to nothing. The sums go into the answer,
# so that nothing is optimized away.
BENCH = """
`timescale 1ns/1ns
module testbench;
  parameter LANES = 1, CODES = 1, ROWS = 1, SUMS = 1;
  reg clk = 0, rst = 1;
  always #5 clk = ~clk;

  reg [LANES-1:0] pixels [0:1023], lanes = 0;
  reg [CODES-1:0] tiles [0:1023], codes = 0;
  reg [ROWS-1:0] enable = 0;
  reg swap = 0;
  wire [SUMS-1:0] sums;
  shiftcore dut (
    .clk(clk), .rst(rst), .i_lanes(lanes), .i_swap(swap), .i_codes(codes), .i_enable(enable),
    .o_sums(sums)
  );

  reg [SUMS-1:0] answer = 0;
  reg [31:0] now = 0;
  always @(negedge clk) begin
    now <= now + 1;
    lanes <= pixels[now[9:0]];
    codes <= tiles[now[9:0]];
    enable <= {ROWS{1'b1}} >> now[5:0];
    swap <= now[5:0] == 63;
    answer <= answer ^ sums;
  end

  integer commands, k;
  reg [31:0] cycles;
  initial begin
    for (k = 0; k < 1024; k = k + 1) begin
      pixels[k] = {(LANES + 31) / 32{$urandom}};
      tiles[k] = {(CODES + 31) / 32{$urandom}};
    end
    commands = $fopen("/dev/stdin", "r");
    repeat (4) @(negedge clk);
    rst = 0;
    while ($fscanf(commands, "%d", cycles) == 1) begin
      repeat (cycles) @(negedge clk);
      $display("%h", answer);
      $fflush();
    end
    $finish;
  end
endmodule
"""


class BareArray:
    """A simulated array that waits for a number of cycles, and runs."""

    def __init__(self, spec: ArraySpec):
        widths = {
            "LANES": spec.rows * spec.operand_bits,
            "CODES": spec.cols * spec.weight_bits,
            "ROWS": spec.rows,
            "SUMS": spec.cols * spec.sum_bits,
        }
        command = build_bench(BENCH, emit(SystolicArray(spec), "shiftcore"), widths)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, cycles: int) -> float:
        """Seconds that `cycles` take."""
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None
        assert pipes[1] is not None
        begin = time.perf_counter()
        pipes[0].write(f"{cycles}\n")
        pipes[0].flush()
        if not pipes[1].readline().strip():
            raise click.ClickException("the array's simulator ended")
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the simulator."""
        self._process.communicate()


class TimedSystem(SimulatedSystem):
    """An accelerator that measures how long it runs."""

    seconds = 0.0

    def wait(self) -> None:
        begin = time.perf_counter()
        super().wait()
        self.seconds = time.perf_counter() - begin


def program_of(name: str) -> tuple[Program, np.ndarray]:
    """A compiled network and one image for it, (1, bytes)."""
    module, images, _ = load(name)
    network = quantize(module, images, QuantConfig(block=16, method="l2"))
    program = compile_network(network, hardware(network))
    return program, program.encode_input(network.encode_input(images[:1]))


@click.command(help=__doc__)
@click.argument("name", default="digits", type=click.Choice(list(TRAINED)))
@click.option("--repetitions", default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(name: str, repetitions: int, as_json: bool) -> None:
    """Measure and print; fail below the least ratio."""
    progress = Console(stderr=True)
    with progress.status("building both simulators (minutes, the first time)"):
        program, image = program_of(name)
        config = program.config
        once = predict(program).cycles
        images = max(1, round(CYCLES / once))
        array = BareArray(config.engine.array)
        system = TimedSystem(config, memory_bytes(program, images))
    speeds: dict[str, list[float]] = {"array": [], "accelerator": []}
    with system:
        accelerator = Accelerator(system)
        accelerator.load(program)
        expected = Machine(program).run(image).outputs
        inputs = np.repeat(image, images, axis=0)
        for _ in track(range(repetitions), "running", console=progress):
            speeds["array"].append(CYCLES / array.run(CYCLES))
            outputs = accelerator.run(inputs)
            speeds["accelerator"].append(accelerator.counters()["cycles"] / system.seconds)
            if not (outputs == expected).all():
                raise click.ClickException("the accelerator's outputs are not the golden machine's")
    array.close()
    middle = {what: median(found) for what, found in speeds.items()}
    ratio = middle["accelerator"] / middle["array"]
    found = {
        "network": name,
        "cycles_per_image": once,
        "array_cycles_per_s": middle["array"],
        "accelerator_cycles_per_s": middle["accelerator"],
        "ratio": ratio,
        "seconds_per_image": once / middle["accelerator"],
    }
    if as_json:
        click.echo(json.dumps(found))
    else:
        table = Table(
            title=f"Simulation in Verilator, {config.rows}x{config.cols}", show_header=False
        )
        table.add_row("bare array", f"{middle['array']:,.0f} cycles/s")
        table.add_row(f"accelerator, {name}", f"{middle['accelerator']:,.0f} cycles/s")
        table.add_row("ratio", f"{ratio:.2f}, at least {LEAST}")
        table.add_row("one image", f"{once:,} cycles, {found['seconds_per_image']:.2f} s")
        Console().print(table)
    if ratio < LEAST:
        raise click.ClickException(f"the ratio must be at least {LEAST}, not {ratio:.2f}")


if __name__ == "__main__":
    main()
