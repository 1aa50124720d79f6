"""Verilog emission."""

import re

from amaranth.back import rtlil, verilog
from amaranth.hdl import Shape
from amaranth.lib import wiring

from ..golden.config import HardwareConfig
from .accelerator import Accelerator, accelerator_signature
from .library import Library

__all__ = ["TOP", "accelerator_ports", "accelerator_verilog", "emit"]

TOP = "shiftcore"

# What yosys writes relies on Verilog's rules for widths, and sets a default before each case.
_HEADER = "".join(
    f"/* verilator lint_off {rule} */\n" for rule in ("WIDTHEXPAND", "WIDTHTRUNC", "CASEINCOMPLETE")
)
_ELEMENT = re.compile(r"(\\[^\s\[\]]+)\[(\d+)\]")


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
    return _HEADER + verilog._convert_rtlil_text(_plain_names(text), strip_internal_attrs=True)


def _plain_names(text: str) -> str:
    """RTLIL in which the elements of an array, ``x[0]``, are called ``x_0``.

    A wire ``x[0]`` beside a wire ``x`` is legal, but yosys 0.70 fails in ``iopadmap``.
    """
    taken = set(re.findall(r"\\\S+", text))
    renamed: dict[str, str] = {}

    def plain(found: re.Match[str]) -> str:
        name = found[0]
        if name not in renamed:
            new = f"{found[1]}_{found[2]}"
            while new in taken:
                new += "_"
            taken.add(new)
            renamed[name] = new
        return renamed[name]

    while _ELEMENT.search(text):
        text = _ELEMENT.sub(plain, text)
    return text


def accelerator_verilog(config: HardwareConfig) -> str:
    """The accelerator of a configuration as module ``shiftcore``."""
    return emit(Accelerator(config), TOP)


def accelerator_ports(config: HardwareConfig) -> dict[str, int]:
    """Ports of ``shiftcore`` and their widths in bits, clock and reset included."""
    members = accelerator_signature(config).members.items()
    return {"clk": 1, "rst": 1} | {name: Shape.cast(port.shape).width for name, port in members}
