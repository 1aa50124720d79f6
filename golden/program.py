"""A compiled network: the program, the memory image, and what is where."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bfp import BlockTensor
from .config import HardwareConfig
from .fixed import FixedFormat, Grid
from .floats import FLOAT32
from .isa import Drain, Form, Instruction, Pass, Region, decode, encode

__all__ = ["Place", "Program", "pack_words", "raw_numbers", "scores_of", "unpack_words"]

FORMAT_VERSION = 1


def pack_words(
    codes: NDArray[np.integer], exponents: NDArray[np.integer] | None, bits: int, beat_bytes: int
) -> NDArray[np.uint8]:
    """Words as they are in memory: (n, beats * beat_bytes) bytes.

    Parameters
    ----------
    codes : (n, B), two's complement or unsigned
    exponents : (n,) fields, or None to leave them out
    bits : m
    """
    n, block = codes.shape
    spread = (codes.astype(np.int64)[:, :, None] >> np.arange(bits)) & 1
    parts = [spread.reshape(n, block * bits)]
    if exponents is not None:
        parts.append((exponents.astype(np.int64)[:, None] >> np.arange(8)) & 1)
    packed = np.packbits(np.concatenate(parts, axis=1).astype(np.uint8), 1, bitorder="little")
    size = -(-packed.shape[1] // beat_bytes) * beat_bytes
    return np.pad(packed, ((0, 0), (0, size - packed.shape[1])))


def unpack_words(
    data: NDArray[np.uint8], block: int, bits: int, signed: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Codes (n, B) and exponent fields (n,) of words with exponents (n, bytes)."""
    flat = np.unpackbits(data, axis=1, bitorder="little")
    weights = 1 << np.arange(bits)
    codes = flat[:, : block * bits].reshape(len(data), block, bits) @ weights
    exponents = flat[:, block * bits : block * bits + 8] @ (1 << np.arange(8))
    if signed:
        sign = 1 << (bits - 1)
        codes = (codes ^ sign) - sign
    return codes.astype(np.int16), exponents.astype(np.uint8)


def raw_numbers(
    config: HardwareConfig, drain: Drain, bits: NDArray[np.uint32]
) -> NDArray[np.floating]:
    """The raw results that `drain` wrote, from their 32 bits: float32, or of fixed-point
    accumulators what they stand for, exactly, in float64."""
    form = config.accumulator_format
    if isinstance(form, FixedFormat):
        return Grid(form, drain.exponent - 127).decode(bits)
    return bits.view(np.float32)


@dataclass(frozen=True)
class Place:
    """What one DRAIN writes: pixels ``(row + i // pixels, column + i % pixels)`` of some channels.

    Parameters
    ----------
    layer : name of the layer, and of its tensor
    channel : first channel of the word, or of the raw row
    row, column : of the first output pixel
    """

    layer: str
    channel: int
    row: int
    column: int


