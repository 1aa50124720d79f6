"""The tensors of a network as the compiler sees them: words, signs, and for how long they live."""

from dataclasses import dataclass

import numpy as np

from ..golden.network import INPUT, QuantizedNetwork

__all__ = ["Box", "Stored", "Tensors", "input_tensor", "stored_tensors"]


@dataclass(frozen=True)
class Box:
    """Some pixels of a picture: rows ``y`` to ``y + rows`` and columns ``x`` to ``x + columns``."""

    y: int
    rows: int
    x: int
    columns: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Stored:
    """A tensor of words, ``(blocks, height, width)``, one word per block and pixel.

    Parameters
    ----------
    name : of the tensor
    planes : digit planes; their blocks follow one another
    height, width : pixels
    signed : one bool per block
    exponents : the exponent fields of the blocks, where they are constants, else None
    producer : index of the layer that writes it, -1 for the network's input
    last : index of the last layer that reads it, or of the producer
    """

    name: str
    planes: int
    height: int
    width: int
    signed: tuple[bool, ...]
    exponents: tuple[int, ...] | None
    producer: int
    last: int

    @property
    def blocks(self) -> int:
        return len(self.signed)

    @property
    def words(self) -> int:
        return self.blocks * self.height * self.width


Tensors = dict[str, Stored]


def input_tensor(network: QuantizedNetwork) -> tuple[int, int, int]:
    """(channels of a plane, H, W) of the tensor "input"."""
    return getattr(network, "folded_shape", network.input_shape)


def stored_tensors(network: QuantizedNetwork) -> Tensors:
    """Every tensor that is stored in words, in the order in which they are written."""
    last = {INPUT: 0}
    for index, layer in enumerate(network.layers):
        last[layer.name] = index
        last |= {term.source: index for term in layer.terms}
    channels, height, width = input_tensor(network)
    pixel = network.input.compute(np.zeros((1, channels, 1, 1), np.float32))
    fields = tuple(pixel.exponents.reshape(-1).tolist())
    tensors = {
        INPUT: Stored(INPUT, pixel.planes, height, width, pixel.signed, fields, -1, last[INPUT])
    }
    sizes = network.sizes()
    for index, layer in enumerate(network.layers):
        if layer.output is not None:
            blocks = -(-layer.bias.size // network.block)
            tensors[layer.name] = Stored(
                layer.name,
                1,
                *sizes[layer.name],
                (layer.output.signed,) * blocks,
                None,
                index,
                last[layer.name],
            )
    return tensors
