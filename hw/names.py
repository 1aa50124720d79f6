"""Names that a reader of the Verilog can use: RTLIL in, RTLIL out."""

import re
from collections.abc import Iterator

__all__ = ["readable", "without_keywords"]

_MODULE = re.compile(r"^module (\S+)\n.*?^end\n", flags=re.MULTILINE | re.DOTALL)
_NAME = re.compile(r'"(?:[^"\\]|\\.)*"|(?<!\S)[\\$]\S+')
_WIRE = re.compile(r"^  wire (?P<options>.*?)(?P<name>\S+)$", flags=re.MULTILINE)
_ALIAS = re.compile(r"^connect (?P<name>\S+) (?P<value>.*)$", flags=re.MULTILINE)
_CELL = re.compile(
    r"^  cell (?P<kind>\S+) (?P<name>\S+)\n(?P<body>.*?)^  end$", flags=re.MULTILINE | re.DOTALL
)
_PIN = re.compile(r"^    connect \\(?P<port>\S+) (?P<wire>[\\$]\S+)(?: \[[\d:]+\])?$", re.MULTILINE)
_NUMBERED = re.compile(r"\\port\$\d+\$\d+(?!\S)")
_NUMBERED_PIN = re.compile(rf"^(    connect )({_NUMBERED.pattern})", flags=re.MULTILINE)
_PART = re.compile(r"(?P<bits>\d+)'\S+|[\\$]\S+ \[(?P<high>\d+)(?::(?P<low>\d+))?\]")
_ATTRIBUTE = r"(?:^  attribute \S+ .*\n)*"


def readable(text: str) -> str:
    """RTLIL of Amaranth in which every name is a plain identifier that says what it is.

    * A wire between submodules is called after the port at its source, ``sequencer_o_busy``.
    * The value that a register takes at the clock edge is called ``x_next``; other values without
      a name are called after the operator that they come from, ``add_12``.
    * Dots, brackets and dollar signs of other names become underscores.
    * A port of which Amaranth only says a number is called after the field or the value that it is
      a part of, ``o_run__payload_offset`` or ``i__payload_255_0``, or else after what it carries.
    * A second name of a port of a submodule, which nothing reads, goes, and so do the names of an
      enumeration's values.

    Names of ports and memories, which are plain, stay; so does the order of everything.
    """
    text = re.sub(r"^ *attribute \\enum_\S+ .*\n", "", text, flags=re.MULTILINE)
    text = _with_named_ports(text)
    outputs = {
        module[1]: set(re.findall(r"^  wire .*?output \d+.*? \\(\S+)$", module[0], re.MULTILINE))
        for module in _MODULE.finditer(text)
    }
    text = _MODULE.sub(lambda module: _module(module[0], outputs), text)
    return _plain(text)


def without_keywords(verilog: str) -> str:
    """Verilog in which a name that is a keyword, and had to be escaped for that, is ``name_``."""
    taken = set(re.findall(r"\w+", verilog))
    renamed = {}
    for name in dict.fromkeys(re.findall(r"\\(\w+) ", verilog)):
        renamed[name] = f"{name}_"
        while renamed[name] in taken:
            renamed[name] += "_"
    return re.sub(r"\\(\w+) ", lambda found: renamed[found[1]], verilog)


def _with_named_ports(text: str) -> str:
    """No port is a number: each module calls its own after what they carry there."""
    own = {module[1]: _port_names(module[0]) for module in _MODULE.finditer(text)}

    def pins(cell: re.Match[str]) -> str:
        inner, _ = own.get(cell["kind"], ({}, set()))
        body = _NUMBERED_PIN.sub(lambda pin: pin[1] + inner[pin[2]], cell["body"])
        return cell[0].replace(cell["body"], body)

    def module(found: re.Match[str]) -> str:
        names, gone = own[found[1]]
        text = _CELL.sub(pins, found[0])
        if gone:
            text = _without(text, gone)
        return _NUMBERED.sub(lambda port: names[port[0]], text)

    return _MODULE.sub(module, text)


