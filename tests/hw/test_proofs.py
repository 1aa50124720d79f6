"""PEs proved equal to plain operators; ``make proofs`` proves all widths."""

import itertools
import subprocess
from pathlib import Path

import pytest

from shiftcore.benchmarks import proofs
from shiftcore.golden.array import STYLES, ArraySpec
from shiftcore.hw import carry_chain, dual, packed
from shiftcore.hw.verilog import emit
from shiftcore.sim import runner
from shiftcore.sim.runner import SimulationError
from shiftcore.tests.hw import test_array, test_pe
from shiftcore.toolchain.yosys import ToolError

FAILED = "^yosys: Called with -verify and proof did fail"


# b, m, row, and the columns that share a product.
PACKED = [("packed18", 4, 3, 1, 2), ("packed18", 2, 2, 0, 4), ("packed16", 3, 2, 1, 3)]
PACKED += [("ice40-dual", 2, 2, 0, 2), ("ice40-dual", 4, 4, 15, 2), ("ice40-dual", 8, 7, 127, 2)]
PLAIN = [
    (style, *widths, 1)
    for style in ("lut", "dsp", "ecp5-carry")
    for widths in ((2, 2, 0), (3, 4, 1), (4, 4, 15), (4, 8, 15))
] + [("ecp5-ternary", 2, 4, 0, 1), ("ecp5-ternary", 2, 8, 15, 1)]


@pytest.mark.parametrize(("style", "b", "m", "row", "columns"), [*PLAIN, *PACKED])
def test_elements_are_proved(style, b, m, row, columns):
    spec = ArraySpec(row + 1, 8 if columns > 1 else 1, b, m, style)
    assert spec.groups[0] == columns
    proofs.prove(spec, row)


@pytest.mark.parametrize(
    ("style", "b", "m", "columns"),
    [("dsp", 4, 4, 1), ("packed16", 2, 2, 2), ("packed16", 2, 2, 3), ("packed18", 4, 2, 3),
     ("packed25", 2, 3, 5), ("ice40-dual", 2, 2, 2), ("ice40-dual", 3, 2, 2)],
)  # fmt: skip
def test_the_law_of_products_holds(style, b, m, columns, monkeypatch):
    """What proofs are told; of several columns it is wrong if a lane is -2**m."""
    spec = ArraySpec(2, columns, b, m, style)
    assert spec.groups == [columns]
    proofs.prove_law(spec)
    if columns == 1 or spec.dual:
        return  # whatever is above k bits is above all places
    monkeypatch.setattr(proofs, "_LAW", proofs._LAW.replace("act == -{top} || ", ""))
    with pytest.raises(ToolError, match=FAILED):
        proofs.prove_law(spec)


def test_the_law_holds_for_random_operands_of_all_widths(tmp_path):
    """In the words of the claim, where the factor is the sum of the weights."""
    specs = {
        (spec.weight_bits, spec.act_bits, spec.cols): spec
        for style in STYLES
        if style == "dsp" or "packed" in style
        for bits in proofs.WIDTHS
        for spec in proofs.wanted(style, bits, 0)
    }
    assert len(specs) > 130
    modules = []
    for (b, m, n), spec in specs.items():
        k, places = b + m, []
        lines = [f"module law_{b}_{m}_{n};", f"  reg signed [{m}:0] act;"]
        for c in range(n):
            lines += [f"  reg signed [{b}-1:0] weight_{c};", f"  reg signed [{k}-1:0] product_{c};"]
            lines.append(proofs._COLUMN.format(b=b, m=m, k=k, n=n, c=c))
            places.append(f"(code_place_{c} <<< {c * k})")
        lines.append(f"  wire signed [{spec.packed_bits(n)}-1:0] o_factor = {' + '.join(places)};")
        lines += [
            "  wire law;",
            proofs._LAW.format(
                b=b, m=m, k=k, n=n, f=spec.packed_bits(n), factor="factor", top=1 << m,
                code_places=" + ".join(places),
                next_places=" + ".join(f"(next_place_{c} <<< {c * k})" for c in range(n)),
            ),
            "  integer i;",
            "  initial for (i = 0; i < 500; i = i + 1) begin",
            f"    act = i < 4 ? (i & 1 ? {(1 << m) - 1} : -{(1 << m) - 1}) : $random;",
            *(
                f"    weight_{c} = i < 4 ? (i & 2 ? {(1 << b - 1) - 1} : -{1 << b - 1}) : $random;"
                for c in range(n)
            ),
            f'    #1 if (factor_place != {" + ".join(places)} || !law)'
            f' begin $display("law_{b}_{m}_{n} is broken"); i = 1000; end',
            "  end",
            "endmodule",
        ]  # fmt: skip
        modules.append("\n".join(lines))

    def output(text: str) -> str:
        (tmp_path / "laws.v").write_text(text, encoding="utf-8")
        command = ["iverilog", "-g2012", "-o", str(tmp_path / "laws"), str(tmp_path / "laws.v")]
        subprocess.run(command, check=True)
        done = subprocess.run(
            ["vvp", "-n", str(tmp_path / "laws")], check=True, capture_output=True, text=True
        )
        return done.stdout

    assert output("\n".join(modules)) == ""
    wrong = [module.replace("modulo == ", "modulo + 1 == ") for module in modules]
    assert len(output("\n".join(wrong)).splitlines()) == len(specs)


