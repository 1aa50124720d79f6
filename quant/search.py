"""Mixed precision: the width of every layer's codes, chosen on images without labels.

The bits of activations m and the block B belong to the whole network, because they are the array's.
The bits of weights b are each layer's own. For every (m, B) one measures, in hardware mode, how far
each layer by itself, in b bits, moves the network's scores away from those of the float network.
The sums of these distances say which widths are best for every size (a multiple-choice knapsack).
The best ones are then quantized and measured as a whole, on images that had no part in the choice.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.network import INPUT, QuantizedNetwork
from .accounting import account_network, total
from .calibrate import BATCH, float_tensors
from .compiled import Workers, workers
from .convert import Model, QuantConfig, as_graph, quantize
from .float_layer import FloatLayer
from .hardware import HardwareLayer, HardwareNetwork, Stored, exact_arithmetic, fixed_point
from .lower import lower

__all__ = [
    "Budget",
    "Choices",
    "Point",
    "Progress",
    "Search",
    "best_choices",
    "search",
    "sensitivities",
]

STATES = 1 << 16
"""partial choices that are followed at a time; the knapsack is exact as long as these suffice"""
HELD_OUT = 4
"""one image in so many measures whole networks; the others choose and calibrate"""

Progress = Callable[[str, int, int], None]
"""Called with what is done, how often it was done, and how often it will be."""


class Choices(NamedTuple):
    """Undominated choices of one option for each layer, by increasing size and falling loss.

    Parameters
    ----------
    sizes : (n,) sums of the options' sizes
    losses : (n,) sums of their losses
    options : (n, layers) numbers of the options
    """

    sizes: NDArray[np.int64]
    losses: NDArray[np.float64]
    options: NDArray[np.int64]

    def within(self, size: float) -> int | None:
        """The number of the best choice of at most that size; None if there is none."""
        number = int(np.searchsorted(self.sizes, size, side="right")) - 1
        return None if number < 0 else number


def _undominated(
    sizes: NDArray[np.int64], losses: NDArray[np.float64], states: int
) -> NDArray[np.int64]:
    """Those that no other beats in size and loss, by size; the best in each of `states` ranges of
    sizes if they are more."""
    order = np.lexsort((losses, sizes))
    least = np.minimum.accumulate(losses[order])
    order = order[np.concatenate([[True], losses[order][1:] < least[:-1]])]
    if len(order) > states:
        ranges = (sizes[order] - sizes[order[0]]) * states // (np.ptp(sizes[order]) + 1)
        last = np.concatenate([ranges[1:] != ranges[:-1], [True]])
        last[0] = True  # the smallest
        order = order[last]
    return order


def best_choices(
    sizes: NDArray[np.int64], losses: NDArray[np.float64], states: int = STATES
) -> Choices:
    """Every choice of one option for each layer of which no other is smaller and better.

    The Pareto front of the partial choices grows layer by layer (Nemhauser & Ullmann 1969). It is
    exact unless more than `states` of them are undominated; then the best of each range of sizes
    are followed, and the sums are still true.

    Parameters
    ----------
    sizes, losses : (layers, options)
    """
    layers, options = sizes.shape
    reached, lost = np.zeros(1, np.int64), np.zeros(1)
    taken = np.zeros((1, 0), np.int8)
    for layer in range(layers):
        all_sizes = (reached[:, None] + sizes[layer]).ravel()
        all_losses = (lost[:, None] + losses[layer]).ravel()
        kept = _undominated(all_sizes, all_losses, states)
        before, option = np.divmod(kept, options)
        reached, lost = all_sizes[kept], all_losses[kept]
        taken = np.concatenate([taken[before], option[:, None].astype(np.int8)], 1)
    return Choices(reached, lost, taken.astype(np.int64))


def _divergence(reference: torch.Tensor, scores: torch.Tensor) -> float:
    """KL divergence in nats of the scores (N, classes, ...) from the reference's, summed over N
    and averaged over all further axes."""
    wanted, found = (x.double().log_softmax(1) for x in (reference, scores))
    return float((wanted.exp() * (wanted - found)).sum(1).flatten(1).mean(1).sum())


def _scores(
    layers: Iterable[HardwareLayer], tensors: dict[str, Stored], pool: Workers
) -> torch.Tensor:
    """The network's result (N, classes, H, W); `tensors` are filled with those of its layers."""
    raw = torch.empty(0)
    for layer in layers:
        raw, stored = layer.result(tensors, pool)
        if stored is not None:
            tensors[layer.layer.name] = stored
    return raw.transpose(0, 1)


