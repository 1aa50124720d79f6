"""The register map of the accelerator, from which gateware, driver, C header and table are made."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from .accelerator import ADDRESS_BITS, AcceleratorSpec
from .config import HardwareConfig
from .isa import ISA_VERSION, Error, Region

__all__ = [
    "COUNTERS",
    "ID",
    "MAP_BITS",
    "REGISTERS",
    "TIMED",
    "Field",
    "Register",
    "c_header",
    "configuration_hash",
    "counters",
    "implemented",
    "markdown",
    "register",
]

MAP_BITS = 12
"""of a byte among the registers, which fill one page"""
ID = int.from_bytes(b"SHFT", "big")


@dataclass(frozen=True)
class Field:
    """`bits` from bit `offset` on of a register."""

    name: str
    offset: int
    bits: int
    doc: str

    @property
    def mask(self) -> int:
        """The field's bits in the register."""
        return ((1 << self.bits) - 1) << self.offset

    def of(self, value: int) -> int:
        """The field in a register's `value`."""
        return (value & self.mask) >> self.offset


@dataclass(frozen=True)
class Register:
    """32 bits at byte `offset`.

    Parameters
    ----------
    access : "ro" read, writes are ignored; "rw" both; "wo" written, reads as 0
    fields : lowest first; bits in no field read as 0 and are ignored
    """

    name: str
    offset: int
    access: Literal["ro", "rw", "wo"]
    fields: tuple[Field, ...]
    doc: str

    @property
    def mask(self) -> int:
        """The bits that exist."""
        return sum(field.mask for field in self.fields)

    def field(self, name: str) -> Field:
        """Raises ``ValueError`` if there is none of that name."""
        for field in self.fields:
            if field.name == name:
                return field
        raise ValueError(f"register {self.name} has no field {name!r}")


COUNTERS: dict[str, str] = {
    "CYCLES": "cycles in which the accelerator was busy",
    "INSTRUCTIONS": "instructions dispatched",
    "PIXELS": "pixels issued to the array",
    "STALL_TILE": "cycles in which a pixel waited for its tile",
    "STALL_TICKET": "cycles in which a PASS waited for its tickets",
    "STALL_EMPTY": "cycles without a PASS",
    "STALL_HAZARD": "cycles in which a pixel waited for anything else",
    "DRAIN_BUSY": "cycles in which the DRAIN unit worked",
    "LOAD_BUSY": "cycles in which the LOAD unit worked",
    "READ_BEATS": "beats read from memory",
    "WRITE_BEATS": "beats written to memory",
    "SATURATED": "pixels that saturated a fixed-point accumulator",
}
"""The 64-bit counters, in their order; START clears them."""

TIMED = tuple(name for name in COUNTERS if name != "SATURATED")
"""The counters that no number of an image changes."""


def _flags(*flags: tuple[str, str]) -> tuple[Field, ...]:
    return tuple(Field(name, k, 1, doc) for k, (name, doc) in enumerate(flags))


def _value(doc: str, bits: int = 32) -> tuple[Field, ...]:
    return (Field("VALUE", 0, bits, doc),)


def _registers() -> tuple[Register, ...]:
    found = [
        Register("ID", 0x00, "ro", _value(f"0x{ID:08x}"), "'SHFT'"),
        Register("ISA_VERSION", 0x04, "ro", _value(str(ISA_VERSION)), "of the instruction set"),
        Register(
            "CONFIG_HASH",
            0x08,
            "ro",
            _value("first 32 bits of the SHA-256 of the configuration"),
            "The hardware configuration; programs are compiled for one",
        ),
        Register(
            "CONTROL",
            0x0C,
            "wo",
            _flags(
                ("START", "run the program once for every image; ignored while BUSY"),
                ("SOFT_RESET", "abandon the run and reset everything but these registers"),
                ("CLEAR_INTERRUPT", "clear STATUS.INTERRUPT"),
            ),
            "Writing a 1 acts once",
        ),
        Register(
            "STATUS",
            0x10,
            "ro",
            _flags(
                ("BUSY", "a run, or the reset after one, is under way"),
                ("DONE", "the last run finished; cleared by START and SOFT_RESET"),
                ("ERROR", "the last run halted, see ERROR; cleared by START and SOFT_RESET"),
                ("INTERRUPT", "an enabled interrupt was raised and not cleared"),
            ),
            "What the accelerator does",
        ),
        Register(
            "ERROR",
            0x14,
            "ro",
            (
                Field("CODE", 0, 8, ", ".join(f"{e.value} {e.name}" for e in Error)),
                Field("INSTRUCTION", 8, 24, "instructions dispatched at the halt, modulo 2^24"),
            ),
            "Why the last run halted; cleared by START and SOFT_RESET",
        ),
        Register(
            "INTERRUPT_ENABLE",
            0x18,
            "rw",
            _flags(("DONE", "when a run finishes"), ("ERROR", "when a run halts")),
            "What raises the interrupt",
        ),
        Register("IMAGES", 0x1C, "rw", _value("0 means 1"), "Images of a run"),
        Register("TIMEOUT", 0x20, "rw", _value("0 means none"), "Cycles after which a run halts"),
    ]
    for region in Region:
        name, offset = region.name, 0x40 + 0x10 * region
        found += [
            Register(
                f"{name}_BASE_LO",
                offset,
                "rw",
                _value("bits 31 to 0"),
                f"Byte address of region {name} for the first image; a multiple of a beat",
            ),
            Register(
                f"{name}_BASE_HI",
                offset + 4,
                "rw",
                _value(f"bits {ADDRESS_BITS - 1} to 32", ADDRESS_BITS - 32),
                "The rest of the address",
            ),
            Register(
                f"{name}_SIZE", offset + 8, "rw", _value("beats"), f"Size of {name} of one image"
            ),
            Register(
                f"{name}_STRIDE",
                offset + 12,
                "rw",
                _value("beats"),
                f"From {name} of one image to that of the next; 0 if they share it",
            ),
        ]
    for k, (name, doc) in enumerate(COUNTERS.items()):
        text = doc[0].upper() + doc[1:] + " since START"
        offset = 0x80 + 8 * k
        found += [
            Register(f"{name}_LO", offset, "ro", _value("bits 31 to 0"), text),
            Register(
                f"{name}_HI",
                offset + 4,
                "ro",
                _value("bits 63 to 32"),
                "As they were when the low half of a counter was last read",
            ),
        ]
    return tuple(found)


