"""Small random networks and configurations, with everything that a layer can have."""

from dataclasses import replace

import numpy as np

from shiftcore.golden.bfp import BlockFloat, FixedPoint
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import ACCUMULATORS, FixedFormat, Grid
from shiftcore.golden.floats import FLOAT32, SCALE_FORMATS
from shiftcore.golden.layers import Layer, Reduce, Term
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.vqk import VariableQuantizedKernel

__all__ = ["Builder", "random_config", "random_network"]

LOWEST = np.float32(-FLOAT32.largest)


class Builder:
    """Layers with random weights, one after the other."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        config: HardwareConfig,
        rng: np.random.Generator,
        input_bits: int = 8,
    ):
        self.shape, self.config, self.rng = shape, config, rng
        self.input = FixedPoint(-5, config.rows, config.act_bits, input_bits)
        self.layers: list[Layer] = []
        self.shapes = {INPUT: shape}

    def network(self) -> QuantizedNetwork:
        """All layers so far."""
        return QuantizedNetwork(self.input, self.shape, tuple(self.layers))

    def kernel(
        self, filters: int, channels: int, taps: tuple[int, int], groups: int = 1
    ) -> VariableQuantizedKernel:
        """Random weights, some blocks of them zero."""
        weight = self.rng.normal(size=(filters, channels // groups, *taps))
        if not SCALE_FORMATS[self.config.scale].signed:
            weight = np.abs(weight)
        if self.rng.random() < 0.3:
            weight[:, :, self.rng.random(taps) < 0.4] = 0
        return VariableQuantizedKernel.quantize(
            weight / np.sqrt(channels // groups * taps[0] * taps[1]),
            weight_bits=self.config.weight_bits,
            block=self.config.rows,
            groups=groups,
            scale_format=SCALE_FORMATS[self.config.scale],
        )

    def constant(
        self, channels: int, taps: tuple[int, int], scale: float = 1.0
    ) -> VariableQuantizedKernel:
        """Identity, or a pool."""
        return VariableQuantizedKernel.depthwise(
            channels,
            taps,
            1,
            scale,
            weight_bits=self.config.weight_bits,
            block=self.config.rows,
            scale_format=SCALE_FORMATS[self.config.scale],
        )

    def add(
        self,
        *terms: Term,
        reduce: Reduce = "add",
        signed: bool = False,
        raw: bool = False,
        bias: np.ndarray | None = None,
    ) -> str:
        """A layer of `terms`; its name."""
        name = f"layer{len(self.layers)}"
        filters = terms[0].kernel.out_channels
        if bias is None:
            bias = self.rng.normal(size=filters).astype(np.float32)
        output = None if raw else BlockFloat(self.config.rows, self.config.act_bits, signed)
        grid = self.grid()
        if grid is not None:
            bias = grid.constants(bias)
        layer = Layer(name, terms, bias, reduce, output, grid=grid)
        self.layers.append(layer)
        size = layer.output_size({t.source: self.shapes[t.source][1:] for t in terms})
        self.shapes[name] = (filters, *size)
        return name

    def grid(self) -> Grid | None:
        """A grid that most numbers of a layer fit, and some do not."""
        form = self.config.accumulator_format
        if not isinstance(form, FixedFormat):
            return None
        own = np.random.default_rng([len(self.layers), form.bits])
        return Grid(form, int(own.integers(1, 8)) - (form.bits - 1))

    def convolution(
        self,
        source: str,
        filters: int,
        taps: tuple[int, int],
        *shortcuts: Term,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        signed: bool = False,
        raw: bool = False,
    ) -> str:
        """A convolution, by default of the same size; its name."""
        if padding is None:
            v, h = (taps[0] - 1) // 2, (taps[1] - 1) // 2
            padding = (v, taps[0] - 1 - v, h, taps[1] - 1 - h)
        kernel = self.kernel(filters, self.shapes[source][0], taps, groups)
        term = Term(source, kernel, stride, padding, dilation)
        return self.add(term, *shortcuts, signed=signed, raw=raw)

    def identity(self, source: str) -> Term:
        """The tensor as it is, as a term."""
        return Term(source, self.constant(self.shapes[source][0], (1, 1)))


def _pick(rng: np.random.Generator, *values: int) -> int:
    return int(rng.choice(values))


def random_config(rng: np.random.Generator) -> HardwareConfig:
    """Arrays of at most 8 x 14, and small memories."""
    rows = int(rng.integers(1, 9))
    cols = int(rng.integers(1, 2 * rows + 4))
    least = -(-rows // cols)
    config = HardwareConfig(
        rows,
        cols,
        int(rng.integers(2, 9)),
        int(rng.integers(2, 9)),
        str(rng.choice(list(SCALE_FORMATS))),
        accumulator_depth=max(2, least) + _pick(rng, 0, 3, 20, 60, 500),
        bus_bits=_pick(rng, 32, 64, 128, 256),
        buffer_depth=_pick(rng, 16, 24, 40, 64, 128, 256, 1024, 8192),
        queue_depth=_pick(rng, 2, 3, 8),
    )
    # A generator of its own leaves the networks of the seeds as they are.
    own = np.random.default_rng([rows, cols, config.buffer_depth, config.accumulator_depth])
    if config.scale != "fp16" and own.random() < 0.5:
        config = replace(config, accumulator=str(own.choice(ACCUMULATORS[1:])))
    return replace(config, pipeline=str(own.choice(list(PIPELINES))))


def _convolution(builder: Builder, source: str, raw: bool) -> str:
    rng, channels = builder.rng, builder.shapes[source][0]
    groups = _pick(rng, *(g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0))
    filters = groups * int(rng.integers(1, 4)) if groups > 1 else int(rng.integers(1, 24))
    taps = [(1, 1), (3, 3), (3, 3), (2, 2), (1, 3), (5, 2)][int(rng.integers(6))]
    stride = (_pick(rng, 1, 1, 2, 3), _pick(rng, 1, 1, 2, 3))
    dilation = (_pick(rng, 1, 1, 2), _pick(rng, 1, 1, 2))
    size = builder.shapes[source][1:]
    padding: list[int] = []  # top, bottom, left, right
    for axis in (0, 1):
        reach = (taps[axis] - 1) * dilation[axis]
        before, after = rng.integers(0, reach + 2, 2).tolist()
        padding += [before, max(after, reach + 1 - size[axis] - before)]
    return builder.convolution(
        source,
        filters,
        taps,
        stride=stride,
        padding=(padding[0], padding[1], padding[2], padding[3]),
        dilation=dilation,
        groups=groups,
        signed=bool(rng.integers(2)),
        raw=raw,
    )


def _residual(builder: Builder, source: str, raw: bool) -> str:
    rng = builder.rng
    channels, *size = builder.shapes[source]
    stride = _pick(rng, 1, 2)
    filters = channels if rng.random() < 0.5 else int(rng.integers(1, 24))
    inner = builder.convolution(source, filters, (3, 3), stride=(stride, stride))
    if stride == 1 and filters == channels and source != INPUT:
        shortcut = builder.identity(source)
    else:
        shortcut = Term(source, builder.kernel(filters, channels, (1, 1)), (stride, stride))
    del size
    return builder.convolution(
        inner, filters, (3, 3), shortcut, signed=bool(rng.integers(2)), raw=raw
    )


def _pool(builder: Builder, source: str, raw: bool) -> str:
    rng = builder.rng
    channels, *size = builder.shapes[source]
    taps = (min(size[0], _pick(rng, 2, 3)), min(size[1], _pick(rng, 2, 3)))
    stride = (_pick(rng, 1, 2), _pick(rng, 1, 2))
    padding = (_pick(rng, 0, 1), _pick(rng, 0, 1), _pick(rng, 0, 1), _pick(rng, 0, 1))
    if rng.random() < 0.6 and source != INPUT:
        kernel = builder.constant(channels, taps)
        bias = np.full(channels, LOWEST if rng.random() < 0.5 else 0, np.float32)
        return builder.add(
            Term(source, kernel, stride, padding),
            reduce="max",
            signed=bool(rng.integers(2)),
            raw=raw,
            bias=bias,
        )
    kernel = builder.constant(channels, taps, 0.25)
    return builder.add(Term(source, kernel, stride, padding), signed=True, raw=raw)


def _global_pool(builder: Builder, source: str, raw: bool) -> str:
    channels, *size = builder.shapes[source]
    kernel = builder.constant(channels, (size[0], size[1]), 0.125)
    bias = np.zeros(channels, np.float32)
    return builder.add(Term(source, kernel), signed=True, raw=raw, bias=bias)


def random_network(rng: np.random.Generator, config: HardwareConfig) -> QuantizedNetwork:
    """Up to seven layers, which read any earlier one."""
    # Where few pixels fit the accumulators, many would make a long program.
    most = 13 if config.accumulator_depth > 20 else 3
    shape = (
        int(rng.integers(1, 12)),
        int(rng.integers(1, most + 1)),
        int(rng.integers(1, most + 1)),
    )
    builder = Builder(shape, config, rng, int(rng.integers(2, 17)))
    count = int(rng.integers(1, 6))
    kinds = (_convolution, _convolution, _residual, _pool, _global_pool)
    for index in range(count):
        names = list(builder.shapes)
        source = names[-1] if rng.random() < 0.7 else names[int(rng.integers(len(names)))]
        raw = index == count - 1 and bool(rng.integers(2))
        kinds[int(rng.choice(5, p=[0.3, 0.2, 0.25, 0.15, 0.1]))](builder, source, raw)
    return builder.network()
