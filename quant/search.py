"""Mixed precision: the width of every layer's codes, chosen on images without labels.

Bits of activations m and the block B belong to the whole network, because they are the array's.
The bits of weights b are each layer's own. For every B one measures, in hardware mode, how far
each layer by itself, in b bits, moves the network's scores away from those of the float network.
The sums of these errors say which widths are best for every size (a multiple-choice knapsack).
The best ones are then quantized and measured as a whole, on images that had no part in the choice.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.network import INPUT, QuantizedNetwork
from .accounting import account_network, total
from .adapt import distillation_loss
from .calibrate import BATCH, float_tensors
from .compiled import Workers, workers
from .convert import Model, QuantConfig, as_graph, quantize
from .float_layer import FloatLayer
from .hardware import HardwareLayer, HardwareNetwork, Stored, exact_arithmetic, fixed_point
from .lower import lower

__all__ = [
    "Budget",
    "Measured",
    "Mixes",
    "Point",
    "ProgressCallback",
    "Search",
    "best_choices",
    "measure",
    "search",
    "sensitivities",
]

STATES = 1 << 16
"""partial choices that are followed at a time; the knapsack is exact as long as these suffice"""
HELD_OUT = 4
"""one image in so many measures whole networks; the others choose and calibrate"""

ACT_BITS = 8
"""m where sensitivities are measured: fewer bits would drown them in the activations' noise"""

Cycles = Callable[[QuantizedNetwork], int]
"""The cycles that a network takes for one image."""
ProgressCallback = Callable[[str, int, int], None]
"""Called with what is done, how often it was done, and how often it will be."""


class Mixes(NamedTuple):
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
) -> Mixes:
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
    return Mixes(reached, lost, taken.astype(np.int64))


def _noise(wanted: torch.Tensor, scores: torch.Tensor) -> NDArray[np.float64]:
    """(2,): power of the error of scores (N, classes, ...), and of the scores wanted.

    What all classes have in common is taken off: it changes no probability.
    """
    wanted, scores = (x.double() - x.double().mean(1, keepdim=True) for x in (wanted, scores))
    return np.array([float((scores - wanted).square().sum()), float(wanted.square().sum())])


def _divergence(wanted: torch.Tensor, scores: torch.Tensor) -> float:
    """KL divergence in nats of the scores (N, classes, ...) from those wanted, summed over N and
    averaged over all further axes."""
    p, q = (x.double().movedim(1, -1).flatten(0, -2) for x in (wanted, scores))  # (..., classes)
    return len(wanted) * float(distillation_loss(q, p))


class Measured(NamedTuple):
    """What images tell about a network.

    Parameters
    ----------
    loss : power of the error of its scores by that of the float network's, each without the mean
        over the classes
    divergence : mean KL divergence from the float network, in nats an image
    classes : (N,) of the largest scores
    """

    loss: float
    divergence: float
    classes: NDArray[np.int64]


def measure(
    network: QuantizedNetwork, references: Sequence[FloatLayer], images: NDArray[np.float32]
) -> Measured:
    """A whole network in hardware mode on images (N, C, H, W); `references` are its layers in
    floating point."""
    hardware = HardwareNetwork(network)
    powers, divergence, classes = np.zeros(2), 0.0, []
    for tensors in float_tensors(references, images):
        wanted, scores = tensors[references[-1].name], hardware(tensors[INPUT])
        powers += _noise(wanted, scores)
        divergence += _divergence(wanted, scores)
        classes.append(scores.flatten(1).argmax(1).numpy())
    return Measured(_ratio(powers), divergence / len(images), np.concatenate(classes))


def _ratio(powers: NDArray[np.float64]) -> float:
    error, signal = powers.tolist()
    return error / signal if signal else math.inf if error else 0.0


def _scores(
    layers: Iterable[HardwareLayer], tensors: dict[str, Stored], pool: Workers
) -> torch.Tensor:
    """The network's result (N, classes, H, W); `tensors` are filled with those of its layers."""
    raw = torch.empty(0)
    for layer in layers:
        result = layer.result(tensors, pool)
        raw = result.raw
        if result.stored is not None:
            tensors[layer.layer.name] = result.stored
    return raw.transpose(0, 1)


