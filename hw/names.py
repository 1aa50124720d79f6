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
_ATTRIBUTE = r"(?:^  attribute \S+ .*\n)*"


def readable(text: str) -> str:
    """RTLIL of Amaranth in which every name is a plain identifier that says what it is.

    * A wire between submodules is called after the port at its source, ``sequencer_o_busy``.
    * The value that a register takes at the clock edge is called ``x_next``; other values without
      a name are called after the operator that they come from, ``add_12``.
    * Dots, brackets and dollar signs of other names become underscores.
    * A second name of a port of a submodule, which nothing reads, goes, and so do the names of an
      enumeration's values.

    Names of ports and memories, which are plain, stay; so does the order of everything.
    """
    text = re.sub(r"^ *attribute \\enum_\S+ .*\n", "", text, flags=re.MULTILINE)
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
        if len(ends) == 1 and _base(wire) == port:
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

    def wire(found: re.Match[str]) -> str:
        return "" if found["name"] in gone else found[0]

    text = re.sub(rf"{_ATTRIBUTE}{_WIRE.pattern}\n", wire, text, flags=re.MULTILINE)
    text = re.sub(rf"{_ALIAS.pattern}\n", wire, text, flags=re.MULTILINE)
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
