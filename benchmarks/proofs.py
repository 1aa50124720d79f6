"""Proofs that PEs compute what plain operators say: ``python benchmarks/proofs.py``.

yosys proves by SAT and induction, of the Verilog as it is instantiated and for any state that a PE
can be in, that its registers and outputs are those of a PE with ``*`` and ``+``. One law is given,
where the Verilog multiplies with ``*``: the product of a sum is the sum of the products. Another,
where a block multiplies twice: the product of the same numbers is the same in more bits.
"""

import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from shiftcore.benchmarks.report import Row, show
from shiftcore.golden.array import STYLES, ArraySpec, Style
from shiftcore.hw.dual import HALF, DualElements
from shiftcore.hw.packed import PackedElements, WeightPacker
from shiftcore.hw.pe import ProcessingElement
from shiftcore.hw.verilog import emit
from shiftcore.toolchain.netlist import cell_model
from shiftcore.toolchain.yosys import ToolError, run_yosys

LAST = 127
"""row of the widest sums"""
WIDTHS = range(2, 9)
"""Of weight codes and of activation codes."""

# What is to be proved. Registers of both agree at first, all zero; if they do in a cycle, they and
# all outputs do in the next. Of columns that share a product: the weights are those that the packer
# makes of plain ones, the factor is their sum, each shifted to its place, and the product that of
# the plain products. No lane is -2**m, and so no product the most negative number. A ternary PE has
# no register for the product, but the operand and the weight, of which it is made.
_CLAIM = """\
module claim(
  input clk, swap, enable, input signed [{m}:0] act, input signed [{b}-1:0] {codes},
  input signed [{above}-1:0] {sums}, output legal, law, holds
);
  reg signed [{m}:0] {act_n};
  reg {swap_n}, {enable_n};
  reg signed [{b}-1:0] {shadows}, {weights};
  reg signed [{k}-1:0] {products};
  reg signed [{below}-1:0] {totals};
{columns}  initial {{{all_n}}} = 0;
  always @(posedge clk) begin
    {{{act_n}}} <= {{act{act_i}}};
    {{{swap_n}}} <= {{swap{swap_i}}};
    {{{enable_n}}} <= {{enable{enable_i}}};
{steps}  end

  wire signed [{m}:0] o_act;
  wire {sign}[{field}-1:0] i_code, o_code, o_weight, shadow, weight;
  wire signed [{b}-1:0] o_held;
  wire signed [{n}*{k}-1:0] o_product{held};
  wire signed [{below}-1:0] {o_sums};
  wire o_swap, o_enable, o_carry;
{wires}  wire signed [{n}*{k}:0] carry = {carry};
  {packer} of_code(.i_codes({codes_down}), .o_code(i_code));
  {packer} of_shadow(.i_codes({shadows_down}), .o_code(shadow));
  {packer} of_weight(.i_codes({weights_down}), .o_code(weight));
  unit unit(
    .clk(clk), .rst(1'b0), .i_act(act), .i_swap(swap), .i_enable(enable),
    .o_act(o_act), .o_swap(o_swap), .o_enable(o_enable), .o_code(o_code), {ports}
    .i_code(i_code)
  );
  assign legal = act != -{top} && code_0 >= {least};
{law}  assign holds = o_act == act_{n} && o_swap == swap_{n} && o_enable == enable_{n}{delayed}
    && o_code == shadow{each}
    && {held_weights} && {held_products};
endmodule
module plain(input [{field}-1:0] i_codes, output signed [{field}-1:0] o_code);
  assign o_code = i_codes;
endmodule
"""
_COLUMN = """\
  wire signed [{k}-1:0] next_{c} = weight_{c} * act;
  wire signed [{n}*{k}-1:0] code_place_{c} = weight_{c}, next_place_{c} = next_{c};
  wire signed [{n}*{k}-1:0] product_place_{c} = product_{c};
"""
_STEP = """\
    if (enable) shadow_{c} <= code_{c};
    if (swap) weight_{c} <= shadow_{c};
    product_{c} <= next_{c};
    total_{c} <= {sum} + product_{c};
"""

# SAT takes hours to see that the product of a sum is the sum of the products. So it is told, where
# the Verilog has `*`: if the factor is the sum of the weights, each in its place, its product is
# the sum of theirs, for k bits hold the product of legal operands. Numbers do so modulo any power
# of two, whatever the hardware does; that the factor is that sum is proved.
_LAW = """\
  wire signed [{f}+{m}:0] whole = o_{factor} * act;
  wire signed [{n}*{k}-1:0] factor_place = o_{factor}, modulo = whole;
  assign law = act == -{top} || factor_place != {code_places} || modulo == {next_places};
"""


