"""Modules that are elaborated once and instantiated many times."""

from collections.abc import Callable

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal
from amaranth.lib import wiring

__all__ = ["Library", "place"]


class Library:
    """The modules that instances refer to; Verilog emission passes one as the platform.

    Parameters
    ----------
    prefix : of the modules' names
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.definitions: dict[str, wiring.Component] = {}


def place(m: Module, platform, name: str, kind: str, make: Callable[[], wiring.Component]):
    """Add the component that `make` returns to `m` as submodule `name`; return its interface.

    With a :class:`Library` as the platform the submodule is an instance of the module `kind`, which
    is made and elaborated once; calls with one kind must make equal components. Elaborating the
    same processing element hundreds of times would take minutes and bloat the Verilog.

    The component's members must be plain signals, not interfaces.
    """
    if not isinstance(platform, Library):
        m.submodules[name] = component = make()
        return component
    kind = f"{platform.prefix}_{kind}"
    if kind not in platform.definitions:
        platform.definitions[kind] = make()
    signature = platform.definitions[kind].signature
    interface = signature.create(path=(name,))
    ports = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
    for port, member in signature.members.items():
        direction = "i" if member.flow == wiring.In else "o"
        ports[f"{direction}_{port}"] = getattr(interface, port)
    m.submodules[name] = Instance(kind, **ports)
    return interface