def _port_names(text: str) -> tuple[dict[str, str], set[str]]:
    """A name for each numbered port of a module, and the second names that these make needless.

    A port is called after a wire that is the same, or else its bits in the smallest wire that it is
    a part of, or else the wires that are parts of it.
    """
    ports = [wire for wire in _WIRE.finditer(text) if _NUMBERED.fullmatch(wire["name"])]
    if not ports:
        return {}, set()
    aliases = {alias["name"]: alias["value"] for alias in _ALIAS.finditer(text)}
    same: dict[str, str] = {}
    around: dict[str, tuple[int, str]] = {}
    within: dict[str, list[str]] = {}
    for name, value in aliases.items():
        if _NUMBERED.fullmatch(name):
            continue
        same.setdefault(value, name)
        within.setdefault(value.split(" ")[0], []).append(name)
        low = 0
        for part in reversed(list(_PART.finditer(value)) if value[0] == "{" else []):
            high = low + _width(part)
            place = f"{name}_{high - 1}" + (f"_{low}" if high - low > 1 else "")
            around[part[0]] = min(around.get(part[0], (len(value), place)), (len(value), place))
            low = high

    reads: dict[str, int] = {}
    for name in _NAME.findall(text):
        reads[name] = reads.get(name, 0) + 1
    taken = {_identifier(name) for name in reads}
    names: dict[str, str] = {}
    gone: set[str] = set()
    for wire in ports:
        port = wire["name"]
        width = re.search(r"width (\d+)", wire["options"])
        last = int(width[1]) - 1 if width else 0
        whole = f"{port} [{last}:0]" if last else f"{port} [0]"
        carried = (aliases.get(port, whole), whole)
        alias = next((same[value] for value in carried if value in same), None)
        parts = next((around[value][1] for value in carried if value in around), None)
        wanted = _identifier(alias or parts or "_".join(within.get(port, [port])))
        # A wire that is only declared and defined gives its name away.
        if alias is not None and reads[alias] == 2 and alias not in gone:
            gone.add(alias)
        else:
            while wanted in taken:
                wanted += "_"
        taken.add(wanted)
        names[port] = f"\\{wanted}"
    return names, gone


def _width(part: re.Match[str]) -> int:
    """Bits of a part of a concatenation."""
    if part["bits"]:
        return int(part["bits"])
    return int(part["high"]) - int(part["low"] or part["high"]) + 1


def _identifier(name: str) -> str:
    """``x_1`` of ``\\x[1]``; several names are one."""
    return re.sub(r"\W+_*", "_", name.replace("\\", "")).strip("_")


def _without(text: str, gone: set[str]) -> str:
    """Without the declarations and the definitions of some names."""

    def wire(found: re.Match[str]) -> str:
        return "" if found["name"] in gone else found[0]

    text = re.sub(rf"{_ATTRIBUTE}{_WIRE.pattern}\n", wire, text, flags=re.MULTILINE)
    return re.sub(rf"{_ALIAS.pattern}\n", wire, text, flags=re.MULTILINE)


