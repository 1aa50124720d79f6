"""Verilog emission."""

import gc
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.hdl import Elaboratable, Fragment, Shape
from amaranth.lib import wiring
from amaranth.lib.fifo import FIFOInterface

from ..golden.config import HardwareConfig
from ..golden.registers import configuration_hash
from .accelerator import Accelerator, accelerator_signature
from .library import Library
from .names import readable, without_keywords

__all__ = [
    "TOP",
    "WAIVERS",
    "accelerator_inputs",
    "accelerator_ports",
    "accelerator_verilog",
    "emit",
    "emit_rtlil",
]

TOP = "shiftcore"

WAIVERS = {
    "WIDTHEXPAND": "operands are extended to their context by the rules of Verilog",
    "WIDTHTRUNC": "and results are cut to what they are assigned to",
    "CASEINCOMPLETE": "a value is set before each case that does not list all",
    "PROCASSINIT": "registers begin with the value of their reset, as in an FPGA",
    "UNUSEDSIGNAL": "fields of a bus have names, whether or not they are read",
    "VARHIDDEN": "a signal may be called like an instance of another module",
    "DECLFILENAME": "one file holds all modules",
}
"""Rules of Verilator's ``-Wall`` that the Verilog does not keep, and why it need not."""

_AT_START = re.compile(r"\\\$auto\$verilog_backend\.cc:\d+:dump_module\$\d+ ")
_MODULE = re.compile(r"^module \\?([^\s(]+)", flags=re.MULTILINE)


def emit(component: wiring.Component, name: str, *, title: str = "") -> str:
    """Vendor-neutral Verilog of a component as module `name`; the same text every time.

    The modules of a :class:`~shiftcore.hw.library.Library` follow as ``name_kind``. A comment
    before each module says what it is and its parameters; `title` is the first comment of all.
    """
    with _without_collector():
        before, after, comments = _modules(component, name)
    renamed = dict(zip(_MODULE.findall(after), _MODULE.findall(before), strict=True))
    # Amaranth converts one component to Verilog in public; several modules at once only here.
    text = verilog._convert_rtlil_text(after, strip_internal_attrs=True)
    text = without_keywords(_AT_START.sub("at_start", text))
    if name not in _MODULE.findall(text):
        raise ValueError(f"the name of a module must be no word of Verilog, not {name!r}")
    text = _MODULE.sub(lambda found: comments.get(renamed[found[1]], "") + found[0], text)
    waived = "".join(f"/* verilator lint_off {rule} */ // {why}\n" for rule, why in WAIVERS.items())
    return _comment(title) + waived + text


def emit_rtlil(component: wiring.Component, name: str) -> str:
    """What :func:`emit` makes Verilog of. Yosys takes minutes to read large memories' contents from
    Verilog, and no time from this."""
    with _without_collector():
        return _modules(component, name)[1]


@contextmanager
def _without_collector() -> Iterator[None]:
    """Amaranth makes very many objects that stay until the end: they are not looked through for
    cycles again and again meanwhile."""
    enabled = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if enabled:
            gc.enable()


def _modules(component: wiring.Component, name: str) -> tuple[str, str, dict[str, str]]:
    """RTLIL as Amaranth writes it and with readable names, and the comments of its modules."""
    library = Library(name)
    texts: list[str] = []
    comments: dict[str, str] = {}
    pending: dict[str, wiring.Component] = {name: component}
    while pending:
        for kind, part in pending.items():
            traced = _Traced(part)
            texts.append(rtlil.convert(traced, name=kind, platform=library, emit_src=False))
            comments |= _comments(traced.fragment, kind)
        pending = {k: part for k, part in library.definitions.items() if k not in comments}
    before = "\n".join(text.replace("attribute \\top 1\n", "") for text in texts)
    return before, readable(before), comments


class _Traced(Elaboratable):
    """A component that keeps what it was elaborated to."""

    def __init__(self, component: wiring.Component):
        self.component, self.signature = component, component.signature

    def __getattr__(self, member: str) -> Any:
        return getattr(self.component, member)

    def elaborate(self, platform: Any) -> Fragment:
        self.fragment = Fragment.get(self.component, platform)
        return self.fragment


def _comments(fragment: Fragment, name: str) -> dict[str, str]:
    """The comment of each module that `fragment` becomes."""
    found = {name: _comment(_description(fragment))}
    for part, inner, _ in fragment.subfragments:
        found |= _comments(part, f"{name}.{inner}")
    return found


def _description(fragment: Fragment) -> str:
    """What a module is: first paragraph of the component's docstring, and its parameters."""
    for origin in fragment.origins or ():
        if isinstance(origin, wiring.Component | FIFOInterface):
            kind = type(origin)
            what = (inspect.getdoc(kind) or "").split("\n\n")[0]
            given = {key: getattr(origin, key, None) for key in inspect.signature(kind).parameters}
            listed = ", ".join(f"{key}={value}" for key, value in _leaves(given).items())
            return f"{kind.__name__}: {what}\n{listed}"
    return ""


def _leaves(values: Mapping[str, Any]) -> dict[str, str]:
    """The numbers and words among parameters, those inside specs included.

    Where two of them have one name and different values, the second one's spec is named too.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        if is_dataclass(value):
            inner = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
            for name, leaf in _leaves(inner).items():
                found[name if found.get(name, leaf) == leaf else f"{key}.{name}"] = leaf
        elif isinstance(value, int | str):
            found[key] = str(value)
    return found


def _comment(text: str) -> str:
    """Lines of a Verilog comment, in ASCII, which every tool reads."""
    plain = re.sub(r"``?|:\w+:", "", text).translate({ord("×"): "x", ord("−"): "-"})
    plain = plain.encode("ascii", "replace").decode()
    lines = [wrapped for line in plain.splitlines() for wrapped in textwrap.wrap(line, 96)]
    return "".join(f"// {line}\n" for line in lines)


def accelerator_verilog(config: HardwareConfig) -> str:
    """The accelerator of a configuration as module ``shiftcore``."""
    what = f"Shiftcore {version(TOP)}, configuration hash {configuration_hash(config):08x}"
    return emit(Accelerator(config), TOP, title=f"{what}\n{config.dumps()}")


def accelerator_inputs(config: HardwareConfig) -> frozenset[str]:
    """The ports of ``shiftcore`` that are inputs."""
    members = accelerator_signature(config).members.items()
    return frozenset({"clk", "rst", *(name for name, port in members if port.flow == wiring.In)})


def accelerator_ports(config: HardwareConfig) -> dict[str, int]:
    """Ports of ``shiftcore`` and their widths in bits, clock and reset included."""
    members = accelerator_signature(config).members.items()
    return {"clk": 1, "rst": 1} | {name: Shape.cast(port.shape).width for name, port in members}
