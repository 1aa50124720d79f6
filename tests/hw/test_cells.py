"""Memories as yosys maps them, on the models of block RAMs: every width and every mode."""

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib.wiring import Component, In, Out

from shiftcore.hw import carry_chain
from shiftcore.hw.cuts import Cut
from shiftcore.hw.dsp_block import block_product
from shiftcore.sim import runner
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import SimulationError, simulate
from shiftcore.toolchain import netlist
from shiftcore.toolchain.netlist import Netlist, synthesized
from shiftcore.toolchain.yosys import ToolError, run_yosys

CYCLES = 1500
# Few addresses, so that reads meet writes; at the ends of every depth, and inside of wide words.
ADDRESSES = (0, 1, 2, 3, 129, 130, 255, 256, 298, 299)

# How a memory is read, after `word` is written: where read and write have an address each, ...
READ = "if (i_enable) o <= m[i_read];"
KINDS = {
    # what was there before a write to the same address, or anything,
    "old": f"{{write}} {READ}",
    "any": f"{{write}} {READ}",
    # with a reset and a value to begin with, as the family has them;
    "zero": "{write} if (i_clear) o <= {rest}; else " + READ,
    "rest": f"{{write}} if (i_enable) if (i_clear) o <= {{rest}}; else {READ}",
    # and where both have one address: before the write, after it, or not while there is a write.
    "one old": "if (i_enable) begin {write} o <= m[i_write]; end",
    "one new": "if (i_enable) begin {write} o <= m[i_write]; {forward} end",
    "one keep": "if (i_enable) begin {write} if (!{any}) o <= m[i_write]; end",
}


@dataclass(frozen=True)
class Shape:
    """A memory.

    Parameters
    ----------
    depth, width, granule : words, bits, bits of an enable for writing
    kind : see ``KINDS``
    """

    depth: int
    width: int
    granule: int
    kind: str = "old"

    @property
    def lanes(self) -> int:
        return self.width // self.granule

    @property
    def rest(self) -> int:
        """The output at the beginning and after a reset."""
        return 0xA5_0F36_9C12_7B4D_83E1 % (1 << self.width) if self.kind == "rest" else 0

    def contents(self) -> dict[int, int]:
        """What is in the memory at first, where it is ever read."""
        rng = np.random.default_rng(self.width)
        return {at: int.from_bytes(rng.bytes(9)) % (1 << self.width) for at in ADDRESSES}

    def verilog(self, name: str) -> str:
        g = self.granule
        lanes = [(f"i_bytes[{k}]", f"[{g * k}+:{g}]") for k in range(self.lanes)]
        process = KINDS[self.kind].format(
            write=" ".join(f"if ({on}) m[i_write]{at} <= i_data{at};" for on, at in lanes),
            forward=" ".join(f"if ({on}) o{at} <= i_data{at};" for on, at in lanes),
            any=f"(|i_bytes[{self.lanes - 1}:0])",
            rest=f"{self.width}'d{self.rest}",
        )
        filled = " ".join(
            f"m[{at}] = {self.width}'d{word};" for at, word in self.contents().items()
        )
        check = ", no_rw_check" if self.kind == "any" else ""
        begins = f" = {self.width}'d{self.rest}" if self.kind in ("zero", "rest") else ""
        return (
            f"module {name}(input clk, i_enable, i_clear, input [13:0] i_read, i_write,\n"
            f"  input [7:0] i_bytes, input [71:0] i_data,\n"
            f"  output reg [{self.width - 1}:0] o{begins});\n"
            f'  (* ram_style = "block"{check} *) reg [{self.width - 1}:0] m [0:{self.depth - 1}];\n'
            f"  initial begin {filled} end\n"
            f"  always @(posedge clk) begin {process} end\nendmodule\n"
        )

    def compute(self, inputs: Mapping[str, list[int]]) -> list[int]:
        """The output in each cycle; of kind "any", what the models invert."""
        words, output, found = self.contents(), self.rest, []
        byte = (1 << self.granule) - 1
        for enable, clear, read, write, strobes, data in zip(*inputs.values(), strict=True):
            found.append(output)
            lanes = [k for k in range(self.lanes) if strobes >> k & 1]
            one = self.kind.startswith("one")
            mask = sum(byte << k * self.granule for k in lanes) * (enable if one else 1)
            at = write if one else read
            before = words[at]
            words[write] = words[write] & ~mask | data & mask
            if clear and (self.kind == "zero" or (self.kind == "rest" and enable)):
                output = self.rest
            elif enable and not (self.kind == "one keep" and mask):
                output = words[at] if self.kind == "one new" else before
                if self.kind == "any" and read == write:
                    output ^= mask
        return found