@exact_arithmetic()
def sensitivities(
    networks: Sequence[QuantizedNetwork],
    references: Sequence[FloatLayer],
    images: NDArray[np.float32],
    progress: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """(layers, networks): :attr:`Measured.loss` if a layer is that of another network.

    All other layers are those of the last network; so is the last column, which is the same for
    all layers. Hardware mode computes.

    Parameters
    ----------
    networks : that differ in weights, biases and limits of their layers, and in the grids of
        fixed-point accumulators, only
    references : their layers in floating point
    images : (N, C, H, W) float32
    progress : is called for each layer of each batch of images
    """
    base = networks[-1]
    powers = np.zeros((len(base.layers), len(networks), 2))
    stages = [
        [HardwareLayer(layer, base.input.planes) for layer in network.layers]
        for network in networks
    ]
    with workers(torch.get_num_threads()) as pool:
        for floating in float_tensors(references, images):
            wanted = floating[references[-1].name]
            tensors = {INPUT: fixed_point(base.input, floating[INPUT], base.fold)}
            powers[:, -1] += _noise(wanted, _scores(stages[-1], tensors, pool))
            for index in range(len(base.layers)):
                for number, other in enumerate(stages[:-1]):
                    changed = [other[index], *stages[-1][index + 1 :]]
                    scores = _scores(changed, dict(tensors), pool)
                    powers[index, number] += _noise(wanted, scores)
                progress()
    return np.apply_along_axis(_ratio, 2, powers)


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
    loss, divergence : as of :class:`Measured`
    top1 : in percent; None without labels
    cycles : of one image; None without hardware
    """

    config: QuantConfig
    network: QuantizedNetwork
    bytes: int
    loss: float
    divergence: float
    top1: float | None = None
    cycles: int | None = None

    @property
    def weight_bits(self) -> Mapping[str, int]:
        """b of every layer: that of its widest kernel."""
        return {
            layer.name: max(term.kernel.weight_bits for term in layer.terms)
            for layer in self.network.layers
        }

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same b."""
        return len(set(self.weight_bits.values())) == 1

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
        cycles: Cycles | None,
    ) -> None:
        graph = as_graph(model, images)
        held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
        if not held_out.any():
            raise ValueError(f"at least {HELD_OUT} images are needed, not {len(images)}")
        self.graph, self.references, self.cycles = graph, lower(graph), cycles
        self.images, self.held_out = images[~held_out], images[held_out]
        self.labels = None if labels is None else labels[held_out]

    def quantize(self, config: QuantConfig) -> QuantizedNetwork:
        return quantize(self.graph, self.images, config)

    def point(self, config: QuantConfig) -> Point:
        network = self.quantize(config)
        found = measure(network, self.references, self.held_out)
        top1 = None if self.labels is None else 100 * float((found.classes == self.labels).mean())
        size = total(account_network(network)).memory.bytes
        cycles = None if self.cycles is None else self.cycles(network)
        return Point(config, network, size, found.loss, found.divergence, top1, cycles)


@dataclass(frozen=True)
class _Family:
    """The networks of one (m, B).

    Parameters
    ----------
    config : of its widest network
    layers : their names
    bits : the candidates for b
    choices : of an option for each layer, with what they lose beside `loss`
    sizes : of the uniform networks, one for each of `bits`
    loss, cycles : of the widest network
    """

    config: QuantConfig
    layers: tuple[str, ...]
    bits: tuple[int, ...]
    choices: Mixes
    sizes: tuple[int, ...]
    loss: float
    cycles: int

    def mixed(self, number: int) -> QuantConfig:
        """The configuration of a choice: overrides where a layer is narrower than the widest."""
        bits = [self.bits[option] for option in self.choices.options[number]]
        overrides = {name: dict(values) for name, values in self.config.overrides.items()}
        for layer, b in zip(self.layers, bits, strict=True):
            if b != max(bits):
                overrides[layer] = {"weight_bits": b} | overrides.get(layer, {})
        return replace(self.config, weight_bits=max(bits), overrides=overrides)


