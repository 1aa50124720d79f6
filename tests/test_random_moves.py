"""Random chains of what moves and reduces data: read as torch computes them, or refused.

Images, weights and sums are small integers and divisors powers of two, so results compare exactly.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from shiftcore.frontend.archive import read
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.lower import lower

SEEDS = range(60)
Step = Callable[[torch.Tensor], torch.Tensor]
"""what is done to an activation; `Chain.forward` sets the number of images"""


class Chain(nn.Module):
    """A convolution and random steps after it, each of which fits what it is given."""

    def __init__(self, random: np.random.Generator, images: int, length: int) -> None:
        super().__init__()
        self.random, self.images = random, images
        self.past = SimpleNamespace()  # torch.export looks at attributes that are tensors
        self.layers = nn.ModuleList()
        self.names: list[str] = []
        self.steps: list[Step] = []
        x = torch.zeros(images, 2, 4, 4)
        first = self.layer(nn.Conv2d(2, 8, 1))
        self.names.append("first")
        self.steps.append(lambda v: first(v))
        while len(self.steps) < length:
            results = self.run(x)
            name = str(random.choice(MOVES if random.random() < 0.5 else list(KINDS)))
            before = len(self.layers), len(self.steps)
            try:
                self.add(name, results[-1])
                result = self.run(x)[-1]
            except (RuntimeError, IndexError, ValueError):
                result = None
            if result is None or not 0 < result.numel() <= 4096 or result.dim() > 6:
                del self.layers[before[0] :], self.steps[before[1] :], self.names[before[1] :]
        value = self.run(x)[-1]
        if value.is_floating_point() and value.numel() % (16 * images) == 0:
            # Whatever it became is taken for images again.
            self.steps.append(lambda v: v.reshape(self.past.results[0].shape[0], -1, 4, 4))
            self.names.append("images")
            self.add("conv", self.run(x)[-1])

    def add(self, name: str, value: torch.Tensor) -> None:
        """Draw a step of a kind for `value`."""
        step = KINDS[name](self, value)
        self.names.append(name)
        self.steps.append(step)

    def layer(self, layer: nn.Module) -> nn.Module:
        """`layer` with small integers for weights."""
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(torch.from_numpy(self.random.integers(-1, 2, tuple(parameter.shape))))
        self.layers.append(layer.eval())
        return layer

    def pick(self, *values):
        return values[int(self.random.integers(len(values)))]

    def axis(self, value: torch.Tensor) -> int:
        return int(self.random.integers(max(1, value.dim()))) - self.pick(0, value.dim())

    def run(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The result of every step."""
        self.past.results = [x]
        for step in self.steps:
            self.past.results.append(step(self.past.results[-1]))
        return self.past.results

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)[-1]


def factored(chain: Chain, size: int, parts: int) -> list[int]:
    """`parts` random factors of `size`."""
    factors = [1] * parts
    for prime in (2, 3, 5, 7):
        while size % prime == 0:
            factors[int(chain.random.integers(parts))] *= prime
            size //= prime
    factors[-1] *= size
    return factors


def view(chain: Chain, value: torch.Tensor) -> Step:
    if chain.images == value.shape[0] and chain.random.random() < 0.7:
        rest = factored(chain, value[0].numel(), chain.pick(1, 2, 3, 4))
        if chain.random.random() < 0.3:
            return lambda v: v.reshape(-1, *rest)
        return lambda v: v.reshape(v.shape[0], *rest)
    sizes = factored(chain, value.numel(), chain.pick(1, 2, 3, 4))
    sizes[int(chain.random.integers(len(sizes)))] = -1
    return lambda v: v.reshape(sizes)


def shuffle(chain: Chain, value: torch.Tensor) -> Step:
    """An axis in two, which are swapped or reduced, by themselves or with a neighbour."""
    axis = int(chain.random.integers(value.dim()))
    low = max(0, axis - 1)
    swapped = low + chain.random.permutation(min(3, value.dim() + 1 - low))
    order = [*range(low), *swapped.tolist(), *range(low + len(swapped), value.dim() + 1)]
    return chain.pick(
        lambda v: v.unflatten(axis, (-1, 2)).permute(order).reshape(v.shape),
        lambda v: v.unflatten(axis, (2, -1)).permute(order).flatten(low, low + 1),
        lambda v: v.unflatten(axis, (2, -1)).sum(axis),
    )


