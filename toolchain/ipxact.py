"""The accelerator as an IP-XACT component, for block designs."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

from ..golden.config import HardwareConfig
from ..golden.registers import MAP_BITS, REGISTERS
from ..hw.verilog import TOP, accelerator_inputs, accelerator_ports

__all__ = ["component_xml"]

# IEEE 1685-2009 and Xilinx' extensions of it: the only version that Vivado reads.
SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
FAMILIES = (
    "artix7", "artixuplus", "kintex7", "kintexu", "kintexuplus", "spartan7", "versal", "virtex7",
    "virtexu", "virtexuplus", "zynq", "zynquplus",
)  # fmt: skip
VIEWS = {
    "synthesis": (":vivado.xilinx.com:synthesis", "synthesis_files"),
    "simulation": (":vivado.xilinx.com:simulation", "simulation_files"),
}
_ACCESS = {"ro": "read-only", "wo": "write-only", "rw": "read-write"}


def component_xml(config: HardwareConfig, version: str, verilog: str, constraints: str) -> str:
    """IP-XACT of the accelerator: both AXI ports, clock, reset, interrupt, and the register map.

    Parameters
    ----------
    version : of the component, two numbers
    verilog : file of the module
    constraints : XDC file, used only where the component is synthesized by itself
    """
    ET.register_namespace("spirit", SPIRIT)
    ET.register_namespace("xilinx", XILINX)
    root = ET.Element(_tag("component"))
    for name, text in {
        "vendor": "shiftcore", "library": "ip", "name": TOP, "version": version,
    }.items():  # fmt: skip
        _add(root, name, text)

    ports = accelerator_ports(config)
    interfaces = _add(root, "busInterfaces")
    _axi(interfaces, "m_axi", "AXI4", ports)
    _axi(interfaces, "s_axi", "AXI4LITE", ports)
    signals = (
        # No FREQ_HZ: it would be fixed, whatever the clock of the design around it is.
        ("clk", "clock", "slave", {"ASSOCIATED_BUSIF": "m_axi:s_axi", "ASSOCIATED_RESET": "rst"}),
        ("rst", "reset", "slave", {"POLARITY": "ACTIVE_HIGH"}),
        ("o_interrupt", "interrupt", "master", {"SENSITIVITY": "LEVEL_HIGH"}),
    )  # fmt: skip
    logical = {"clock": "CLK", "reset": "RST", "interrupt": "INTERRUPT"}
    for port, kind, role, parameters in signals:
        bus = _interface(interfaces, port, "signal", kind)
        _add(bus, role)
        _port_maps(bus, {logical[kind]: port})
        _parameters(bus, port, parameters)

    space = _add(_add(root, "addressSpaces"), "addressSpace")
    _add(space, "name", "m_axi")
    _add(space, "range", str(1 << config.address_bits))
    _add(space, "width", str(config.bus_bits))
    _registers(_add(root, "memoryMaps"))
    _model(root, ports, accelerator_inputs(config))
    sets = _add(root, "fileSets")
    # Where the component is part of a design, the clock comes from there.
    alone = ["xdc", "USED_IN_out_of_context"]
    _files(sets, VIEWS["synthesis"][1], {verilog: ["verilogSource"], constraints: alone})
    _files(sets, VIEWS["simulation"][1], {verilog: ["verilogSource"]})
    _add(root, "description", "CNN accelerator, see docs/integrating.md of Shiftcore")
    named = _add(_add(root, "parameters"), "parameter")
    _add(named, "name", "Component_Name")
    _add(named, "value", TOP, resolve="user", id="PARAM_VALUE.Component_Name")
    core = ET.SubElement(_add(root, "vendorExtensions"), f"{{{XILINX}}}coreExtensions")
    families = ET.SubElement(core, f"{{{XILINX}}}supportedFamilies")
    for family in FAMILIES:
        child = ET.SubElement(families, f"{{{XILINX}}}family")
        child.set(f"{{{XILINX}}}lifeCycle", "Production")
        child.text = family
    ET.SubElement(core, f"{{{XILINX}}}displayName").text = "Shiftcore"
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, "unicode")}\n'


def _tag(name: str) -> str:
    return f"{{{SPIRIT}}}{name}"


def _add(parent: ET.Element, kind: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, _tag(kind))
    child.text = text
    for key, value in attributes.items():
        child.set(_tag(key), value)
    return child


def _interface(parent: ET.Element, name: str, library: str, kind: str) -> ET.Element:
    bus = _add(parent, "busInterface")
    _add(bus, "name", name)
    place = {"vendor": "xilinx.com", "library": library, "version": "1.0"}
    _add(bus, "busType", name=kind, **place)
    _add(bus, "abstractionType", name=f"{kind}_rtl", **place)
    return bus


def _axi(parent: ET.Element, name: str, protocol: str, ports: Mapping[str, int]) -> None:
    bus = _interface(parent, name, "interface", "aximm")
    if name[0] == "m":
        _add(_add(bus, "master"), "addressSpaceRef", addressSpaceRef=name)
    else:
        _add(_add(bus, "slave"), "memoryMapRef", memoryMapRef=name)
    of_bus = [port for port in ports if port.startswith(f"{name}_")]
    _port_maps(bus, {port.removeprefix(f"{name}_").upper(): port for port in of_bus})
    _parameters(bus, name, {"PROTOCOL": protocol, "DATA_WIDTH": str(ports[f"{name}_wdata"])})


def _port_maps(bus: ET.Element, ports: Mapping[str, str]) -> None:
    maps = _add(bus, "portMaps")
    for logical, physical in ports.items():
        pair = _add(maps, "portMap")
        _add(_add(pair, "logicalPort"), "name", logical)
        _add(_add(pair, "physicalPort"), "name", physical)


def _parameters(bus: ET.Element, name: str, values: Mapping[str, str]) -> None:
    parameters = _add(bus, "parameters")
    for key, value in values.items():
        parameter = _add(parameters, "parameter")
        _add(parameter, "name", key)
        _add(parameter, "value", value, id=f"BUSIFPARAM_VALUE.{name.upper()}.{key}")


def _registers(maps: ET.Element) -> None:
    memory = _add(maps, "memoryMap")
    _add(memory, "name", "s_axi")
    block = _add(memory, "addressBlock")
    for name, text in {
        "name": "registers", "baseAddress": "0", "range": str(1 << MAP_BITS), "width": "32",
        "usage": "register",
    }.items():  # fmt: skip
        _add(block, name, text)
    for register in REGISTERS:
        entry = _add(block, "register")
        for name, text in {
            "name": register.name, "description": register.doc,
            "addressOffset": f"0x{register.offset:x}", "size": "32",
            "access": _ACCESS[register.access],
        }.items():  # fmt: skip
            _add(entry, name, text)
        for field in register.fields:
            part = _add(entry, "field")
            for name, text in {
                "name": field.name, "description": field.doc, "bitOffset": str(field.offset),
                "bitWidth": str(field.bits),
            }.items():  # fmt: skip
                _add(part, name, text)


def _model(root: ET.Element, ports: Mapping[str, int], inputs: frozenset[str]) -> None:
    model = _add(root, "model")
    views = _add(model, "views")
    for name, (environment, files) in VIEWS.items():
        view = _add(views, "view")
        _add(view, "name", f"xilinx_{name}")
        _add(view, "envIdentifier", environment)
        _add(view, "language", "verilog")
        _add(view, "modelName", TOP)
        _add(_add(view, "fileSetRef"), "localName", files)
    listed = _add(model, "ports")
    for name, width in ports.items():
        port = _add(listed, "port")
        _add(port, "name", name)
        wire = _add(port, "wire")
        _add(wire, "direction", "in" if name in inputs else "out")
        if width > 1:
            vector = _add(wire, "vector")
            _add(vector, "left", str(width - 1))
            _add(vector, "right", "0")


def _files(sets: ET.Element, name: str, kinds: Mapping[str, Sequence[str]]) -> None:
    files = _add(sets, "fileSet")
    _add(files, "name", name)
    for file, (kind, *uses) in kinds.items():
        entry = _add(files, "file")
        _add(entry, "name", file)
        if kind == "verilogSource":
            _add(entry, "fileType", kind)
        else:
            _add(entry, "userFileType", kind)
        for use in uses:
            _add(entry, "userFileType", use)
