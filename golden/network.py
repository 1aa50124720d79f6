"""The quantized network: layers in order, and the file that holds them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .bfp import BlockFloat, BlockTensor, FixedPoint
from .fixed import AccumulatorFormat, FixedFormat, Grid, accumulator_format
from .floats import SCALE_FORMATS
from .fold import Fold
from .layers import Layer, Term
from .vqk import VariableQuantizedKernel, pack, unpack

__all__ = ["FORMAT_VERSION", "INPUT", "QuantizedNetwork", "Tensor"]

FORMAT_VERSION = 4
INPUT = "input"

Tensor = BlockTensor | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A network as the accelerator runs it.

    Parameters
    ----------
    input : how images are quantized
    input_shape : (C, H, W)
    layers : in execution order; a layer reads "input" or earlier layers, the last is the output
    fold : the window of the image whose pixels are the channels of "input"; None if "input" is the
        image itself
    """

    input: FixedPoint
    input_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    fold: Fold | None = None

    def __post_init__(self) -> None:
        depth, *size = self.folded_shape
        sizes = {INPUT: (size[0], size[1])}
        channels = {INPUT: depth}
        names = {INPUT}
        forms = {"float32" if each.grid is None else each.grid.name for each in self.layers}
        if len(forms) > 1:
            found = " and ".join(sorted(forms))
            raise ValueError(f"all layers must have accumulators of one format, not {found}")
        for layer in self.layers:
            if layer.name in names:
                raise ValueError(f"layer name {layer.name!r} is used twice")
            names.add(layer.name)
            for term in layer.terms:
                if term.source not in sizes:
                    raise ValueError(
                        f"layer {layer.name!r} reads {term.source!r}, which no earlier layer stores"
                    )
                if term.kernel.block != self.input.block:
                    raise ValueError(
                        f"layer {layer.name!r} has blocks of {term.kernel.block} channels, the "
                        f"network's are {self.input.block}"
                    )
                if term.kernel.in_channels != channels[term.source]:
                    raise ValueError(
                        f"layer {layer.name!r} takes {term.kernel.in_channels} channels, "
                        f"{term.source!r} has {channels[term.source]}"
                    )
            size = layer.output_size(sizes)
            if layer.output is not None:
                stored = (layer.output.block, layer.output.bits)
                if stored != (self.block, self.act_bits):
                    raise ValueError(
                        f"layer {layer.name!r} stores blocks of {stored[0]} channels in "
                        f"{stored[1]} bits, the network's are {self.block} in {self.act_bits}"
                    )
                sizes[layer.name], channels[layer.name] = size, layer.bias.size

    @property
    def folded_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the tensor "input"; its channels are those of one plane."""
        return self.input_shape if self.fold is None else self.fold.shape(self.input_shape)

    @property
    def block(self) -> int:
        return self.input.block

    @property
    def act_bits(self) -> int:
        return self.input.act_bits

    @property
    def accumulator(self) -> str:
        """Name of the format of the accumulators."""
        grid = self.layers[0].grid
        return "float32" if grid is None else grid.name

    @property
    def weight_bits(self) -> int:
        """The widest codes of any kernel."""
        return max(t.kernel.weight_bits for layer in self.layers for t in layer.terms)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(H, W) of every tensor."""
        _, height, width = self.folded_shape
        sizes = {INPUT: (height, width)}
        for layer in self.layers:
            sizes[layer.name] = layer.output_size(sizes)
        return sizes

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of every layer for one image: those of convolutions and linear
        layers. Identities and pools of a converted network have none; planes and padding lanes
        are not counted."""
        sizes = self.sizes()
        return {layer.name: layer.macs(*sizes[layer.name]) for layer in self.layers}

    def encode_input(self, x: NDArray[np.float32]) -> BlockTensor:
        """The tensor "input" of images (N, C, H, W) float32: quantized, then folded.

        Raises ``ValueError`` if the images do not fit or are not finite.
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"images must be (N, {self.input_shape}), not {x.shape}")
        q = self.input.integers(x)
        return self.input.split(q if self.fold is None else self.fold.compute(q))

    def compute(self, x: NDArray[np.float32]) -> dict[str, Tensor]:
        """Every tensor of the network for the images `x` (N, C, H, W) float32."""
        stored: dict[str, BlockTensor] = {INPUT: self.encode_input(x)}
        tensors: dict[str, Tensor] = dict(stored)
        for layer in self.layers:
            result = layer.compute(stored)
            tensors[layer.name] = result
            if isinstance(result, BlockTensor):
                stored[layer.name] = result
        return tensors

    def save(self, path: Path | str) -> None:
        """Write the network to one safetensors file: packed codes, encoded scales, biases."""
        arrays: dict[str, NDArray] = {}
        layers = []
        for layer in self.layers:
            terms = []
            for index, term in enumerate(layer.terms):
                kernel = term.kernel
                key = f"{layer.name}.{index}"
                width = (
                    np.uint32
                    if kernel.scale_format.storage_bits > 16
                    else (np.uint16 if kernel.scale_format.storage_bits > 8 else np.uint8)
                )
                arrays[f"{key}.codes"] = pack(kernel.codes, kernel.weight_bits)
                arrays[f"{key}.scales"] = kernel.scale_format.encode(kernel.scales).astype(width)
                terms.append(
                    {
                        "source": term.source,
                        "stride": term.stride,
                        "padding": term.padding,
                        "dilation": term.dilation,
                        "shape": kernel.codes.shape,
                        "weight_bits": kernel.weight_bits,
                        "block": kernel.block,
                        "groups": kernel.groups,
                        "scale": kernel.scale_format.name,
                    }
                )
            arrays[f"{layer.name}.bias"] = layer.bias.astype(np.float32)
            output = None if layer.output is None else asdict(layer.output)
            layers.append(
                {
                    "name": layer.name,
                    "reduce": layer.reduce,
                    "output": output,
                    "limits": layer.limits,
                    "macs_per_pixel": layer.macs_per_pixel,
                    "exponent": None if layer.grid is None else layer.grid.exponent,
                    "terms": terms,
                }
            )
        description = {
            "format": FORMAT_VERSION,
            "input": asdict(self.input),
            "input_shape": self.input_shape,
            "fold": None if self.fold is None else asdict(self.fold),
            "accumulator": self.accumulator,
            "layers": layers,
        }
        temporary = Path(path).with_name(Path(path).name + ".part")
        # The file would take an array of another memory order as it lies in memory.
        arrays = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        save_file(arrays, temporary, metadata={"shiftcore": json.dumps(description)})
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path | str) -> "QuantizedNetwork":
        """Read a file that :meth:`save` wrote. Raises ``ValueError`` if it is none."""
        if not Path(path).is_file():
            raise ValueError(f"no network file at {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get("shiftcore")
                if text is None:
                    raise ValueError(f"{path} holds no Shiftcore network")
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        try:
            description = json.loads(text)
            version = description["format"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"has format {version}, this version reads {FORMAT_VERSION}: quantize again"
                )
            form = accumulator_format(description["accumulator"])
            layers = tuple(_load_layer(entry, arrays, form) for entry in description["layers"])
            shape = tuple(description["input_shape"])
            return cls(
                FixedPoint(**description["input"]), shape, layers, _load_fold(description["fold"])
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: is incomplete or damaged: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _load_fold(entry: Mapping | None) -> Fold | None:
    return None if entry is None else Fold(**{key: tuple(value) for key, value in entry.items()})


def _load_layer(entry: Mapping, arrays: Mapping[str, NDArray], form: AccumulatorFormat) -> Layer:
    terms = []
    for index, term in enumerate(entry["terms"]):
        key = f"{entry['name']}.{index}"
        scale = SCALE_FORMATS[term["scale"]]
        kernel = VariableQuantizedKernel(
            unpack(arrays[f"{key}.codes"], term["weight_bits"], tuple(term["shape"])),
            scale.decode(arrays[f"{key}.scales"]),
            term["weight_bits"],
            term["block"],
            term["groups"],
            scale,
        )
        terms.append(
            Term(
                term["source"],
                kernel,
                tuple(term["stride"]),
                tuple(term["padding"]),
                tuple(term["dilation"]),
            )
        )
    output = None if entry["output"] is None else BlockFloat(**entry["output"])
    exponent = entry["exponent"]
    return Layer(
        entry["name"],
        tuple(terms),
        arrays[f"{entry['name']}.bias"],
        entry["reduce"],
        output,
        None if entry["limits"] is None else tuple(entry["limits"]),
        entry["macs_per_pixel"],
        Grid(form, exponent) if isinstance(form, FixedFormat) else None,
    )