REGISTERS: tuple[Register, ...] = _registers()
"""All registers, by rising offset."""

_BY_NAME = {each.name: each for each in REGISTERS}


def register(name: str) -> Register:
    """The register of that name; ``ValueError`` if there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"there is no register {name!r}")
    return _BY_NAME[name]


_CYCLES = register("CYCLES_LO").offset


def counters(spec: AcceleratorSpec) -> tuple[str, ...]:
    """The counters that an accelerator has: under serial control only CYCLES."""
    return ("CYCLES",) if spec.serial else tuple(COUNTERS)


def implemented(each: Register, spec: AcceleratorSpec) -> int:
    """The bits of a register that an accelerator has: fewer where addresses are shorter than
    :data:`~shiftcore.golden.accelerator.ADDRESS_BITS`, and under serial control only what one image
    without a time-out needs, and 32 bits of CYCLES. The others read as 0 and are ignored."""
    if spec.serial:
        absent = each.name in ("IMAGES", "TIMEOUT") or each.name.endswith("_STRIDE")
        if absent or each.offset > _CYCLES:
            return 0
        if each.name == "ERROR":
            return each.field("CODE").mask
    part = each.name.partition("_")[2]
    limits = {
        "BASE_LO": spec.address_bits,
        "BASE_HI": max(spec.address_bits - 32, 0),
        "SIZE": spec.offset_bits,
        "STRIDE": spec.offset_bits,
    }
    return each.mask & ((1 << limits.get(part, 32)) - 1)


def configuration_hash(config: HardwareConfig) -> int:
    """What CONFIG_HASH reads."""
    return int.from_bytes(hashlib.sha256(config.dumps().encode()).digest()[:4], "big")


def c_header() -> str:
    """The map as a C header: offsets, and masks and shifts of fields."""
    lines = [
        "/* Registers of Shiftcore; generated by shiftcore.golden.registers. */",
        "#ifndef SHIFTCORE_REGISTERS_H",
        "#define SHIFTCORE_REGISTERS_H",
        "",
        f"#define SHIFTCORE_ID_VALUE 0x{ID:08x}u",
        f"#define SHIFTCORE_ISA_VERSION_VALUE {ISA_VERSION}u",
        "",
    ]
    for each in REGISTERS:
        lines.append(f"#define SHIFTCORE_{each.name} 0x{each.offset:03x}u /* {each.doc} */")
        for field in each.fields:
            if field.name == "VALUE":
                continue
            name = f"SHIFTCORE_{each.name}_{field.name}"
            lines.append(f"#define {name}_MASK 0x{field.mask:08x}u")
            lines.append(f"#define {name}_SHIFT {field.offset}u")
    lines.append("")
    lines += [f"#define SHIFTCORE_ERROR_{error.name} {error.value}u" for error in Error]
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def markdown() -> str:
    """The map as a Markdown table, one row for each field."""
    lines = ["| offset | register | access | bits | field | meaning |", "|---|---|---|---|---|---|"]
    for each in REGISTERS:
        head = f"| `0x{each.offset:03x}` | `{each.name}` | {each.access} "
        if [field.name for field in each.fields] == ["VALUE"]:
            (field,) = each.fields
            bits = f"{field.bits - 1}:0"
            lines.append(f"{head}| {bits} | | {each.doc}: {field.doc} |")
            continue
        lines.append(f"{head}| | | {each.doc} |")
        for field in each.fields:
            high = field.offset + field.bits - 1
            bits = f"{high}:{field.offset}" if field.bits > 1 else str(high)
            lines.append(f"| | | | {bits} | `{field.name}` | {field.doc} |")
    return "\n".join(lines) + "\n"
