"""Writes the tables of docs/machine.md and docs/shiftcore.h: ``python benchmarks/tables.py``."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path

from shiftcore.golden.config import KEYS, HardwareConfig
from shiftcore.golden.isa import LAYOUTS, Error
from shiftcore.golden.registers import c_header, markdown

MACHINE = Path(__file__).parents[1] / "docs" / "machine.md"
HEADER = MACHINE.with_name("shiftcore.h")


def configuration() -> str:
    """The keys of a hardware configuration."""
    rows = []
    for field in fields(HardwareConfig):
        key = KEYS[field.name]
        default = "required" if field.default is MISSING else f"`{json.dumps(field.default)}`"
        if isinstance(key.allowed, range):
            allowed = f"{key.least or key.allowed[0]} to {key.allowed[-1]}"
        else:
            allowed = re.sub("'([^']*)'", r'`"\1"`', key.listed) or ", ".join(
                f"`{json.dumps(choice)}`" for choice in key.allowed
            )
        rows.append(f"| `{field.name}` | {default} | {allowed} | {key.doc} |")
    return "\n".join(["| key | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows])


def instructions() -> str:
    """One table for each instruction."""
    parts = []
    for opcode, layout in LAYOUTS.items():
        lines = [f"**{opcode.name}**, opcode {opcode.value}", "", "| word | bits | field |"]
        lines.append("| ---: | ---: | --- |")
        for field in layout:
            high = field.offset + field.bits - 1
            bits = f"{high}:{field.offset}" if field.bits > 1 else str(high)
            signed = ", signed" if field.signed else ""
            lines.append(f"| {field.word} | {bits} | `{field.name}`{signed} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def errors() -> str:
    """The error codes."""
    rows = [f"| {error.value} | `{error.name}` |" for error in Error]
    return "\n".join(["| code | name |", "| ---: | --- |", *rows])


def parts() -> dict[str, str]:
    """The generated parts of docs/machine.md."""
    return {
        "configuration": configuration(),
        "instructions": instructions(),
        "registers": markdown().strip(),
        "errors": errors(),
    }


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A document with its generated parts anew, each between its marks."""
    for name, table in parts.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = marked.subn(lambda found, t=table: f"{found[1]}\n{t}\n\n{found[2]}", text)
        assert count == 1, name
    return text


if __name__ == "__main__":
    HEADER.write_text(c_header(), encoding="utf-8")
    MACHINE.write_text(filled(MACHINE.read_text(encoding="utf-8"), parts()), encoding="utf-8")