# One block RAM each, or two, of each width that it can have; 36 bits are wider than a port of two.
SHAPES = [
    Shape(16384, 1, 1), Shape(8192, 2, 2), Shape(4096, 4, 4), Shape(2048, 9, 9),
    Shape(1024, 18, 9), Shape(512, 36, 9), Shape(1024, 36, 9), Shape(512, 72, 9),
    Shape(300, 23, 23),
    Shape(2048, 8, 8, "one old"), Shape(1024, 18, 9, "one new"), Shape(1024, 18, 9, "one keep"),
    Shape(2048, 9, 9, "one new"), Shape(4096, 4, 4, "one keep"),
]  # fmt: skip
MORE = {
    "ecp5": [
        Shape(1024, 18, 18, "zero"), Shape(512, 36, 9, "zero"), Shape(512, 36, 9, "any"),
        Shape(2048, 9, 9, "any"),
    ],
    "ice40": [],
    "xilinx7": [
        Shape(4096, 4, 4, "rest"), Shape(2048, 9, 9, "rest"), Shape(1024, 18, 9, "rest"),
        Shape(512, 36, 9, "rest"), Shape(1024, 36, 9, "rest"), Shape(512, 72, 9, "rest"),
    ],
}  # fmt: skip


def text(shapes: list[Shape]) -> str:
    """Memories with the same inputs; number k reads ``o_k``."""
    ports = "".join(f", output [{shape.width - 1}:0] o_{k}" for k, shape in enumerate(shapes))
    inside = "".join(
        f"  memory_{k} unit_{k}(clk, i_enable, i_clear, i_read, i_write, i_bytes, i_data, o_{k});\n"
        for k in range(len(shapes))
    )
    units = "".join(shape.verilog(f"memory_{k}") for k, shape in enumerate(shapes))
    return (
        f"{units}module dut(input clk, rst, i_enable, i_clear, input [13:0] i_read, i_write,\n"
        f"  input [7:0] i_bytes, input [71:0] i_data{ports});\n{inside}endmodule\n"
    )


def stimulus() -> dict[str, list[int]]:
    """Random, after a cycle that does nothing: the bench holds it during its reset."""
    rng = np.random.default_rng(1)
    inputs = {
        "i_enable": (rng.random(CYCLES) < 0.8).astype(int).tolist(),
        "i_clear": (rng.random(CYCLES) < 0.1).astype(int).tolist(),
        "i_read": rng.choice(ADDRESSES, CYCLES).tolist(),
        "i_write": rng.choice(ADDRESSES, CYCLES).tolist(),
        "i_bytes": (rng.integers(0, 256, CYCLES) * (rng.random(CYCLES) < 0.6)).tolist(),
        "i_data": [int.from_bytes(rng.bytes(9)) for _ in range(CYCLES)],
    }
    for name in ("i_enable", "i_clear", "i_bytes"):
        inputs[name][0] = 0
    return inputs


@pytest.fixture
def read(monkeypatch):
    """Every output of the netlist of some memories, which `change` may replace."""

    def run(
        shapes: list[Shape], family: str, change: Callable[[str], str] = str
    ) -> list[list[int]]:
        def changed(*arguments: str) -> Netlist:
            verilog = synthesized(*arguments).verilog
            assert change is str or change(verilog) != verilog
            return Netlist(change(verilog), {})

        monkeypatch.setattr(runner, "verilog_of", lambda *_: text(shapes))
        monkeypatch.setattr(runner, "synthesized", changed)
        job = PipelineJob(stimulus(), tuple(f"o_{k}" for k in range(len(shapes))))
        return [*simulate(Component, bench="pipeline_bench", job=job, netlist=family).values()]

    return run


