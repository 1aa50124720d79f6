"""Products on ECP5's carry chains, which take the AND of a partial product along."""

from amaranth.hdl import Cat, Const, Instance, Module, Signal, Value, signed

__all__ = ["carry_chain", "carry_chain_product", "ternary_sum"]


def _table(invert: bool) -> int:
    """INIT of half a CCU2C that adds C & D to A & B, or to its complement.

    Bit A + 2 B + 4 C + 8 D of it is the sum without carry. Where that is 0 both summands are the
    carry, and the cell takes it from the lowest four bits: the first summand, as the second one is
    0 there.
    """
    return sum((((k & 3) == 3) ^ ((k & 12) == 12) ^ invert) << k for k in range(16))


_TERNARY = sum((k & 1 ^ (k >> 1 ^ k >> 3) & k >> 2 & 1) << k for k in range(16))
"""INIT of half a CCU2C that adds (B ^ D) & C to A."""


def _carry_chain(m: Module, name: str, table: int, pins: list[Value], carry: Value) -> Signal:
    """Sums of two bits a CCU2C, whose pins A, B, C and D get the bits of the four `pins`."""
    width = len(pins[0])
    total = Signal(width + width % 2, name=name)
    for k in range(0, width, 2):
        following = Signal(name=f"{name}_carry_{k + 2}")
        inputs = {
            f"i_{pin}{half}": operand[k + half] if k + half < width else Const(0, 1)
            for half in range(2)
            for pin, operand in zip("ABCD", pins, strict=True)
        }
        m.submodules[f"{name}_{k}"] = Instance(
            "CCU2C",
            p_INIT0=Const(table, 16),
            p_INIT1=Const(table, 16),
            p_INJECT1_0="NO",
            p_INJECT1_1="NO",
            i_CIN=carry,
            o_S0=total[k],
            o_S1=total[k + 1],
            o_COUT=following,
            **inputs,
        )
        carry = following
    return total


def carry_chain(
    m: Module, name: str, x: tuple[Value, Value], y: tuple[Value, Value], invert: bool = False
) -> Value:
    """``(x[0] & x[1]) + (y[0] & y[1])`` modulo 2**n, all operands n bits, in n / 2 CCU2C.

    With `invert` the first summand is subtracted: its complement is added, and 1.
    """
    total = _carry_chain(m, name, _table(invert), [*x, *y], Const(invert, 1))
    return total[: len(x[0])]


def ternary_sum(m: Module, above: Value, act: Value, code: Value, width: int) -> Value:
    """``above + act * code`` modulo 2**width for a `code` of two bits that is not -2.

    A bit more below brings the carry of a subtraction to the chain.
    """
    negative = code[1]
    wide, lanes = Signal(signed(width), name="above"), Signal(signed(width), name="lanes")
    m.d.comb += [wide.eq(above), lanes.eq(act)]
    pins = [
        Cat(negative, wide),
        Cat(Const(1, 1), lanes),
        Cat(negative, code[0].replicate(width)),
        Cat(Const(0, 1), negative.replicate(width)),
    ]
    return _carry_chain(m, "ternary", _TERNARY, pins, Const(0, 1))[1 : width + 1]


def carry_chain_product(m: Module, w: Value, a: Value) -> Value:
    """``w * a`` of two signed numbers in ``len(w) - 1`` carry chains of ECP5.

    The result has ``len(w) + len(a) - 1`` bits, which hold the product unless both operands are the
    most negative number of their shape. One chain adds the first two partial products, each
    following one the next; the one of the sign is subtracted. Each leaves its lowest bit behind.
    """
    last = len(w) - 1
    low = [a[0] & w[0]]
    above, bit = a >> 1, w[0]
    for k in range(1, len(w)):
        # Bits that are still to come double the sum at most; the whole product has one bit less.
        width = len(a) + (k < last)
        partial, rest = Signal(signed(width), name=f"act_{k}"), Signal(signed(width), name=f"y_{k}")
        m.d.comb += [partial.eq(a), rest.eq(above)]
        ones = Const(-1, signed(width))
        total = carry_chain(
            m, f"row_{k}",
            (partial, w[k].replicate(width)),
            (rest, ones if bit is None else bit.replicate(width)),
            invert=k == last,
        )  # fmt: skip
        above, bit = total[1:].as_signed(), None
        low.append(total[0])
    return Cat(*low, above).as_signed()
