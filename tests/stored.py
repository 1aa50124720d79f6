"""What a network stores, as bytes to compare."""

from shiftcore.golden.layers import Layer
from shiftcore.golden.network import QuantizedNetwork

__all__ = ["content", "contents"]


def content(layer: Layer) -> list[bytes]:
    """Codes and scales of every kernel, and the biases."""
    kernels = [term.kernel for term in layer.terms]
    arrays = [x for kernel in kernels for x in (kernel.codes, kernel.scales)]
    return [x.tobytes() for x in (*arrays, layer.bias)]


def contents(network: QuantizedNetwork) -> list[list[bytes]]:
    """The content of every layer."""
    return [content(layer) for layer in network.layers]
