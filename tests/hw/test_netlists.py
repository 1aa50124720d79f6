"""The RTL's own tests on what yosys makes of it; ``make netlists`` runs all of them."""

import os
import re

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.golden.array import ArraySpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.requantizer import RequantizerSpec
from shiftcore.golden.scale_unit import (
    AddSpec,
    FixedAddSpec,
    FixedProductSpec,
    ProductSpec,
    ScaleUnitSpec,
)
from shiftcore.hw.array import SystolicArray
from shiftcore.hw.scale_unit import ScaleUnit
from shiftcore.hw.verilog import TOP
from shiftcore.sim import runner, system
from shiftcore.sim.accelerate import run_program
from shiftcore.sim.runner import SimulationError, build, verilog_of
from shiftcore.tests.compiler.random_networks import random_network
from shiftcore.tests.hw import test_array, test_pe, test_requantizer, test_scale_unit
from shiftcore.toolchain.netlist import FAMILIES, Netlist, cell_models, synthesized

COUNTER = """
module dut(input clk, input step, output reg [3:0] count = 0);
  always @(posedge clk) if (step) count <= count + 1;
endmodule
"""
# Small, but accumulators and buffer are deep enough for block RAM.
SMALL = HardwareConfig(
    2, 2, 2, 2, accumulator_depth=512, bus_bits=32, buffer_depth=1024, queue_depth=2,
    weight_fifo=16, load_fifo=16, store_fifo=16, burst_beats=4, outstanding=2,
)  # fmt: skip
HARD = {
    "ecp5": {"MULT18X18D", "DP16KD"},
    "ice40": {"SB_MAC16", "SB_RAM40_4K"},
    "xilinx7": {"DSP48E1", "RAMB18E1"},
}
"""A family's DSP block and block RAM."""


# The gate builds few of them: each component on one family, the smallest one on all.
@pytest.fixture(params=FAMILIES)
def family(request, monkeypatch) -> str:
    monkeypatch.setenv("SHIFTCORE_NETLIST", request.param)
    return request.param


def test_elements(family, monkeypatch):
    monkeypatch.setattr(test_pe, "SHAPES", [(3, 2, 0), (2, 3, 1)])
    test_pe.test_element_in_every_cycle("verilator")