def computed(shapes: list[Shape]) -> list[list[int]]:
    return [shape.compute(stimulus()) for shape in shapes]


def parameters(shapes: list[Shape], family: str) -> dict[str, set[str]]:
    """Values of the block RAMs' parameters, by name without the port."""
    found: dict[str, set[str]] = {}
    verilog = synthesized(text(shapes), "dut", family).verilog
    for cell in re.findall(r"^  (?:DP16KD|RAMB\d+E1) #\((.*?)^  \)", verilog, re.M | re.S):
        for name, value in re.findall(r"\.(\w+?)(?:_[AB])?\(([^)]*)\)", cell):
            found.setdefault(name, set()).add(re.sub(r"^32'sd|^32'd|\"", "", value))
    return found


@pytest.mark.parametrize("family", os.environ.get("SHIFTCORE_NETLIST", "ecp5 xilinx7").split())
def test_memories(family, read):
    shapes = [*SHAPES, *MORE[family]]
    assert read(shapes, family) == computed(shapes)
    said = parameters(shapes, family)
    if family == "ecp5":
        assert said["DATA_WIDTH"] == {"1", "2", "4", "9", "18", "36"}
        assert said["WRITEMODE"] == {"NORMAL", "WRITETHROUGH", "READBEFOREWRITE"}
        assert said["RESETMODE"] == {"SYNC", "ASYNC"}
    if family == "xilinx7":
        assert said["READ_WIDTH"] == said["WRITE_WIDTH"]
        assert said["READ_WIDTH"] == {"0", "1", "2", "4", "9", "18", "36", "72"}
        assert said["WRITE_MODE"] == {"NO_CHANGE", "WRITE_FIRST", "READ_FIRST"}
        assert said["RAM_MODE"] == {"TDP", "SDP"}


ONE = [Shape(1024, 18, 9, "any")]


@pytest.mark.parametrize(("family", "mode"), [("ecp5", "NORMAL"), ("xilinx7", "WRITE_FIRST")])
def test_what_is_read_during_a_write_of_the_other_port_is_wrong(family, mode, read):
    """So `no_rw_check` must be true. On Xilinx yosys takes a mode in which the old word is read."""
    old = computed([Shape(1024, 18, 9, "old")])
    assert read(ONE, family) == (computed(ONE) if family == "ecp5" else old)
    found = read(
        ONE, family, lambda verilog: re.sub('"READ_?(BEFOREWRITE|FIRST)', f'"{mode}', verilog)
    )
    assert found == computed(ONE) != old


@pytest.mark.parametrize("inject", ["YES", "NO"])
def test_the_carry_cell_is_that_of_yosys(inject, tmp_path):
    """For all inputs: the tables that the RTL has, and others. One that is wrong is told apart."""
    pins = ("CIN", *(f"{pin}{half}" for half in "01" for pin in "ABCD"))
    tables = [carry_chain._table(False), carry_chain._table(True), carry_chain._TERNARY, 0x96AA]
    tables += np.random.default_rng(9).integers(1 << 16, size=4).tolist()
    ours = (netlist.MODELS / "ccu2c.sv").read_text(encoding="utf-8")

    def compare(mine: str) -> None:
        cells, differ = "", []
        for k, (one, two) in enumerate(itertools.pairwise(tables)):
            differ.append(f"ours_{k} != theirs_{k}")
            for kind, side in (("OURS", "ours"), ("CCU2C", "theirs")):
                ports = ", ".join(f".{pin}({pin})" for pin in pins)
                cells += (
                    f"wire [2:0] {side}_{k}; {kind} #(.INIT0({one}), .INIT1({two}), "
                    f'.INJECT1_0("{inject}"), .INJECT1_1("NO")) {side}{k} ({ports}, '
                    f".S0({side}_{k}[0]), .S1({side}_{k}[1]), .COUT({side}_{k}[2]));\n"
                )
        top = f"module top(input {', '.join(pins)}, output differ);\n{cells}"
        top += f"assign differ = {' || '.join(differ)};\nendmodule\n"
        sources = {"ours": mine.replace("module CCU2C", "module OURS"), "top": top}
        commands = ["read_verilog -nooverwrite +/ecp5/cells_sim.v", "prep -flatten -top top"]
        run_yosys(tmp_path, sources, [*commands, "sat -prove differ 0 -verify"])

    compare(ours)
    with pytest.raises(ToolError, match="proof did fail"):
        compare(ours.replace("INIT1[{2'b00", "INIT1[{2'b11"))


