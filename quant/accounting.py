"""What DSConv costs: bits of storage and multiplications, by the papers' formulas and as done here.

v1 is arXiv 1901.01928 v1 and S the supplementary material of the version of ICCV 2019; numbers in
brackets are their equations. ``docs/paper.md`` compares what the papers print with what follows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import safe_open

from ..frontend.graph import Conv2d, Graph, Linear
from ..golden.floats import ScaleFormat
from ..golden.network import INPUT, QuantizedNetwork
from ..golden.vqk import VariableQuantizedKernel, weight_blocks

__all__ = [
    "CONVENTIONS",
    "CodedKernel",
    "Convention",
    "KernelShape",
    "LayerAccount",
    "Memory",
    "account_file",
    "account_graph",
    "account_network",
    "file_memory",
    "graph_kernels",
    "largest_int_time",
    "speedup",
    "total",
]

FLOAT_BITS = 32
_TENSORS = {"codes": "codes", "scales": "scales", "bias": "biases"}
"""What the last part of a tensor's name in the file says, and the field of :class:`Memory`."""


@dataclass(frozen=True)
class KernelShape:
    """The kernel of a convolution; a linear layer is a 1x1 convolution of one pixel.

    Parameters
    ----------
    name : of its layer
    filters : Co
    depth : Ci / groups
    taps : Kh * Kw
    groups : of the convolution
    pixels : Ho * Wo of its result for one image
    """

    name: str
    filters: int
    depth: int
    taps: int = 1
    groups: int = 1
    pixels: int = 1

    @classmethod
    def of(cls, name: str, kernel: VariableQuantizedKernel, pixels: int) -> "KernelShape":
        """The shape of a quantized kernel."""
        filters, depth, height, width = kernel.codes.shape
        return cls(name, filters, depth, height * width, kernel.groups, pixels)

    @property
    def weights(self) -> int:
        return self.filters * self.depth * self.taps

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.pixels * self.weights

    def blocks(self, block: int) -> int:
        """Weight blocks as the papers count them: every group starts a block of its own."""
        return self.filters * self.taps * -(-self.depth // block)

    def _aligned(self, block: int) -> list[int]:
        """Weight blocks of a filter of each group, which end where activation blocks end."""
        return [len(weight_blocks(self.depth, group, block)) for group in range(self.groups)]

    def products(self, block: int) -> int:
        """Block products for one pixel of the result, each a floating-point multiplication."""
        return self.filters // self.groups * self.taps * sum(self._aligned(block))

    def scales(self, block: int) -> int:
        """Scales that are stored: every filter has as many as the one with the most blocks."""
        return self.filters * self.taps * max(self._aligned(block))

    def float_multiplies(self, block: int) -> int:
        """Floating-point multiplications for one image: one for each block product."""
        return self.pixels * self.products(block)


@dataclass(frozen=True)
class Convention:
    """What is stored beside the b-bit codes.

    Parameters
    ----------
    label : in tables
    scale_bits : width of each number
    per_block : numbers of a weight block: 1, the scale (KDS), or 2, its bias too
    per_filter : numbers of a filter: 0, or 2, scale and bias of the channel (CDS)
    """

    label: str
    scale_bits: int
    per_block: int
    per_filter: int = 0

    def bits(self, kernel: KernelShape, weight_bits: int, block: int) -> int:
        """Of a kernel: v1 (7) with the factor Ci that its first term lacks in print, S (2)."""
        beside = self.per_block * kernel.blocks(block) + self.per_filter * kernel.filters
        return weight_bits * kernel.weights + self.scale_bits * beside

    def ratio(self, kernels: Iterable[KernelShape], weight_bits: int, block: int) -> float:
        """Part of the float32 kernels' size, 0 to 1 or more: v1 (8), S (3) and (4)."""
        kernels = list(kernels)
        bits = sum(self.bits(kernel, weight_bits, block) for kernel in kernels)
        return bits / (FLOAT_BITS * sum(kernel.weights for kernel in kernels))


CONVENTIONS = {
    "v1": Convention("v1 (8)", 32, 2, 2),
    "v1_no_cds": Convention("(8) without CDS", 32, 2),
    "fp32": Convention("FP32 scale", 32, 1),
    "fp16": Convention("FP16 scale", 16, 1),
    "codes": Convention("codes only", 32, 0),
}
"""The conventions that the papers' tables mix. v1 (8): scale and bias of every block and of every
channel, all FP32. FP32 scale: one of every block and nothing else, S (4). Codes only: v1 (9)."""


def speedup(
    kernels: Iterable[KernelShape], block: int, ratio: float = math.inf, eta: float = 0
) -> float:
    """Time of the float convolutions by that of the block-scaled ones, S (5) / (6).

    Additions and memory are free in it.

    Parameters
    ----------
    block : B
    ratio : r, time of a float multiplication by that of an integer one; infinite gives the bound
    eta : cost of the conversion of an activation by that of an integer multiplication, charged for
        every MAC as S (6) does
    """
    kernels = list(kernels)
    macs = sum(kernel.macs for kernel in kernels)
    products = sum(kernel.float_multiplies(block) for kernel in kernels)
    return macs / (macs * (1 + eta) / ratio + products)


def largest_int_time(depth: int, block: int, eta: float = 0) -> float:
    """The time of an integer multiplication, in float ones, from which on nothing is gained, S (8).

    `depth` is Ci. In print the denominator has (1 + n) for (1 + eta).
    """
    return (depth - -(-depth // block)) / (depth * (1 + eta))


@dataclass(frozen=True)
class Memory:
    """Bytes of packed codes, of scales and of biases."""

    codes: int = 0
    scales: int = 0
    biases: int = 0

    @property
    def bytes(self) -> int:
        return self.codes + self.scales + self.biases

    def __add__(self, other: "Memory") -> "Memory":
        return Memory(
            self.codes + other.codes, self.scales + other.scales, self.biases + other.biases
        )


@dataclass(frozen=True)
class CodedKernel:
    """A kernel and how it is encoded: `weight_bits` b, `block` B, the format of its scales."""

    shape: KernelShape
    weight_bits: int
    block: int
    scale_format: ScaleFormat

    @property
    def memory(self) -> Memory:
        """In the network file, which packs the codes of a kernel and fills up the last byte."""
        scales = self.shape.scales(self.block) * self.scale_format.storage_bits // 8
        return Memory(-(-self.shape.weights * self.weight_bits // 8), scales)


@dataclass(frozen=True)
class LayerAccount:
    """What one layer costs; multiplications are those for one image.

    Parameters
    ----------
    name : of the layer
    weights : of the network's convolutions and linear layers that it computes; 0 of a pool
    kernels : as stored; identities, pools and, where a layer reads rearranged channels, zeros are
        kernels too
    blocks : scales that are stored
    memory : bytes in the network file
    float_bytes : of `weights` and the biases in float32; 0 without weights
    macs : of `weights`
    int_multiplies : of codes by codes; each digit plane of the network input counts
    float_multiplies : one for each block product
    """

    name: str
    weights: int
    kernels: tuple[CodedKernel, ...]
    blocks: int
    memory: Memory
    float_bytes: int
    macs: int
    int_multiplies: int
    float_multiplies: int

    @property
    def bits_per_weight(self) -> float | None:
        """Codes and scales; None without weights."""
        bits = 8 * (self.memory.codes + self.memory.scales)
        return bits / self.weights if self.weights else None

    @property
    def percent(self) -> float | None:
        """All bytes by those of float32; None without weights."""
        return 100 * self.memory.bytes / self.float_bytes if self.weights else None

    def percent_by(self, convention: Convention, block: int | None = None) -> float | None:
        """Kernels by those of float32 as a paper counts, without biases; None without weights.

        `block` is another B than the layer's own.
        """
        if not self.weights:
            return None
        bits = sum(
            convention.bits(kernel.shape, kernel.weight_bits, block or kernel.block)
            for kernel in self.kernels
        )
        return 100 * bits / (FLOAT_BITS * self.weights)

    def speedup(self, ratio: float = math.inf, eta: float = 0) -> float | None:
        """As :func:`speedup`, with the multiplications really done; None without MACs."""
        time = self.int_multiplies * (1 + eta) / ratio + self.float_multiplies
        return self.macs / time if self.macs else None

    def largest_int_time(self, eta: float = 0) -> float | None:
        """As :func:`largest_int_time`, with the multiplications really done.

        0 if they are so many that no integer multiplication is fast enough; None without MACs.
        """
        if not self.macs:
            return None
        return max(0, self.macs - self.float_multiplies) / (self.int_multiplies * (1 + eta))


def total(layers: Sequence[LayerAccount], name: str = "all") -> LayerAccount:
    """The sum of all layers; its `kernels` are those of layers with weights.

    What pools store and multiply counts. The papers' formulas, which only see the kernels, leave
    them out.
    """
    return LayerAccount(
        name,
        sum(layer.weights for layer in layers),
        tuple(kernel for layer in layers if layer.weights for kernel in layer.kernels),
        sum(layer.blocks for layer in layers),
        sum((layer.memory for layer in layers), Memory()),
        sum(layer.float_bytes for layer in layers),
        sum(layer.macs for layer in layers),
        sum(layer.int_multiplies for layer in layers),
        sum(layer.float_multiplies for layer in layers),
    )


def _account(
    name: str,
    weights: int,
    kernels: Sequence[CodedKernel],
    biases: int,
    planes: Sequence[int],
) -> LayerAccount:
    """A layer of `weights` for each pixel; `planes` are those of what each kernel reads."""
    value = FLOAT_BITS // 8
    pairs = list(zip(kernels, planes, strict=True))
    return LayerAccount(
        name,
        weights,
        tuple(kernels),
        sum(kernel.shape.scales(kernel.block) for kernel in kernels),
        sum((kernel.memory for kernel in kernels), Memory(biases=value * biases)),
        value * (weights + biases) if weights else 0,
        weights * kernels[0].shape.pixels,
        sum(kernel.shape.macs * count for kernel, count in pairs),
        sum(kernel.shape.float_multiplies(kernel.block) * count for kernel, count in pairs),
    )


def account_network(network: QuantizedNetwork) -> tuple[LayerAccount, ...]:
    """Every layer of a quantized network, in execution order."""
    rows = []
    sizes = network.sizes()
    for layer in network.layers:
        pixels = math.prod(sizes[layer.name])
        kernels = [
            CodedKernel(
                KernelShape.of(layer.name, k, pixels), k.weight_bits, k.block, k.scale_format
            )
            for k in (term.kernel for term in layer.terms)
        ]
        planes = [network.input.planes if t.source == INPUT else 1 for t in layer.terms]
        rows.append(_account(layer.name, layer.macs(1, 1), kernels, layer.bias.size, planes))
    return tuple(rows)


def graph_kernels(graph: Graph) -> tuple[KernelShape, ...]:
    """The convolutions and linear layers of a graph."""
    return tuple(_shape(graph, node) for node in _learnt(graph))


def _learnt(graph: Graph) -> list[Conv2d | Linear]:
    return [node for node in graph.nodes if isinstance(node, Conv2d | Linear)]


def _shape(graph: Graph, node: Conv2d | Linear) -> KernelShape:
    if isinstance(node, Linear):
        return KernelShape(node.name, *node.weight.shape)
    filters, depth, height, width = node.weight.shape
    pixels = math.prod(graph.shapes[node.name][1:])
    return KernelShape(node.name, filters, depth, height * width, node.groups, pixels)


def account_graph(
    graph: Graph, weight_bits: int, block: int, scale_format: ScaleFormat
) -> tuple[LayerAccount, ...]:
    """The convolutions and linear layers of a network that is not quantized yet.

    Layers that are codes already have the bits of these, all others `weight_bits`. Batch norm is
    folded, so that every filter has a bias. Pools, identities and digit planes, which quantization
    adds, are not there.
    """
    rows = []
    for node in _learnt(graph):
        shape = _shape(graph, node)
        bits = weight_bits if node.coded is None else node.coded.weight_bits
        kernel = CodedKernel(shape, bits, block, scale_format)
        rows.append(_account(shape.name, shape.weights, [kernel], shape.filters, [1]))
    return tuple(rows)


def file_memory(path: Path | str) -> Mapping[str, Memory]:
    """Bytes of every layer's tensors in a network file, counted in the file itself.

    Raises ``ValueError`` if a tensor is neither codes nor scales nor biases.
    """
    found: dict[str, Memory] = {}
    with safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118
            name, _, kind = key.rpartition(".")
            if kind not in _TENSORS:
                raise ValueError(f"{path} holds {key!r}, which is no tensor of a network")
            layer = name if kind == "bias" else name.rpartition(".")[0]
            part = Memory(**{_TENSORS[kind]: file.get_tensor(key).nbytes})
            found[layer] = found.get(layer, Memory()) + part
    return found


def account_file(path: Path | str) -> tuple[LayerAccount, ...]:
    """Every layer of a network file, with the bytes that lie in it.

    Raises ``ValueError`` if it is no network file, or holds anything else.
    """
    layers = account_network(QuantizedNetwork.load(path))
    memory = file_memory(path)
    return tuple(replace(layer, memory=memory[layer.name]) for layer in layers)