def test_a_cell_that_is_wrong_is_found(monkeypatch):
    def broken(*arguments: str) -> Netlist:
        found = synthesized(*arguments)
        luts = [*re.finditer(r"(\.INIT\(16'h)(\w)", found.verilog)]
        at = luts[len(luts) // 2].start(2)
        digit = f"{int(found.verilog[at], 16) ^ 15:x}"
        return Netlist(found.verilog[:at] + digit + found.verilog[at + 1 :], found.cells)

    monkeypatch.setenv("SHIFTCORE_NETLIST", "ecp5")
    monkeypatch.setattr(runner, "synthesized", broken)
    monkeypatch.setattr(test_pe, "SHAPES", [(3, 2, 0), (2, 3, 1)])
    with pytest.raises(AssertionError):
        test_pe.test_element_in_every_cycle("verilator")


@pytest.mark.parametrize("family", ["ice40"], indirect=True)
def test_array_of_four(family):
    test_array.test_tiles_without_a_bubble(ArraySpec(2, 2, 2, 2), "verilator")


@pytest.mark.parametrize("family", ["ice40"], indirect=True)
def test_products_in_blocks(family):
    """Of row 0 too, where yosys would lose what a block of two registers puts out."""
    test_array.test_tiles_without_a_bubble(ArraySpec(2, 1, 7, 8, multiplier="dsp"), "verilator")


@pytest.mark.parametrize("family", ["ecp5"], indirect=True)
@pytest.mark.parametrize(("style", "cell"), [("ecp5-carry", "CCU2C"), ("packed18", "MULT18X18D")])
def test_forms_of_elements(family, style, cell):
    """Carry cells of the rows of four products, and of two sums; one block for two columns."""
    spec = ArraySpec(2, 2, 3, 3, style)
    cells = synthesized(verilog_of(SystolicArray, spec), "dut", family).cells
    assert cells[cell] == (2 if style == "packed18" else 4 * (3 + 2) + 2 * 4)
    test_array.test_tiles_without_a_bubble(spec, "verilator")


@pytest.mark.parametrize("family", ["ice40"], indirect=True)
def test_two_products_of_a_block(family):
    """yosys would make a plain product of each block; beside them only swaps are inverted."""
    spec = ArraySpec(2, 4, 3, 3, "ice40-dual")
    cells = synthesized(verilog_of(SystolicArray, spec), "dut", family).cells
    assert (cells["SB_MAC16"], cells["SB_LUT4"]) == (4, 4)
    test_array.test_tiles_without_a_bubble(spec, "verilator")


@pytest.mark.parametrize("family", [os.environ.get("SHIFTCORE_NETLIST", "ecp5")], indirect=True)
def test_scale_unit_in_block_ram(family, monkeypatch):
    spec = ScaleUnitSpec(ProductSpec(6, 8, 2), AddSpec(), 512)
    assert HARD[family] <= {*synthesized(verilog_of(ScaleUnit, spec), "dut", family).cells}
    monkeypatch.setattr(test_scale_unit, "SPECS", [spec])
    test_scale_unit.test_random_waves("verilator")


@pytest.mark.parametrize("family", ["ecp5"], indirect=True)
def test_scale_unit_of_instances(family, monkeypatch):
    """DSP block and block RAMs with their registers; the RTL's own models are simpler ones."""
    form, cuts = FixedFormat(24), PIPELINES["ecp5-fast"]
    product = FixedProductSpec(6, 8, 2, form, "ecp5-dsp", cuts.fixed_product)
    spec = ScaleUnitSpec(product, FixedAddSpec(form, cuts.fixed_add), 300, cuts.fetch, cuts.memory)
    cells = synthesized(verilog_of(ScaleUnit, spec), "dut", family).cells
    assert (cells["MULT18X18D"], cells["DP16KD"]) == (1, 2)
    monkeypatch.setattr(test_scale_unit, "SPECS", [spec])
    test_scale_unit.test_random_waves("verilator")


@pytest.mark.parametrize("family", ["xilinx7"], indirect=True)
def test_small_requantizer(family):
    test_requantizer.test_blocks([RequantizerSpec(2, 2, 2)], 0.4, "verilator")


@pytest.mark.skipif("SHIFTCORE_NETLIST" not in os.environ, reason="minutes: make netlists")
def test_a_whole_accelerator(record_testsuite_property):
    """Every word that a small network stores."""
    family = os.environ["SHIFTCORE_NETLIST"]
    network = random_network(np.random.default_rng(4), SMALL)
    program = compile_network(network, SMALL)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, *network.input_shape)).astype(np.float32)
    found = run_program(program, program.encode_input(network.encode_input(images)), netlist=family)
    assert (found.mismatches, found.first) == (0, None)
    assert found.compared > 400
    cells = synthesized(system._verilog(SMALL), TOP, family).cells
    assert HARD[family] <= {*cells}
    record_testsuite_property("compared", found.compared)
    record_testsuite_property("cells", sum(cells.values()))


def test_netlists_have_only_the_familys_cells():
    for family in FAMILIES:
        found = synthesized(COUNTER, "dut", family)
        models = cell_models(family)[-1].parent.glob("*.v*")
        text = "".join(path.read_text(encoding="utf-8") for path in models)
        assert sum(found.cells.values()) > 4
        assert all(re.search(rf"\bmodule {cell}\b", text) for cell in found.cells)


def test_netlists_are_for_verilator_and_a_known_family():
    with pytest.raises(ValueError, match=r"^netlist must be one of ecp5, ice40, xilinx7, not 'x'$"):
        build(COUNTER, netlist="x")
    with pytest.raises(SimulationError, match=r"^netlists are simulated by 'verilator', not 'ica"):
        build(COUNTER, "icarus", netlist="ecp5")