def test_all_widths_are_to_be_proved():
    """Every group of columns that an array can have."""
    proved = {
        (spec.multiplier, spec.weight_bits, spec.act_bits, spec.cols)
        for style in STYLES
        for bits in range(2, 9)
        for spec in proofs.wanted(style, bits, 127)
    }
    packed = {(b, m, columns) for style, b, m, columns in proved if "packed" in style}
    assert len(packed) == len([each for each in proved if "packed" in each[0]])
    for style, b, m in itertools.product(STYLES, range(2, 9), range(2, 9)):
        if "packed" not in style:
            found = [cols for cols in range(1, 9) if (style, b, m, cols) in proved]
            lacks = (style == "ecp5-ternary" and b > 2) or (style == "ice40-dual" and m == 8)
            assert found == ([] if lacks else [1 + (style == "ice40-dual")])
            continue
        for cols in range(2, 9):
            try:
                groups = ArraySpec(1, cols, b, m, style).groups
            except ValueError:
                assert 2 * b + m + 1 > int(style[-2:])
                continue
            assert {(b, m, size) for size in groups if size > 1} <= packed


@pytest.mark.parametrize("fault", ["packer", "carry"])
def test_a_missing_borrow_is_found(fault, simulator, monkeypatch):
    """By proof and by simulation: in the packed weights, or in the sum above a negative product."""
    path = Path(packed.__file__)
    before, after = {
        "packer": ("self.i_codes[c] - fields[-1][-1]", "self.i_codes[c]"),
        "carry": ("product[c * k - 1] if c else 0", "0"),
    }[fault]
    source = path.read_text(encoding="utf-8")
    assert before in source
    wrong = {"__name__": packed.__name__, "__package__": packed.__package__}
    exec(compile(source.replace(before, after), str(path), "exec"), wrong)
    for kind in ("WeightPacker", "PackedElements"):
        monkeypatch.setattr(getattr(packed, kind), "elaborate", wrong[kind].elaborate)
    spec = ArraySpec(2, 2, 3, 3, "packed18")
    with pytest.raises(ToolError, match=FAILED):
        proofs.prove(spec, 1)
    # The cache of Verilog goes by sources, which are the same.
    monkeypatch.setattr(runner, "verilog_of", lambda make, *args: emit(make(*args), "dut"))
    with pytest.raises(AssertionError):
        test_array.test_tiles_without_a_bubble(spec, simulator)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("found[:HALF], found[HALF:]", "found[HALF:], found[:HALF]"),
        ("halves[1].eq(high.as_signed())", "halves[1].eq(high)"),
        ("i_AHOLD=~self.i_swap", "i_AHOLD=self.i_swap"),
        ("i_D=added[:HALF]", "i_D=added[HALF:]"),
        ("p_A_SIGNED=Const(1, 1)", "p_A_SIGNED=Const(0, 1)"),
        ("p_B_SIGNED=Const(1, 1)", "p_B_SIGNED=Const(0, 1)"),
        ("p_MODE_8x8=Const(1, 1)", "p_MODE_8x8=Const(0, 1)"),
        ("p_A_REG=Const(1, 1)", "p_A_REG=Const(0, 1)"),
        ("p_TOPADDSUB_UPPERINPUT=Const(1, 1)", "p_TOPADDSUB_UPPERINPUT=Const(0, 1)"),
        ("Const(2 if wide else 1, 2)", "Const(2, 2)"),
    ],
)
def test_a_block_that_is_used_wrongly_is_found(before, after, simulator, monkeypatch):
    """By proof, and by simulation, where the model refuses what it does not know."""
    path = Path(dual.__file__)
    source = path.read_text(encoding="utf-8")
    assert before in source
    wrong = {"__name__": dual.__name__, "__package__": dual.__package__}
    exec(compile(source.replace(before, after), str(path), "exec"), wrong)
    monkeypatch.setattr(dual.DualElements, "elaborate", wrong["DualElements"].elaborate)
    spec = ArraySpec(2, 2, 3, 3, "ice40-dual")
    with pytest.raises(ToolError, match=FAILED):
        proofs.prove(spec, 1)
    # The cache of Verilog goes by sources, which are the same.
    monkeypatch.setattr(runner, "verilog_of", lambda make, *args: emit(make(*args), "dut"))
    with pytest.raises((AssertionError, SimulationError)):
        test_array.test_tiles_without_a_bubble(spec, simulator)


@pytest.mark.parametrize("style", ["ecp5-carry", "ecp5-ternary"])
def test_a_generate_term_that_is_wrong_is_found(style, simulator, monkeypatch):
    """By proof and by simulation: the carry of the sign row, or of a sum, is another summand's."""
    table, ternary = carry_chain._table, carry_chain._TERNARY
    monkeypatch.setattr(carry_chain, "_table", lambda invert: table(invert) ^ 15 * invert)
    monkeypatch.setattr(carry_chain, "_TERNARY", ternary & ~15 | 0b1100)
    spec = ArraySpec(2, 1, 2 if style == "ecp5-ternary" else 3, 4, style)
    with pytest.raises(ToolError, match=FAILED):
        proofs.prove(spec, 1)
    monkeypatch.setattr(test_pe, "SHAPES", [(spec.weight_bits, 4, 1)])
    monkeypatch.setattr(test_pe, "STYLES", [style])
    # The cache of Verilog goes by sources, which are the same.
    monkeypatch.setattr(runner, "verilog_of", lambda make, *args: emit(make(*args), "dut"))
    with pytest.raises(AssertionError):
        test_pe.test_element_in_every_cycle(simulator)