def flatten(chain: Chain, value: torch.Tensor) -> Step:
    start = chain.pick(0, 1, 1, 1, 2)
    return lambda v: v.flatten(start)


def permute(chain: Chain, value: torch.Tensor) -> Step:
    order = chain.random.permutation(value.dim()).tolist()
    if chain.random.random() < 0.6 and order:
        order.remove(0)
        order.insert(0, 0)
    return lambda v: v.permute(order)


def transpose(chain: Chain, value: torch.Tensor) -> Step:
    one, other = chain.axis(value), chain.axis(value)
    return lambda v: v.transpose(one, other)


def squeeze(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    return chain.pick(lambda v: v.squeeze(), lambda v: v.squeeze(axis))


def unsqueeze(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    return lambda v: v.unsqueeze(axis)


def flip(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    return chain.pick(lambda v: v.flip(axis), lambda v: v.roll(1, axis))


def cut(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    first = int(chain.random.integers(value.shape[axis]))
    last = int(chain.random.integers(first, value.shape[axis])) + 1
    step = chain.pick(1, 1, 2, 3)
    indices = torch.from_numpy(chain.random.integers(0, value.shape[axis], chain.pick(1, 2, 4)))
    return chain.pick(
        lambda v: v.select(axis, first),
        lambda v: v.narrow(axis, first, last - first),
        lambda v: v.index_select(axis, indices),
        lambda v: torch.ops.aten.slice(v, axis, first, last, step),
        lambda v: v.chunk(2, axis)[-1],
        lambda v: v.split(max(1, first), axis)[0],
        lambda v: v[:, indices],
    )


def join(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    old = int(chain.random.integers(len(chain.past.results)))
    integers = torch.zeros(value.shape, dtype=chain.pick(torch.int32, torch.float32, torch.bool))
    return chain.pick(
        lambda v: torch.cat([v, v], axis),
        lambda v: torch.cat([chain.past.results[old], v], axis),
        lambda v: torch.cat([v, torch.zeros_like(v)], axis),
        lambda v: torch.cat([v, integers], axis),
        lambda v: torch.stack([v, v.relu()], axis),
    )


def repeat(chain: Chain, value: torch.Tensor) -> Step:
    axis = chain.axis(value)
    old = int(chain.random.integers(len(chain.past.results)))
    times = [1] * value.dim()
    times[axis] = 2
    return chain.pick(
        lambda v: v.repeat(times),
        lambda v: v.repeat_interleave(2, axis),
        lambda v: v.narrow(axis, 0, 1).expand(v.shape),
        lambda v: v.expand_as(chain.past.results[old]),
    )


def pad(chain: Chain, value: torch.Tensor) -> Step:
    amounts = chain.random.integers(-1, 3, 2 * chain.pick(1, 2, 3)).tolist()
    return lambda v: functional.pad(v, amounts)


def written(chain: Chain, value: torch.Tensor) -> Step:
    """Zeros, into which a part of the activation is written."""
    axis = chain.axis(value)
    dtype = chain.pick(torch.float32, torch.float32, torch.int32)

    def step(v: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(v, dtype=dtype)
        out.narrow(axis, 0, 1).copy_(v.narrow(axis, 0, 1))
        return out

    return step


def pointwise(chain: Chain, value: torch.Tensor) -> Step:
    old = int(chain.random.integers(len(chain.past.results)))
    low = float(chain.random.integers(-3, 3))
    end = torch.full(chain.pick((), (1,), (value.shape[-1:] or (1,)), tuple(value.shape)), low)
    return chain.pick(
        lambda v: v.relu(),
        lambda v: v.clamp(low, low + 4),
        lambda v: torch.maximum(v, end),
        lambda v: v + chain.past.results[old],
        lambda v: v + v.relu(),
    )


def in_place(chain: Chain, value: torch.Tensor) -> Step:
    """Writes to what earlier results may share."""
    drop = chain.pick(nn.Dropout(), nn.Dropout2d(), nn.Identity(), nn.Flatten(0)).eval()
    return chain.pick(
        lambda v: functional.relu_(drop(v)) + v,
        lambda v: v.add_(drop(v)),
        lambda v: drop(v).clamp_(-2, 2),
        lambda v: (v.relu_(), drop(v))[1],
    )


def reduce(chain: Chain, value: torch.Tensor) -> Step:
    axes = chain.random.permutation(value.dim())[: chain.pick(1, 1, 2)].tolist()
    keep = chain.pick(False, True)
    kinds = [lambda v: v.sum(axes, keep), lambda v: v.amax(axes, keep)]
    count = math.prod(value.shape[axis] for axis in axes)
    if count & (count - 1) == 0:
        kinds.append(lambda v: v.mean(axes, keep))
    return chain.pick(*kinds)


def pool(chain: Chain, value: torch.Tensor) -> Step:
    sizes = [chain.pick(1, 2, 4) for _ in range(2)]
    return chain.pick(
        lambda v: functional.max_pool2d(v, 2, 2, ceil_mode=True),
        lambda v: functional.avg_pool2d(v, (1, 2)),
        lambda v: functional.adaptive_max_pool2d(v, sizes),
        nn.ChannelShuffle(2),
        nn.PixelUnshuffle(2),
    )


def conv(chain: Chain, value: torch.Tensor) -> Step:
    depth = value.shape[-3]
    groups = chain.pick(1, depth)
    taps = chain.pick(1, 1, 2)
    return chain.layer(nn.Conv2d(depth, chain.pick(1, 2) * groups, taps, groups=groups))


def linear(chain: Chain, value: torch.Tensor) -> Step:
    features = value.shape[-1]
    layer = chain.layer(nn.Linear(features, chain.pick(1, 2, 4)))
    bias = torch.from_numpy(chain.random.integers(-2, 3, (chain.pick(1, len(value)), 2)))
    weight = torch.from_numpy(chain.random.integers(-1, 2, (features, 2))).float()
    return chain.pick(
        layer, layer, lambda v: v @ weight, lambda v: torch.addmm(bias.float(), v, weight)
    )


def norm(chain: Chain, value: torch.Tensor) -> Step:
    channels = value.shape[1]
    mean = torch.from_numpy(chain.random.integers(-2, 3, channels)).float()
    variance = torch.from_numpy(chain.random.choice([0.25, 1.0, 4.0], channels)).float()
    return lambda v: functional.batch_norm(v, mean, variance, eps=0.0)


KINDS: dict[str, Callable[[Chain, torch.Tensor], Step]] = {
    kind.__name__: kind
    for kind in (
        view, shuffle, flatten, permute, transpose, squeeze, unsqueeze, flip, cut, join, repeat,
        pad, written, pointwise, in_place, reduce, pool, conv, linear, norm,
    )
}  # fmt: skip

MOVES = ["view", "shuffle", "permute", "transpose", "squeeze", "flip"]
"""kinds that are drawn more often: alone they mean little"""


def outcome(seed: int) -> str:
    """Read a random chain, and compare it; "read", or why it was refused."""
    random = np.random.default_rng(seed)
    images, dynamic = [(1, False), (2, False), (2, True)][seed % 3]
    with torch.no_grad():
        model = Chain(random, images, int(random.integers(1, 7))).eval()
    x = torch.from_numpy(random.integers(-3, 4, (images, 2, 4, 4))).float()
    more = torch.from_numpy(random.integers(-3, 4, (5, 2, 4, 4))).float()
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with torch.no_grad():
        expected = model(x.clone())
        try:
            program = torch.export.export(model, (x.clone(),), dynamic_shapes=shapes)
        except RuntimeError:  # of torch: what depends on the batch cannot be exported without it
            return "not exported"
    try:
        layers = lower(read(program))
    except ValueError as error:
        return str(error)
    if dynamic:
        x = more
        with torch.no_grad():
            expected = program.module()(x.clone())
    (tensors,) = float_tensors(layers, x.numpy())
    result = tensors[layers[-1].name]
    assert torch.equal(result.flatten(), expected.flatten()), model.names
    return "read"


@pytest.mark.parametrize("start", range(0, len(SEEDS), 20))
def test_a_chain_is_read_as_torch_computes_it_or_refused(start: int) -> None:
    outcomes = [outcome(seed) for seed in SEEDS[start : start + 20]]
    assert outcomes.count("read") >= 3
    assert not any("\n" in each for each in outcomes)