BLOCKS = """
module top;
  reg clk = 0, hold = 0;
  reg [15:0] a, b, c, d;
  wire [31:0] ours, theirs;
  integer k, wrong = 0;
  {ours} ours_(.O(ours), {pins});
  {theirs} theirs_(.O(theirs), {pins});
  initial begin
    for (k = 0; k < 3000; k = k + 1) begin
      {{a, b}} = $random;
      {{c, d}} = $random;
      if (k < 40) {{a, b}} = {{2{{k & 1 ? 16'h8080 : 16'h7f80}}}} ^ {{32{{k & 2 ? 1'b1 : 1'b0}}}};
      hold = k < 4 ? 0 : $random;
      #1 clk = 1;
      #1 clk = 0;
      if (k > 4 && ours !== theirs) wrong = wrong + 1;
    end
    $display("%0d wrong", wrong);
  end
endmodule
"""


@pytest.mark.parametrize("select", [1, 2])
def test_the_block_of_two_products_is_that_of_yosys(select, tmp_path):
    """Sums and products, for random operands; one that is wrong is told apart."""
    theirs = netlist.cell_model("ice40", "SB_MAC16")
    settings = (
        "MODE_8x8 A_SIGNED B_SIGNED A_REG TOP_8x8_MULT_REG BOT_8x8_MULT_REG TOPADDSUB_UPPERINPUT "
        "BOTADDSUB_UPPERINPUT TOPADDSUB_LOWERINPUT BOTADDSUB_LOWERINPUT"
    )
    values = [f".{name}(1)" for name in settings.split()]
    values += [f".{half}OUTPUT_SELECT({select})" for half in ("TOP", "BOT")]
    idle = (
        "BHOLD CHOLD DHOLD OHOLDTOP OHOLDBOT IRSTTOP IRSTBOT ORSTTOP ORSTBOT OLOADTOP OLOADBOT "
        "ADDSUBTOP ADDSUBBOT CI ACCUMCI SIGNEXTIN"
    )
    pins = ".CLK(clk), .CE(1'b1), .A(a), .B(b), .C(c), .D(d), .AHOLD(hold)"
    pins += "".join(f", .{name}(1'b0)" for name in idle.split())
    kinds = {kind: f"{kind} #({', '.join(values)})" for kind in ("OURS", "SB_MAC16")}
    top = BLOCKS.format(ours=kinds["OURS"], theirs=kinds["SB_MAC16"], pins=pins)

    def said(mine: str) -> str:
        text = mine.replace("module SB_MAC16", "module OURS") + theirs + top
        (tmp_path / "all.sv").write_text(text, encoding="utf-8")
        command = ["iverilog", "-g2012", "-s", "top", "-o", "all.vvp", "all.sv"]
        subprocess.run(command, cwd=tmp_path, check=True)
        done = subprocess.run(
            ["vvp", "-n", "all.vvp"], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    ours = (netlist.MODELS / "sb_mac16.sv").read_text(encoding="utf-8")
    assert said(ours) == "0 wrong"
    for before, after in (
        ("if (!AHOLD)", "if (AHOLD)"),
        ("right_high = B[15:8]", "right_high = A[7:0]"),
    ):
        assert before in ours
        assert said(ours.replace(before, after)) != "0 wrong"


class Products(Component):
    """Of `a` and `b`, in a DSP block with each choice of registers; signed and unsigned."""

    CHOICES = tuple(itertools.product((False, True), repeat=4))

    def __init__(self):
        outputs = {f"o_{k}": Out(36) for k in range(len(self.CHOICES))}
        super().__init__({"i_a": In(18), "i_b": In(18), **outputs})

    def elaborate(self, platform):
        m = Module()
        for k, (sign, *registered) in enumerate(self.CHOICES):
            m.submodules[f"block_{k}"] = part = Module()
            a, b = (x.as_signed() if sign else x for x in (self.i_a, self.i_b))
            product = block_product(part, a, b, *(Cut(part, each) for each in registered))
            m.d.comb += getattr(self, f"o_{k}").eq(product)
        return m


@pytest.mark.skipif(os.environ.get("SHIFTCORE_NETLIST", "ecp5") != "ecp5", reason="no such cells")
def test_the_multiplier_with_each_choice_of_registers(simulator):
    rng, count = np.random.default_rng(18), 300
    a, b = rng.integers(0, 1 << 18, (2, count)).tolist()
    a[:4], b[:4] = [0x20000, 0x20000, 0x3FFFF, 0x1FFFF], [0x20000, 0x1FFFF, 0x3FFFF, 0x20000]
    names = tuple(f"o_{k}" for k in range(len(Products.CHOICES)))
    job = PipelineJob({"i_a": a + [0] * 4, "i_b": b + [0] * 4}, names)
    found = simulate(Products, bench="pipeline_bench", job=job, simulator=simulator)
    for name, (sign, *registered) in zip(names, Products.CHOICES, strict=True):
        x, y = ([v - (v >> 17 << 18) * sign for v in each] for each in (a, b))
        right = [p * q & (1 << 36) - 1 for p, q in zip(x, y, strict=True)]
        assert found[name][sum(registered) :][:count] == right, (sign, registered)


@pytest.mark.parametrize("port", ["A", "B"])
def test_a_parameter_that_is_wrong_is_found(port, read):
    before = rf"DATA_WIDTH_{port}\(32'd18"
    found = read(ONE, "ecp5", lambda verilog: re.sub(before, f"DATA_WIDTH_{port}(32'd9", verilog))
    assert found != computed(ONE)


def test_contents_that_are_wrong_are_found(read):
    last = r"(\.INITVAL_00\(320'h\w*)(\w)\)"
    flip = lambda match: f"{match[1]}{int(match[2], 16) ^ 1:x})"  # noqa: E731
    assert read(ONE, "ecp5", lambda verilog: re.sub(last, flip, verilog)) != computed(ONE)


def test_a_model_that_is_wrong_is_found(read, monkeypatch, tmp_path):
    shutil.copytree(netlist.MODELS, tmp_path / "cells")
    monkeypatch.setattr(netlist, "MODELS", tmp_path / "cells")
    model = tmp_path / "cells" / "block_ram.sv"
    right = model.read_text(encoding="utf-8")
    wrong = right.replace("{9{bytes[p][k]}}", "{9{bytes[p][0]}}")
    assert wrong != right
    model.write_text(wrong, encoding="utf-8")
    assert read(ONE, "ecp5") != computed(ONE)


@pytest.mark.parametrize(
    ("family", "before", "after", "message"),
    [
        ("ecp5", 'REGMODE_B("NOREG', 'REGMODE_B("IN', "REGMODE_B must be NOREG or OUTREG, not IN"),
        ("ecp5", 'CLKAMUX("CLKA', 'CLKAMUX("INV', "CLKAMUX must be CLKA, not INV"),
        ("ecp5", "DATA_WIDTH_B(32'd18", "DATA_WIDTH_B(32'd36", "DATA_WIDTH_A must be 36"),
        ("ecp5", 'GSR("DISABLED', 'WID("3', "Parameter not found: 'WID'"),
        ("xilinx7", "DOB_REG(32'sd0", "DOB_REG(32'sd1", "DOB_REG must be 0, not 1"),
        ("xilinx7", "DOB_REG(32'sd0", 'RAM_EXTENSION_B("UPPER"', "RAM_EXTENSION_B must be NONE"),
        ("xilinx7", "DOB_REG(32'sd0", 'EN_ECC_READ("TRUE"', "Parameter not found: 'EN_ECC_READ'"),
    ],
)
def test_what_a_model_does_not_know_is_refused(family, before, after, message, read):
    with pytest.raises(SimulationError, match=re.escape(message)):
        read(ONE, family, lambda verilog: verilog.replace(before, after))
