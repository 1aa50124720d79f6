"""Verilog emission."""

from amaranth.back import rtlil, verilog
from amaranth.hdl import Value
from amaranth.lib import wiring

from ..golden.config import HardwareConfig
from .engine import Engine, engine_signature
from .library import Library

__all__ = ["TOP", "emit", "engine_ports", "engine_verilog"]

TOP = "shiftcore"


def emit(component: wiring.Component, name: str) -> str:
    """Vendor-neutral Verilog of a component as module `name`; the same text every time.

    The modules of a :class:`~shiftcore.hw.library.Library` follow as ``name_kind``.
    """
    library = Library(name)
    texts = [rtlil.convert(component, name=name, platform=library, emit_src=False)]
    done: set[str] = set()
    while pending := [kind for kind in library.definitions if kind not in done]:
        for kind in pending:
            shared = library.definitions[kind]
            texts.append(rtlil.convert(shared, name=kind, platform=library, emit_src=False))
            done.add(kind)
    # Amaranth converts one component to Verilog in public; several modules at once only here.
    text = "\n".join(text.replace("attribute \\top 1\n", "") for text in texts)
    return verilog._convert_rtlil_text(text, strip_internal_attrs=True)


def engine_verilog(config: HardwareConfig) -> str:
    """The engine of a configuration as module ``shiftcore``."""
    return emit(Engine(config.engine), TOP)


def engine_ports(config: HardwareConfig) -> dict[str, int]:
    """Ports of ``shiftcore`` and their widths in bits, clock and reset included."""
    ports = {"clk": 1, "rst": 1}
    signature = engine_signature(config.engine)
    for path, _, value in signature.flatten(signature.create()):
        ports["__".join(map(str, path))] = len(Value.cast(value))
    return ports
