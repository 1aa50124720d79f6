"""The registers of a pipeline, at the cuts of its spec."""

from collections.abc import Iterator

from amaranth.hdl import Module, ShapeLike, Signal, Value

from ..golden.pipeline import Pipelined

__all__ = ["Cut", "cuts"]


class Cut:
    """What follows a step: registers, or wires where there is no cut.

    Parameters
    ----------
    registered : whether there is one
    """

    def __init__(self, m: Module, registered: bool):
        self.registered = registered
        self._m, self._domain = m, "sync" if registered else "comb"

    def __call__(self, name: str, value: Value) -> Value:
        """`value` after the step, not to be assigned again: without a cut a signal is itself."""
        if isinstance(value, Signal) and not self.registered:
            return value
        return self.signal(name, value)

    def signal(self, name: str, value: Value, shape: ShapeLike | None = None) -> Signal:
        """`value` after the step, in a `shape` or its own; :meth:`assign` may overrule it."""
        held = Signal(value.shape() if shape is None else shape, name=name, reset_less=True)
        self.assign(held.eq(value))
        return held

    def assign(self, *statements) -> None:
        """Assignments to what is after the step; the last one counts."""
        self._m.d[self._domain] += statements


def cuts(m: Module, spec: Pipelined) -> Iterator[Cut]:
    """What follows each step of `spec`, in order."""
    return (Cut(m, step in spec.cuts) for step in spec.STEPS)