def _families(
    bench: _Bench,
    config: QuantConfig,
    bits: tuple[int, ...],
    act_bits: Sequence[int],
    budget: Budget,
    progress: Callable[[int, int], None],
) -> tuple[list[_Family], int]:
    """Those of the block of `config`, one for every m that keeps the budget of cycles, and the
    fewest cycles of any m."""
    batches = -(-len(bench.images) // BATCH)
    steps = len({*act_bits, ACT_BITS}) + len(bits) - 1 + batches * len(bench.references)
    done = count()

    def step() -> None:
        progress(next(done), steps)

    def quantized(m: int, b: int) -> QuantizedNetwork:
        network = bench.quantize(replace(config, act_bits=m, weight_bits=b))
        step()
        return network

    step()

    widest = {m: quantized(m, bits[-1]) for m in act_bits}
    taken = {m: 0 if bench.cycles is None else bench.cycles(n) for m, n in widest.items()}
    if min(taken.values()) > budget.cycles:
        return [], min(taken.values())
    networks = [quantized(ACT_BITS, b) for b in bits[:-1]]
    networks.append(widest.get(ACT_BITS) or quantized(ACT_BITS, bits[-1]))
    losses = sensitivities(networks, bench.references, bench.images, step)
    sizes = np.array([[a.memory.bytes for a in account_network(n)] for n in networks]).T
    choices = best_choices(sizes, losses - losses[:, -1:])
    families = [
        _Family(
            replace(config, act_bits=m, weight_bits=bits[-1]),
            tuple(layer.name for layer in network.layers),
            bits,
            choices,
            tuple(sizes.sum(0).tolist()),
            measure(network, bench.references, bench.images).loss,
            taken[m],
        )
        for m, network in widest.items()
        if taken[m] <= budget.cycles
    ]
    return families, min(taken.values())


def _promising(families: Sequence[_Family], budget: Budget, points: int) -> list[QuantConfig]:
    """The networks to measure, by the sums of their layers' losses.

    They are the best within the budget; of its m and B the uniform ones and the best of their
    sizes; and for every number of cycles the best for sizes in equal ratios.
    """

    def best(able: Sequence[_Family], size: float) -> tuple[_Family, int] | None:
        options = [
            (family.loss + family.choices.losses[number], order, number)
            for order, family in enumerate(able)
            if (number := family.choices.within(size)) is not None
        ]
        if not options:
            return None
        _, order, number = min(options)
        return able[order], number

    chosen = best(families, budget.bytes)
    if chosen is None:
        least = min(int(family.choices.sizes[0]) for family in families)
        raise ValueError(
            f"no network takes {budget.bytes:.0f} bytes or less: the smallest takes {least}"
        )
    family, _ = chosen
    found = [chosen, *(best([family], size) for size in family.sizes)]
    sizes = [size for each in families for size in each.choices.sizes[[0, -1]]]
    levels = sorted({each.cycles for each in families})
    for level in levels:
        able = [each for each in families if each.cycles <= level]
        targets = np.geomspace(min(sizes), max(sizes), max(2, points // len(levels)))
        found += [best(able, size) for size in targets]
    uniform = [replace(family.config, weight_bits=b) for b in family.bits]
    configs: list[QuantConfig] = []
    for config in (*uniform, *(family.mixed(number) for family, number in filter(None, found))):
        if config not in configs:
            configs.append(config)
    return configs


def search(
    model: Model,
    images: NDArray[np.float32],
    budget: Budget,
    config: QuantConfig | None = None,
    *,
    weight_bits: Iterable[int] = (2, 3, 4, 8),
    act_bits: Iterable[int] = (4, 8),
    blocks: Iterable[int] = (8, 16, 32),
    labels: NDArray[np.integer] | None = None,
    cycles: Cycles | None = None,
    points: int = 8,
    progress: ProgressCallback = lambda message, done, of: None,
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
    cycles : those of a network on the hardware of its m and B
    points : networks of all sizes that are measured, about, beside the best within the budget and
        those to compare it with
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
    bits, widths = tuple(sorted(set(weight_bits))), sorted(set(act_bits))
    blocks = sorted(set(blocks))
    for name, values in (("weight_bits", bits), ("act_bits", widths), ("block", blocks)):
        for value in values:
            replace(config, **{name: value})  # refused before the work
    families: list[_Family] = []
    fewest: list[int] = []
    for block in blocks:
        told = partial(progress, f"sensitivity, B = {block}")
        own = replace(config, block=block)
        found, least = _families(bench, own, bits, widths, budget, told)
        families += found
        fewest.append(least)
    if not families:
        raise ValueError(
            f"no network takes {budget.cycles:.0f} cycles or less: the fastest takes {min(fewest)}"
        )
    measured: list[Point] = []
    promising = _promising(families, budget, points)
    for number, each in enumerate(promising):
        progress("whole networks", number, len(promising))
        measured.append(bench.point(each))
    progress("whole networks", len(promising), len(promising))
    measured.sort(key=lambda point: (point.bytes, point.loss))
    kept = [point for point in measured if budget.holds(point)]
    if not kept:  # a narrower network took more cycles than the widest
        raise ValueError("no network that was measured keeps the budget: allow some more cycles")
    return Search(tuple(measured), min(kept, key=lambda point: (point.loss, point.bytes)))
