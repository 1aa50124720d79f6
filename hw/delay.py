"""Fixed delays."""

from amaranth.hdl import Module, Signal, Value

__all__ = ["delayed"]


def delayed(m: Module, value: Value, cycles: int, name: str, *, reset: bool = False) -> Value:
    """`value` as it was `cycles` cycles ago.

    Parameters
    ----------
    reset : whether the delay line starts at zero; data that a valid bit guards need not
    """
    for stage in range(cycles):
        held = Signal(value.shape(), name=f"{name}_{stage + 1}", reset_less=not reset)
        m.d.sync += held.eq(value)
        value = held
    return value