def _module(text: str, outputs: dict[str, set[str]]) -> str:
    """One module: no second names, and names for what has none."""
    cells = [cell.groupdict() for cell in _CELL.finditer(text)]
    instances = [cell for cell in cells if cell["kind"].startswith("\\")]
    ports = {
        wire["name"] for wire in _WIRE.finditer(text) if re.search("input|output", wire["options"])
    }
    inner = {pin["port"] for cell in instances for pin in _PIN.finditer(cell["body"])}
    text = _without_aliases(text, ports, inner)

    taken = set(_NAME.findall(text))
    renamed: dict[str, str] = {}

    def rename(wire: str, wanted: str) -> None:
        if wire in renamed or wire in ports or wire == wanted:
            return
        taken.discard(wire)
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        renamed[wire] = wanted

    sources, sinks = {}, {}
    for cell in instances:
        for pin in _PIN.finditer(cell["body"]):
            ends = sources if pin["port"] in outputs.get(cell["kind"], ()) else sinks
            ends.setdefault(pin["wire"], []).append((cell["name"], pin["port"]))
    for wire, ends in [*sources.items(), *sinks.items()]:
        name, port = ends[0]
        if len(ends) == 1 and (_base(wire) == port or (wire[0] == "$" and wire in sources)):
            rename(wire, f"{name}_{port}")
    for wire, wanted in _values(text, cells):
        rename(wire, wanted)

    def replace(found: re.Match[str]) -> str:
        whole, dot, rest = found[0].partition(".")
        return renamed.get(found[0]) or renamed.get(whole, whole) + dot + rest

    head, body = text.split("\n", 1)
    body = re.sub(r"^(  cell \S+ )(\S+)", r'\1"\2"', body, flags=re.MULTILINE)
    body = re.sub(r"^(    connect )(\\\S+)", r'\1"\2"', body, flags=re.MULTILINE)
    body = _NAME.sub(lambda found: found[0] if found[0][0] == '"' else replace(found), body)
    body = re.sub(r'^(  cell \S+ |    connect )"(\S+)"', r"\1\2", body, flags=re.MULTILINE)
    return f"{head}\n{body}"


def _base(wire: str) -> str:
    """``x`` of ``\\x$12``."""
    return re.sub(r"\$\d+$", "", wire)[1:]


def _without_aliases(text: str, ports: set[str], inner: set[str]) -> str:
    """Without the second names that nothing reads, of wires that carry `inner` ports."""
    aliases = {alias["name"] for alias in _ALIAS.finditer(text)}
    reads: dict[str, int] = {}
    for name in _NAME.findall(text):
        reads[name] = reads.get(name, 0) + 1
    # A name occurs in its declaration and in its definition.
    gone = {
        name
        for name in aliases - ports
        if reads[name] == 2 and ("$" in name or _base(name.split(".")[0]) in inner)
    }

    text = _without(text, gone)
    # Only registers have initial values.
    initial = re.compile(rf"^  attribute \\init .*\n({_WIRE.pattern})", flags=re.MULTILINE)
    return initial.sub(lambda f: f[1] if f["name"] in aliases else f[0], text)


def _values(text: str, cells: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Each wire without a name, and the name it should have."""
    for cell in cells:
        pins = {pin["port"]: pin["wire"] for pin in _PIN.finditer(cell["body"])}
        if cell["kind"] == "$dff":
            register = re.sub(r"^\$.*?(\d+)$", r"\\register_\1", pins["Q"])
            yield pins["Q"], register
            if pins.get("D", "").startswith("$"):
                yield pins["D"], f"{register}_next"
    for cell in cells:
        for port in ("Y", "Q", "DATA"):
            wire = re.search(rf"^    connect \\{port} (\$\S+)", cell["body"], re.MULTILINE)
            if wire:
                kind = cell["kind"].split("_v2")[0].lstrip("$\\")
                yield wire[1], f"\\{kind}_{wire[1].split('$')[-1]}"
    for part in re.finditer(r"^connect (\$\S+) (\\\S+) \[(\d+)(?::(\d+))?\]$", text, re.MULTILINE):
        yield part[1], "_".join(part.groups()[1:] if part[4] else part.groups()[1:3])
    for wire in _WIRE.finditer(text):
        if wire["name"].startswith("$"):
            yield wire["name"], f"\\value_{wire['name'].split('$')[-1]}"


def _plain(text: str) -> str:
    """Every public name as an identifier; the same name everywhere, different ones stay so."""
    found = [name for name in _NAME.findall(text) if name[0] == "\\"]
    taken, renamed = set(found), {}
    for name in dict.fromkeys(found):
        new = re.sub(r"\W+", "_", name[1:])
        if new == name[1:]:
            continue
        new = new.strip("_")
        while f"\\{new}" in taken:
            new += "_"
        taken.add(f"\\{new}")
        renamed[name] = f"\\{new}"
    return _NAME.sub(lambda name: renamed.get(name[0], name[0]), text)