# Of two columns in an SB_MAC16. Its register has a byte for a weight, its operands and products
# have two; the law is that the product of the same numbers is the same in more bits.
_DUAL = """\
  wire [15:0] o_weights;
  wire [31:0] o_products, o_left, o_right, o_next;
  wire signed [7:0] byte_0 = weight_0, byte_1 = weight_1;
  wire signed [15:0] left_0 = weight_0, left_1 = weight_1, right = act;
  wire signed [15:0] half_0 = product_0, half_1 = product_1, coming_0 = next_0, coming_1 = next_1;
  assign law = act == -{top} || o_left != {{left_1, left_0}} || o_right != {{right, right}}
    || o_next == {{coming_1, coming_0}};
"""
_DUAL_SIGNALS = {
    "o_weights": r"\unit.block.rA",
    "o_left": r"\unit.block.Ah,\unit.block.Al",
    "o_right": r"\unit.block.Bh,\unit.block.Bl",
    "o_products": r"\unit.block.rF,\unit.block.rG",
    "o_next": r"\unit.block.p_Ah_Bh,\unit.block.p_Al_Bl",
}


def _inner(spec: ArraySpec, columns: int) -> list[str]:
    """What is looked at inside of ``unit``: registers, and the factor of several weights."""
    delays = [f"{name}_{c}" for c in range(1, columns) for name in ("act", "swap", "enable")]
    if spec.dual:
        return delays
    product = {"lut": ["product", "carry"], "ecp5-ternary": ["held"]}
    factor = ["factor"] * (columns > 1)
    return ["weight", *factor, *product.get(spec.multiplier, ["product"]), *delays]


def claim(spec: ArraySpec, row: int, columns: int) -> str:
    """Module ``claim``: PEs of plain operators beside the module ``unit``."""

    def numbered(name: str, first: int = 0) -> str:
        names = [f"{name}_{c}" for c in range(first, first + columns)]
        return ", ".join(names)

    def joined(name: str) -> str:
        names = [f"{name}_{c}" for c in reversed(range(columns))]
        return names[0] if columns == 1 else f"{{{', '.join(names)}}}"

    delays = {f"{name}_n": numbered(name, 1) for name in ("act", "swap", "enable")}
    plain = {
        f"{name}s": numbered(name)
        for name in ("code", "sum", "shadow", "weight", "product", "total", "o_sum")
    }
    state = ("shadows", "weights", "products", "totals")
    ends = [""] if columns == 1 else [f"_{c}" for c in range(columns)]
    ports = [f".o_sum{end}(o_sum_{c})," for c, end in enumerate(ends)]
    ports += [f".i_sum{end}(sum_{c})," for c, end in enumerate(ends) if row]
    inner = _inner(spec, columns)
    ports += [f".{name}(o_{name})," for name in inner]
    bits = {"b": spec.weight_bits, "m": spec.act_bits, "k": spec.product_bits, "n": columns}
    top = 1 << spec.act_bits
    places = {
        f"{name}_places": " + ".join(
            f"({name}_place_{c} <<< {c * spec.product_bits})" for c in range(columns)
        )
        for name in ("code", "next", "product")
    }
    law = "  assign law = 1;\n"
    held = "o_weight == weight", f"o_product + carry == {places['product_places']}"
    if spec.dual:
        law = _DUAL.format(top=top)
        held = "o_weights == {byte_1, byte_0}", "o_products == {half_1, half_0}"
    elif columns > 1 or spec.multiplier == "dsp":
        factor = "factor" if columns > 1 else "weight"
        law = _LAW.format(**bits, **places, top=top, f=spec.packed_bits(columns), factor=factor)
    return _CLAIM.format(
        **bits,
        **places,
        **delays,
        **plain,
        field=spec.field_bits(columns),
        above=spec.partial_sum_bits(row - 1) if row else 1,
        below=spec.partial_sum_bits(row),
        **{
            f"{name}_i": "".join(f", {name}_{c}" for c in range(1, columns))
            for name in ("act", "swap", "enable")
        },
        **{
            f"{name}s_down": joined(name) for name in ("code", "shadow", "weight")
        },
        columns="".join(_COLUMN.format(**bits, c=c) for c in range(columns)),
        all_n=", ".join([*delays.values(), *(plain[name] for name in state)]),
        steps="".join(
            _STEP.format(c=c, sum=f"sum_{c}" if row else "0") for c in range(columns)
        ),
        sign="signed " if columns == 1 else "",
        packer="plain" if columns == 1 or spec.dual else "packer",
        ports=" ".join(ports),
        top=top,
        least=spec.least_code,
        law=law,
        held_weights=held[0],
        held_products=held[1],
        held=" = o_held * act_1" if spec.multiplier == "ecp5-ternary" else "",
        wires=f"  wire signed [{spec.packed_bits(columns)}-1:0] o_factor;\n" + "".join(
            f"  wire signed [{spec.act_bits}:0] o_act_{c};\n" for c in range(1, columns)
        ),
        delayed="".join(f" && o_{name} == {name}" for name in inner if name[-1].isdigit())
        + f" && o_held >= {spec.least_code}" * ("held" in inner)
        + f" && factor_place == {places['code_places']}" * ("factor" in inner),
        each="".join(
            f" && o_sum_{c} == total_{c} && product_{c} != -{1 << (spec.product_bits - 1)}"
            f" && shadow_{c} >= {spec.least_code} && weight_{c} >= {spec.least_code}"
            for c in range(columns)
        ),
        carry="{1'b0, o_carry}" if spec.multiplier == "lut" else "0",
    )  # fmt: skip