@dataclass(frozen=True, eq=False)
class Program:
    """A network compiled for one hardware configuration.

    Parameters
    ----------
    config : the hardware
    instructions : in program order, the last one ``END``
    weights : the tiles, bytes; they follow the encoded instructions in the model region
    places : for every DRAIN, in program order, what it writes
    sizes : beats of every region, of SCRATCH and the model in all, of INPUT and OUTPUT per image
    input_shape : (planes, blocks of a plane, H, W) of the input's words; they are in memory without
        exponents, in this order
    shapes : (channels, H, W) of every layer
    output : name of the last layer
    macs : of one image
    """

    config: HardwareConfig
    instructions: tuple[Instruction, ...]
    weights: NDArray[np.uint8]
    places: tuple[Place, ...]
    sizes: tuple[int, int, int, int]
    input_shape: tuple[int, int, int, int]
    shapes: Mapping[str, tuple[int, int, int]]
    output: str
    macs: int

    @property
    def model(self) -> NDArray[np.uint8]:
        """The model region: encoded instructions, then the tiles."""
        return np.concatenate([encode(self.instructions).view(np.uint8).ravel(), self.weights])

    @property
    def drains(self) -> tuple[tuple[Drain, Place], ...]:
        """Every DRAIN and what it writes."""
        drains = [item for item in self.instructions if isinstance(item, Drain)]
        return tuple(zip(drains, self.places, strict=True))

    @property
    def layer_pixels(self) -> dict[str, int]:
        """Pixels that the PASSes of each layer send to the array; layers in program order.

        A PASS works for the layer that the next DRAIN stores: the accumulators of one group of
        passes are drained before the passes of the next group begin in program order, and layers
        follow each other.
        """
        layers = iter(place.layer for _, place in self.drains)
        found: dict[str, int] = {}
        pixels = 0
        for item in self.instructions:
            if isinstance(item, Pass):
                pixels += item.pixels
            elif isinstance(item, Drain):
                layer = next(layers)
                found[layer] = found.get(layer, 0) + pixels
                pixels = 0
        return found

    def encode_input(self, x: BlockTensor) -> NDArray[np.uint8]:
        """The input region of every image, (N, bytes), from the quantized input tensor."""
        spec = self.config.accelerator
        planes, blocks, height, width = self.input_shape
        n = x.codes.shape[0]
        expected = (n, planes * blocks, self.config.rows, height, width)
        if x.codes.shape != expected:
            raise ValueError(f"the input tensor must have codes {expected}, not {x.codes.shape}")
        codes = x.codes.transpose(0, 1, 3, 4, 2).reshape(-1, self.config.rows)
        return pack_words(codes, None, self.config.act_bits, spec.beat_bytes).reshape(n, -1)

    def decode_output(self, data: NDArray[np.uint8]) -> BlockTensor | NDArray[np.float32]:
        """The network's result (N, C, H, W) from the output regions of N images, (N, bytes)."""
        spec = self.config.accelerator
        channels, height, width = self.shapes[self.output]
        block = self.config.rows
        blocks = -(-channels // block)
        n = len(data)
        raw = np.zeros((n, channels, height, width), np.float32)
        codes = np.zeros((n, blocks, block, height, width), np.int16)
        exponents = np.zeros((n, blocks, height, width), np.uint8)
        form = Form.RAW
        for drain, place in self.drains:
            if not drain.to_memory or drain.region != Region.OUTPUT:
                continue
            form = Form(drain.form)
            beats = spec.raw_beats if form is Form.RAW else spec.word_beats
            for row in range(drain.rows):
                first = (drain.offset + row * drain.row_step) * spec.beat_bytes
                size = beats * spec.beat_bytes
                part = data[:, first : first + drain.pixels * size].reshape(-1, size)
                y, xs = place.row + row, slice(place.column, place.column + drain.pixels)
                if form is Form.RAW:
                    values = np.ascontiguousarray(part).view("<u4")[:, : self.config.cols]
                    count = min(self.config.cols, channels - place.channel)
                    numbers = raw_numbers(self.config, drain, values)
                    numbers = FLOAT32.round(numbers).reshape(n, drain.pixels, -1)
                    raw[:, place.channel : place.channel + count, y, xs] = numbers[
                        :, :, :count
                    ].transpose(0, 2, 1)
                else:
                    found = unpack_words(part, block, self.config.act_bits, form is Form.SIGNED)
                    index = place.channel // block
                    codes[:, index, :, y, xs] = (
                        found[0].reshape(n, drain.pixels, block).transpose(0, 2, 1)
                    )
                    exponents[:, index, y, xs] = found[1].reshape(n, drain.pixels)
        if form is Form.RAW:
            return raw
        signed = (form is Form.SIGNED,) * blocks
        return BlockTensor(codes, exponents, signed, self.config.act_bits, channels)

    def save(self, folder: Path | str) -> None:
        """Write the build folder: ``model.bin``, ``program.json``, ``hardware.toml``,
        ``manifest.json``; the same program gives the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        listing = {
            "format_version": FORMAT_VERSION,
            "instructions": len(self.instructions),
            "sizes": self.sizes,
            "input_shape": self.input_shape,
            "shapes": dict(self.shapes),
            "output": self.output,
            "macs": self.macs,
            "places": [list(asdict(place).values()) for place in self.places],
        }
        files = {
            "model.bin": self.model.tobytes(),
            "program.json": (json.dumps(listing, indent=1) + "\n").encode(),
            "hardware.toml": self.config.dumps().encode(),
        }
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files["manifest.json"] = (json.dumps(hashes, indent=1) + "\n").encode()
        for name, content in files.items():
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)

    @classmethod
    def load(cls, folder: Path | str) -> "Program":
        """Read a build folder. Raises ``ValueError``, naming a file that is missing or altered."""
        folder = Path(folder)
        contents: dict[str, bytes] = {}
        for name in ("manifest.json", "model.bin", "program.json", "hardware.toml"):
            try:
                contents[name] = (folder / name).read_bytes()
            except OSError as error:
                raise ValueError(f"{folder / name}: cannot be read: {error.strerror}") from error
        try:
            hashes = json.loads(contents.pop("manifest.json"))
        except ValueError as error:
            raise ValueError(f"{folder / 'manifest.json'}: is not JSON") from error
        if not isinstance(hashes, dict):
            raise ValueError(f"{folder / 'manifest.json'}: names no files; compile again")
        for name, content in contents.items():
            if hashes.get(name) != hashlib.sha256(content).hexdigest():
                raise ValueError(f"{folder / name}: differs from the manifest; compile again")
        listing = json.loads(contents["program.json"])
        if listing["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"{folder}: has format {listing['format_version']}, this is {FORMAT_VERSION}; "
                f"compile again"
            )
        model = np.frombuffer(contents["model.bin"], np.uint8)
        size = listing["instructions"] * 64
        words = model[:size].view(np.uint64).reshape(-1, 8)
        return cls(
            HardwareConfig.load(folder / "hardware.toml"),
            tuple(decode(row) for row in words),
            model[size:],
            tuple(Place(*place) for place in listing["places"]),
            _tuple4(listing["sizes"]),
            _tuple4(listing["input_shape"]),
            {name: (shape[0], shape[1], shape[2]) for name, shape in listing["shapes"].items()},
            listing["output"],
            listing["macs"],
        )


def scores_of(output: BlockTensor | NDArray[np.float32]) -> NDArray[np.float64]:
    """A network's result as (N, numbers)."""
    values = output if isinstance(output, np.ndarray) else output.values()
    return values.reshape(len(values), prod(values.shape[1:])).astype(np.float64)


def _tuple4(values: Sequence[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d
