"""Pools and reductions over space."""

from collections.abc import Iterator, Mapping
from math import ceil

import torch

from .call import Activation, Call, Made, Reader
from .graph import AvgPool, MaxPool, Node, Padding

__all__ = ["POOLS"]


class _Window:
    """The window of a pool, with its padding as `ceil_mode` completes it."""

    def __init__(self, call: Call, source: str, dilation: tuple[int, int] = (1, 1)) -> None:
        self.kernel = call.pair("kernel_size")
        self.stride = call.pair("stride") if call.arguments["stride"] else self.kernel
        self.dilation = dilation
        pad = call.pair("padding")
        sides = []
        self.overhangs = False
        for axis, size in enumerate(call.workspace.node_shape(source)[1:]):
            after = pad[axis]
            if call.arguments["ceil_mode"]:
                span = dilation[axis] * (self.kernel[axis] - 1) + 1
                count = ceil((size + 2 * pad[axis] - span) / self.stride[axis]) + 1
                # The last window must start on the image or the padding before it.
                if (count - 1) * self.stride[axis] >= size + pad[axis]:
                    count -= 1
                after = max(after, (count - 1) * self.stride[axis] + span - size - pad[axis])
                self.overhangs |= after > pad[axis]
            sides += [pad[axis], after]
        self.padding: Padding = (sides[0], sides[1], sides[2], sides[3])


def _max_pool(call: Call) -> tuple[Node, ...]:
    source = call.image("self")
    window = _Window(call, source, call.pair("dilation"))
    return (
        MaxPool(
            call.layer, (source,), window.kernel, window.stride, window.padding, window.dilation
        ),
    )


def _avg_pool(call: Call) -> tuple[Node, ...]:
    source = call.image("self")
    window = _Window(call, source)
    divisor = call.arguments["divisor_override"]
    if divisor is None:
        # Windows that reach over the border would be divided by another number than the others.
        if window.overhangs:
            call.require("ceil_mode", False)
        if any(window.padding):
            call.require("count_include_pad", True)
    elif divisor < 1:
        raise call.refuse(f"divisor_override={divisor} is not supported", "use a positive one")
    pool = AvgPool(call.layer, (source,), window.kernel, window.stride, window.padding, divisor)
    return (pool,)


def _adaptive(kind: type[AvgPool] | type[MaxPool]) -> Reader:
    def read(call: Call) -> tuple[Node, ...] | Made | Activation:
        value = call.images("self")
        kernel, repeats = [1, 1], [1, 1]
        for axis, (size, wanted) in enumerate(
            zip(value.shape[2:], call.arguments["output_size"], strict=True)
        ):
            if wanted is None:
                continue
            if not size or not wanted:
                raise call.refuse("its result is empty", "use output sizes of 1 or more")
            if size % wanted == 0:
                kernel[axis] = size // wanted
            elif wanted % size == 0:
                repeats[axis] = wanted // size
            else:
                raise call.refuse(
                    f"output_size={call.arguments['output_size']!r} of an input of "
                    f"{tuple(value.shape[2:])} is not supported",
                    "use sizes of which one divides the other",
                )

        def layout(index: torch.Tensor) -> torch.Tensor:
            larger = index.repeat_interleave(repeats[0], 2).repeat_interleave(repeats[1], 3)
            return larger.reshape(call.shape)

        if kernel == [1, 1]:
            moved = layout(call.workspace.index(value))
            return Activation(tuple(moved.shape), None, moved, call)
        window = (kernel[0], kernel[1])
        return Made((kind(call.layer, (call.image("self"),), window, window),), layout)

    return read


def _reduction(kind: type[AvgPool] | type[MaxPool], total: bool = False) -> Reader:
    """A mean, a sum or a maximum over spatial dimensions, wherever they are."""

    def read(call: Call) -> tuple[Node, ...] | Made:
        value, workspace = call.activation("self"), call.workspace
        rank = len(value.shape)
        advice = "take the mean over dims (2, 3)"
        refusal = call.refuse(f"dim={call.arguments['dim']!r} is not supported", advice)
        if not rank:
            raise refusal
        dimensions = call.arguments["dim"]
        if isinstance(dimensions, int):
            dimensions = [dimensions]
        if not isinstance(dimensions, list | tuple) or not dimensions:
            dimensions = list(range(rank))
        reduced = sorted({d % rank for d in dimensions})
        if call.arguments.get("dtype") not in (None, torch.float32):
            call.require("dtype", None)
        first = workspace.one_image(value)
        if first is None:
            raise refusal
        axes = range(rank - first.ndim, rank)  # without that of the images
        kept = [d for d in axes if d not in reduced]
        if reduced[0] not in axes:
            raise refusal

        def find(value: Activation) -> Made | None:
            index = workspace.one_image(value)
            if index is None:
                return None
            index = index.transpose([d - axes[0] for d in (*kept, *reduced)])
            for shape, swap, kernel in _images(call, value, index.shape, len(kept)):
                pixels = index.reshape(shape)
                pixels = pixels.swapaxes(1, 2) if swap else pixels
                source = workspace.arranged(pixels, value.origin)
                if source is not None:
                    node = _whole(kind, call.layer, source, kernel, total)
                    return Made((node,), lambda index: index.reshape(call.shape))
            return None

        made = find(value)
        if made is None and first.ndim == 3 and value.node is None:
            made = find(Activation(value.shape, workspace.operand(value), None, value.origin))
        if made is None:
            raise refusal
        return made

    return read


def _whole(
    kind: type[AvgPool] | type[MaxPool],
    layer: str,
    source: str,
    kernel: tuple[int, int],
    total: bool,
) -> Node:
    if kind is AvgPool:
        return AvgPool(layer, (source,), kernel, kernel, divisor=1 if total else None)
    return MaxPool(layer, (source,), kernel, kernel)


def _images(
    call: Call, value: Activation, shape: tuple[int, ...], kept: int
) -> Iterator[tuple[tuple[int, int, int], bool, tuple[int, int]]]:
    """What (kept..., reduced...) may be: its (C, H, W), whether H and W swap, the window."""
    match shape[:kept], shape[kept:]:
        case (channels,), (height, width):
            yield (channels, height, width), False, (height, width)
        case (channels, rows), (columns,):
            yield (channels, rows, columns), False, (1, columns)
            yield (channels, rows, columns), True, (columns, 1)
        case (channels,), (pixels,):
            # Flattened space: the operand knows its height and width.
            for part in call.workspace.operands(value):
                _, height, width = part.place.planes
                if height * width == pixels:
                    yield (channels, height, width), False, (height, width)
            yield (channels, pixels, 1), False, (pixels, 1)


ATEN = torch.ops.aten

POOLS: Mapping[object, Reader] = {
    ATEN.max_pool2d.default: _max_pool,
    ATEN.max_pool2d_with_indices.default: _max_pool,
    ATEN.avg_pool2d.default: _avg_pool,
    ATEN.adaptive_avg_pool2d.default: _adaptive(AvgPool),
    ATEN._adaptive_avg_pool2d.default: _adaptive(AvgPool),
    ATEN.adaptive_max_pool2d.default: _adaptive(MaxPool),
    ATEN.mean.dim: _reduction(AvgPool),
    ATEN.sum.dim_IntList: _reduction(AvgPool, total=True),
    ATEN.amax.default: _reduction(MaxPool),
}