def _prove(spec: ArraySpec, row: int, *how: str) -> None:
    """Prove something of module ``claim`` by yosys' commands."""
    columns = spec.groups[0]
    joined = []
    if columns == 1:
        sources = {"unit": emit(ProcessingElement(spec, row), "unit")}
    elif spec.dual:
        sources = {
            "unit": emit(DualElements(spec, row, columns), "unit"),
            "block": cell_model("ice40", "SB_MAC16"),
        }
        joined = [
            "proc",
            r"setattr -set init 0 w:\unit.block.r?",
            *(f"connect -set {wire} {signal}" for wire, signal in _DUAL_SIGNALS.items()),
            "async2sync",
        ]
    else:
        sources = {
            "unit": emit(PackedElements(spec, row, columns), "unit"),
            "packer": emit(WeightPacker(spec, columns), "packer"),
        }
    commands = [
        "read_verilog -nooverwrite +/ecp5/cells_sim.v",
        "proc",
        f"expose {' '.join(f'unit/w:{name}' for name in _inner(spec, columns))}",
        "hierarchy -check -top claim",
        "flatten",
        *joined,
        "opt_clean",
        *how,
    ]
    with tempfile.TemporaryDirectory(prefix="shiftcore-") as folder:
        run_yosys(Path(folder), sources | {"claim": claim(spec, row, columns)}, commands)


def prove(spec: ArraySpec, row: int) -> None:
    """Prove the PEs of the first columns, as many as share a product, in `row` of an array.

    Raises ``ToolError`` if they differ.
    """
    _prove(spec, row, "sat -tempinduct -maxsteps 1 -prove holds 1 -set legal 1 -set law 1 -verify")


def prove_law(spec: ArraySpec) -> None:
    """Prove what :func:`prove` is told of products, of narrow ones; wide ones take hours.

    Raises ``ToolError`` if it is wrong.
    """
    _prove(spec, 1, "setattr -unset init w:*", "sat -seq 1 -prove law 1 -verify")


def wanted(style: Style, bits: int, row: int) -> list[ArraySpec]:
    """What is to be proved of a style with `bits` of weights: PEs of all activations' widths.

    Of packed products groups of as many columns as there can be, and fewer; what a style for
    narrower operands has as well is the same and proved there.
    """
    found = []
    others = STYLES[: STYLES.index(style)]
    narrower = max((ArraySpec(1, 1, 2, 2, other).operand_limit for other in others), default=0)
    for m in WIDTHS:
        for columns in range(1, 9):
            try:
                spec = ArraySpec(row + 1, columns, bits, m, style)
            except ValueError:
                break  # too wide to be packed
            if spec.groups != [columns] or (columns == 1) == bool(spec.operand_limit or spec.dual):
                continue
            if columns == 1 or spec.dual or spec.packed_bits(columns) > narrower:
                found.append(spec)
    return found


def rows(spec: ArraySpec) -> list[int]:
    """The first row, which has no sum from above, the last one, and the last of a block's sums."""
    inside = [row for row in range(1, LAST) if spec.partial_sum_bits(row) <= HALF]
    return [0, *inside[-1:], LAST] if spec.dual else [0, LAST]


def measure(style: Style, bits: int, progress: Console) -> Row:
    """Prove all PEs of a style with `bits` of weights."""
    begin = time.monotonic()
    proved, failed = 0, []
    for spec in wanted(style, bits, LAST):
        for row in rows(spec):
            name = f"m = {spec.act_bits}, {spec.cols} columns, row {row}"
            with progress.status(f"{style}, b = {bits}, {name} …"):
                try:
                    prove(spec, row)
                    proved += 1
                except ToolError as error:
                    failed.append(f"{name}: {error}")
    seconds = round(time.monotonic() - begin)
    return {"style": style, "b": bits, "proved": proved, "failed": failed, "seconds": seconds}


@click.command(help=__doc__)
@click.option("--style", "styles", multiple=True, type=click.Choice(STYLES))
@click.option("--bits", "widths", multiple=True, type=click.IntRange(2, 8), help="Of weights.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(styles: tuple[Style, ...], widths: tuple[int, ...], as_json: bool) -> None:
    """Prove, print, and fail if a proof fails."""
    progress = Console(stderr=True)
    rows = [
        measure(style, bits, progress)
        for style in styles or STYLES
        for bits in widths or WIDTHS
        if wanted(style, bits, 0)
    ]
    show(
        rows,
        ("style", "b", "proved", "failed", "seconds"),
        lambda row: [
            row["style"], f"{row['b']}", f"{row['proved']}", "\n".join(row["failed"]) or "0",
            f"{row['seconds']}",
        ],
        lambda row: bool(row["failed"]) or not row["proved"],
        title="PEs proved equal to * and +: all widths, the first and the last of 128 rows",
        as_json=as_json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