@exact_arithmetic()
def sensitivities(
    networks: Sequence[QuantizedNetwork],
    references: Sequence[FloatLayer],
    images: NDArray[np.float32],
    progress: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """(layers, networks): the loss if a layer is that of another network.

    The loss is the mean KL divergence of the scores from the float network's, in nats per image.
    All other layers are those of the last network; so is the last column, which is the same for
    all layers. Hardware mode computes.

    Parameters
    ----------
    networks : that differ in the weights and biases of their layers only
    references : their layers in floating point
    images : (N, C, H, W) float32
    progress : is called for each layer of each batch of images
    """
    base = networks[-1]
    losses = np.zeros((len(base.layers), len(networks)))
    stages = [
        [HardwareLayer(layer, base.input.planes) for layer in network.layers]
        for network in networks
    ]
    with workers(torch.get_num_threads()) as pool:
        for floating in float_tensors(references, images):
            wanted = floating[references[-1].name]
            tensors = {INPUT: fixed_point(base.input, floating[INPUT], base.fold)}
            losses[:, -1] += _divergence(wanted, _scores(stages[-1], tensors, pool))
            for index in range(len(base.layers)):
                for number, other in enumerate(stages[:-1]):
                    changed = [other[index], *stages[-1][index + 1 :]]
                    scores = _scores(changed, dict(tensors), pool)
                    losses[index, number] += _divergence(wanted, scores)
                progress()
    return losses / len(images)


@dataclass(frozen=True)
class Budget:
    """What a network may take: `bytes` as in :attr:`Point.bytes`, `cycles` of one image."""

    bytes: float = math.inf
    cycles: float = math.inf

    def holds(self, point: "Point") -> bool:
        return point.bytes <= self.bytes and (point.cycles or 0) <= self.cycles


@dataclass(frozen=True)
class Point:
    """A network that was measured.

    Parameters
    ----------
    config : what :func:`.convert.quantize` was given
    network : what it gave
    bytes : of its packed codes, scales and biases
    loss : mean KL divergence of its scores from the float network's, in nats an image
    top1 : in percent; None without labels
    cycles : of one image; None without hardware
    """

    config: QuantConfig
    network: QuantizedNetwork
    bytes: int
    loss: float
    top1: float | None = None
    cycles: int | None = None

    @property
    def uniform(self) -> bool:
        """Whether the same b was given to all layers."""
        return len({self.config.layer(layer.name).weight_bits for layer in self.network.layers}) < 2

    @property
    def _costs(self) -> tuple[float, float, float]:
        return self.bytes, self.cycles or 0, self.loss

    def beats(self, other: "Point") -> bool:
        """Whether it is no worse in size, cycles and loss, and better in one."""
        pairs = list(zip(self._costs, other._costs, strict=True))
        return all(own <= its for own, its in pairs) and any(own < its for own, its in pairs)


@dataclass(frozen=True)
class Search:
    """Everything that was measured, by size, and the best of what keeps the budget."""

    points: tuple[Point, ...]
    chosen: Point

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that no other beats, by size."""
        return tuple(p for p in self.points if not any(other.beats(p) for other in self.points))


class _Bench:
    """Quantizes on most of the images and measures on the others, which are held out."""

    def __init__(
        self,
        model: Model,
        images: NDArray[np.float32],
        labels: NDArray[np.integer] | None,
        cycles: Callable[[QuantizedNetwork], int] | None,
    ) -> None:
        graph = as_graph(model, images)
        held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
        if not held_out.any():
            raise ValueError(f"at least {HELD_OUT} images are needed, not {len(images)}")
        self.graph, self.references, self.cycles = graph, lower(graph), cycles
        self.images, self.held_out = images[~held_out], images[held_out]
        self.labels = None if labels is None else labels[held_out]
        last = self.references[-1].name
        self.wanted = [
            tensors[last].clone() for tensors in float_tensors(self.references, self.held_out)
        ]

    def point(self, config: QuantConfig) -> Point:
        network = quantize(self.graph, self.images, config)
        hardware = HardwareNetwork(network)
        parts = torch.from_numpy(self.held_out).split([len(wanted) for wanted in self.wanted])
        scores = [hardware(part) for part in parts]
        loss = sum(map(_divergence, self.wanted, scores)) / len(self.held_out)
        top1 = None
        if self.labels is not None:
            classes = torch.cat(scores).flatten(1).argmax(1).numpy()
            top1 = 100 * float((classes == self.labels).mean())
        size = total(account_network(network)).memory.bytes
        cycles = None if self.cycles is None else self.cycles(network)
        return Point(config, network, size, loss, top1, cycles)


@dataclass(frozen=True)
class _Family:
    """The networks of one (m, B): one for each b, the widest last, and what sums of layers tell."""

    uniform: tuple[Point, ...]
    choices: Choices

    def config(self, number: int) -> QuantConfig:
        """That of a choice."""
        widest = self.uniform[-1]
        overrides = {name: dict(values) for name, values in widest.config.overrides.items()}
        for layer, option in zip(widest.network.layers, self.choices.options[number], strict=True):
            bits = self.uniform[option].config.weight_bits
            if bits != widest.config.weight_bits:
                overrides[layer.name] = overrides.get(layer.name, {}) | {"weight_bits": bits}
        return replace(widest.config, overrides=overrides)


def _family(
    bench: _Bench,
    configs: Sequence[QuantConfig],
    most_cycles: float,
    progress: Callable[[int, int], None],
) -> _Family | Point:
    """The networks of one (m, B), of which `configs` differ in b; the widest if it is too slow."""
    batches = -(-len(bench.images) // BATCH)
    steps, done = len(configs) + batches * len(bench.references), count()

    def step() -> None:
        progress(next(done), steps)

    step()
    uniform: list[Point] = []
    for config in reversed(configs):
        uniform.insert(0, bench.point(config))
        step()
        if (uniform[0].cycles or 0) > most_cycles:
            return uniform[0]
    networks = [point.network for point in uniform]
    losses = sensitivities(networks, bench.references, bench.images, step)
    sizes = np.array([[a.memory.bytes for a in account_network(n)] for n in networks]).T
    # What the widest loses is counted once, with the first layer.
    base = losses[0, -1]
    losses -= base
    losses[0] += base
    return _Family(tuple(uniform), best_choices(sizes, losses))


def _promising(families: Sequence[_Family], budget: Budget, points: int) -> list[QuantConfig]:
    """The choices to measure, by the sums of their layers' losses.

    They are the best for sizes from the smallest to the largest in equal ratios, for every number
    of cycles, and the best of each (m, B) within the budget.
    """
    sizes = [size for family in families for size in family.choices.sizes[[0, -1]]]
    levels = sorted({family.uniform[-1].cycles or 0 for family in families})
    found: dict[tuple[int, int], QuantConfig] = {}

    def add(numbered: Iterable[tuple[int, _Family]], size: float) -> None:
        options = [
            (float(family.choices.losses[number]), index, number, family)
            for index, family in numbered
            if (number := family.choices.within(size)) is not None
        ]
        if options:
            _, index, number, family = min(options, key=lambda option: option[:3])
            found[index, number] = family.config(number)

    numbered = list(enumerate(families))
    for level in levels:
        able = [(n, family) for n, family in numbered if (family.uniform[-1].cycles or 0) <= level]
        for size in np.geomspace(min(sizes), max(sizes), max(2, points // len(levels))):
            add(able, size + 0.5)
    for pair in numbered:
        add([pair], budget.bytes)
    return list(found.values())


def search(
    model: Model,
    images: NDArray[np.float32],
    budget: Budget,
    config: QuantConfig | None = None,
    *,
    weight_bits: Sequence[int] = (2, 3, 4, 8),
    act_bits: Sequence[int] = (4, 8),
    blocks: Sequence[int] = (8, 16, 32),
    labels: NDArray[np.integer] | None = None,
    cycles: Callable[[QuantizedNetwork], int] | None = None,
    points: int = 12,
    progress: Progress = lambda message, done, of: None,
) -> Search:
    """Choose m, B, and each layer's b within a budget.

    Parameters
    ----------
    model : as of :func:`.convert.quantize`
    images : (N, C, H, W) float32, those of calibration; one in HELD_OUT is held out and measures
    budget : what the chosen network may take
    config : everything else of the networks
    weight_bits, act_bits, blocks : the candidates for b, m and B
    labels : (N,) of the images, for top-1; the choice does not use them
    cycles : those of a network on the hardware of its m and B, by which `budget.cycles` is kept
    points : how many mixed networks are measured, about; a uniform one of every (m, B, b) is too
    progress : told what is done, how often it was done and how often it will be

    Raises
    ------
    ValueError
        if nothing keeps the budget, with the least that is possible
    """
    if cycles is None and budget.cycles != math.inf:
        raise ValueError("a budget of cycles needs the hardware that they are counted on")
    config = config or QuantConfig()
    bench = _Bench(model, images, labels, cycles)
    families: list[_Family] = []
    slow: list[Point] = []
    for m, block in product(sorted(set(act_bits)), sorted(set(blocks))):
        own = replace(config, act_bits=m, block=block)
        configs = [replace(own, weight_bits=b) for b in sorted(set(weight_bits))]
        told = partial(progress, f"m = {m}, B = {block}")
        family = _family(bench, configs, budget.cycles, told)
        if isinstance(family, Point):
            slow.append(family)
        else:
            families.append(family)
    if not families:
        least = min(slow, key=lambda point: point.cycles or 0)
        raise ValueError(
            f"no network takes {budget.cycles:.0f} cycles or less: the fastest, of "
            f"{least.config.act_bits}-bit activations in blocks of {least.config.block}, takes "
            f"{least.cycles}"
        )
    measured = [point for family in families for point in family.uniform]
    known = [point.config for point in measured]
    mixed = [config for config in _promising(families, budget, points) if config not in known]
    for number, each in enumerate(mixed):
        progress("mixed networks", number, len(mixed))
        measured.append(bench.point(each))
    progress("mixed networks", len(mixed), len(mixed))
    measured.sort(key=lambda point: (point.bytes, point.loss))
    kept = [point for point in measured if budget.holds(point)]
    if not kept:
        raise ValueError(
            f"no network takes {budget.bytes:.0f} bytes or less: the smallest takes "
            f"{measured[0].bytes}"
        )
    return Search(tuple(measured), min(kept, key=lambda point: (point.loss, point.bytes)))
