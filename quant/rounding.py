"""Error-compensated rounding: the codes of a network from images without labels.

Layer after layer, in the order of execution, weights and bias are fitted to what the float network
gives, as least squares on what the quantized network really stores: so each layer makes up for
errors of those before it. The fitted weights are then rounded one input after the other, and what
is left of each is passed on to the inputs that are still to come, as far as these go along with it
(Hassibi & Stork 1993; GPTQ, Frantar et al., arXiv 2210.17323). Last, single codes and scales are
changed as long as that lowers the error, and the bias takes the mean of what is left.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..golden.floats import ScaleFormat
from ..golden.layers import Layer
from ..golden.network import INPUT, QuantizedNetwork
from ..golden.vqk import VariableQuantizedKernel
from .calibrate import convolved, layer_result
from .compiled import workers
from .float_layer import FloatLayer, FloatTerm
from .hardware import HardwareLayer, exact_arithmetic, fixed_point
from .scales import encode

__all__ = ["IMAGES", "compensate"]

IMAGES = 1024
"""images that are used, at most"""
VALUES = 1 << 27
"""numbers of the largest tensor of all images, at most; of large images fewer are used"""
REPAIR = 0.5
"""part of the error of earlier layers that a layer makes up for; all of it would fit their noise"""
DAMPING = 0.01
"""what is added to the diagonal of the inputs' covariance, in parts of its mean; and as much again
as there are inputs for every sample, so that few images change little"""
FLOOR = 1e-4
"""the least that is added, in parts of the mean square of the inputs"""
SWEEPS = 16
"""rounds of improvement over all codes and scales, at most"""
CHUNK = 1 << 25
"""numbers of unfolded inputs that are held at a time"""

Array = NDArray[np.float64]


@dataclass
class Moments:
    """First and second moments of inputs x (F,) and wanted outputs t (Co,), in float64.

    Both are counted from the means of the first samples, so that what hardly varies keeps the
    digits that do.
    """

    count: int
    origins: tuple[torch.Tensor, torch.Tensor] | None
    """(F,) and (Co,): what is taken off x and t"""
    inputs: torch.Tensor
    """(F,) sum of x"""
    targets: torch.Tensor
    """(Co,) sum of t"""
    square: torch.Tensor
    """(F, F) sum of x x'"""
    cross: torch.Tensor
    """(Co, F) sum of t x'"""
    size: float
    """sum of the squares of all inputs as they are"""

    @classmethod
    def zero(cls, features: int, outputs: int) -> "Moments":
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        square, cross = zeros(features, features), zeros(outputs, features)
        return cls(0, None, zeros(features), zeros(outputs), square, cross, 0.0)

    def add(self, x: torch.Tensor, t: torch.Tensor) -> None:
        """Samples x (F, n) and t (Co, n)."""
        x, t = x.double(), t.double()
        self.size += float(x.square().sum())
        if self.origins is None:
            self.origins = x.mean(1), t.mean(1)
        x, t = x - self.origins[0][:, None], t - self.origins[1][:, None]
        self.count += x.shape[1]
        self.inputs += x.sum(1)
        self.targets += t.sum(1)
        self.square += x @ x.T
        self.cross += t @ x.T

    def means(self) -> tuple[Array, Array]:
        """Of the inputs, and of the outputs."""
        assert self.origins is not None, "no samples yet"
        inputs, targets = self.inputs / self.count, self.targets / self.count
        return (self.origins[0] + inputs).numpy(), (self.origins[1] + targets).numpy()

    def covariances(self) -> tuple[Array, Array]:
        """Of the inputs (F, F), and of the outputs with them (Co, F)."""
        x, t = self.inputs / self.count, self.targets / self.count
        square = self.square / self.count - torch.outer(x, x)
        return square.numpy(), (self.cross / self.count - torch.outer(t, x)).numpy()


@dataclass
class RoundedFilters:
    """Weights of some filters as codes and scales, and the quadratic error that these leave.

    The error is ``trace(D H D')`` with ``D = weight - code * scale``.

    Parameters
    ----------
    weight : (Co, F), what the codes shall stand for
    metric : H (F, F), positive definite
    blocks : of every weight block the features in it
    codes : (Co, F) whole numbers
    scales : (Co, blocks), as the format holds them
    bits, form : of the codes and of the scales
    """

    weight: Array
    metric: Array
    blocks: Sequence[NDArray[np.int64]]
    codes: Array
    scales: Array
    bits: int
    form: ScaleFormat

    def reconstruct(self) -> Array:
        """(Co, F): what the codes stand for."""
        result = np.empty_like(self.codes)
        for number, features in enumerate(self.blocks):
            result[:, features] = self.codes[:, features] * self.scales[:, number, None]
        return result

    def error(self) -> float:
        difference = self.weight - self.reconstruct()
        return float(((difference @ self.metric) * difference).sum())

    def _nearest(self, codes: Array, scale: Array) -> Array:
        """Codes in range; 0 where the scale is 0."""
        limit = 1 << (self.bits - 1)
        return np.where(scale == 0, 0, np.clip(np.rint(codes), -limit, limit - 1))

    def pass_on(self) -> None:
        """Choose all codes, one feature after the other, the error passed on to those to come."""
        order = np.concatenate(self.blocks)
        lower = torch.linalg.cholesky(torch.from_numpy(self.metric[np.ix_(order, order)]))
        inverse = torch.cholesky_inverse(lower)
        upper = torch.linalg.cholesky(inverse, upper=True).numpy()
        left = self.weight[:, order]
        start = 0
        for number, features in enumerate(self.blocks):
            scale = self.scales[:, number]
            divisor = np.where(scale == 0, 1, scale)
            end = start + len(features)
            errors = np.empty((len(left), len(features)))
            for lane, at in enumerate(range(start, end)):
                code = self._nearest(left[:, at] / divisor, scale)
                self.codes[:, features[lane]] = code
                errors[:, lane] = (left[:, at] - code * scale) / upper[at, at]
                left[:, at:end] -= errors[:, lane, None] * upper[at, at:end]
            left[:, end:] -= errors @ upper[start:end, end:]
            start = end

    def improve(self) -> None:
        """Change single codes and scales as long as that lowers the error."""
        gradient = (self.weight - self.reconstruct()) @ self.metric
        for _ in range(SWEEPS):
            changed = False
            for number, features in enumerate(self.blocks):
                moved = self._improve_block(number, gradient[:, features])
                if moved.any():
                    changed = True
                    gradient -= moved @ self.metric[features]
            if not changed:
                return

    def _improve_block(self, number: int, gradient: Array) -> Array:
        """Change a block; what is added to its weights (Co, lanes). `gradient` is ``D H`` there."""
        features = self.blocks[number]
        metric = self.metric[np.ix_(features, features)]
        codes, scale = self.codes[:, features], self.scales[:, number]
        before, gradient = codes * scale[:, None], gradient.copy()
        divisor = np.where(scale == 0, 1, scale)
        for lane, curvature in enumerate(metric.diagonal()):
            best = codes[:, lane] + gradient[:, lane] / curvature / divisor
            new = self._nearest(best, scale)
            gradient -= ((new - codes[:, lane]) * scale)[:, None] * metric[lane]
            codes[:, lane] = new
        if self.form.signed:
            curvature = ((codes @ metric) * codes).sum(1)
            slope = (gradient * codes).sum(1)
            wanted = scale + np.divide(slope, curvature, out=np.zeros_like(scale), where=slope != 0)
            step = self.form.round(wanted).astype(np.float64) - scale
            scale = np.where(step * (2 * slope - step * curvature) > 0, scale + step, scale)
        self.codes[:, features], self.scales[:, number] = codes, scale
        return codes * scale[:, None] - before


def fitted(weight: Array, moments: Moments) -> tuple[Array, Array]:
    """The weights (Co, F) of least squares, drawn towards `weight`, and the metric of their error.

    What the images do not tell about stays as it is.
    """
    square, cross = moments.covariances()
    share = DAMPING + len(square) / moments.count
    # Inputs that do not vary at all tell nothing either.
    floor = max(FLOOR * moments.size / moments.count, np.finfo(np.float32).tiny)
    damping = max(share * square.trace(), floor) / len(square)
    metric = square + damping * np.eye(len(square))
    wanted = torch.from_numpy(cross + damping * weight)
    return torch.linalg.solve(torch.from_numpy(metric), wanted, left=False).numpy(), metric


def _features(kernel: VariableQuantizedKernel, group: int) -> list[NDArray[np.int64]]:
    """Of every weight block, (block, ky, kx) in order, the inputs of a group's filters in it."""
    positions = kernel.codes[0, 0].size
    return [
        np.arange(part.channel, part.channel + part.size) * positions + tap
        for part in kernel.group_blocks(group)
        for tap in range(positions)
    ]


def _rounded(
    kernel: VariableQuantizedKernel, weight: Array, moments: Sequence[Moments]
) -> tuple[VariableQuantizedKernel, Array]:
    """The kernel with the codes and scales of least error, and the bias (Co,) that goes with them.

    `weight` is (Co, Ci / groups, Kh, Kw), `moments` are those of every group.
    """
    shape = kernel.codes.shape
    solved = [
        fitted(weight[kernel.group_filters(group)].reshape(-1, moment.inputs.numel()), moment)
        for group, moment in enumerate(moments)
    ]
    start = encode(
        np.concatenate([wanted for wanted, _ in solved]).reshape(shape),
        weight_bits=kernel.weight_bits,
        block=kernel.block,
        groups=kernel.groups,
        method="joint",
        scale_format=kernel.scale_format,
    )
    codes, scales = np.zeros(shape, np.int8), start.scales.copy()
    bias = np.zeros(len(codes))
    for group, ((wanted, metric), moment) in enumerate(zip(solved, moments, strict=True)):
        filters, blocks = kernel.group_filters(group), _features(kernel, group)
        own = start.scales[filters].reshape(len(wanted), -1).astype(np.float64)
        rounded = RoundedFilters(
            wanted,
            metric,
            blocks,
            start.codes[filters].reshape(wanted.shape).astype(np.float64),
            own[:, : len(blocks)],
            kernel.weight_bits,
            kernel.scale_format,
        )
        rounded.pass_on()
        rounded.improve()
        codes[filters] = rounded.codes.reshape(-1, *shape[1:])
        own[:, : len(blocks)] = rounded.scales
        scales[filters] = own.reshape(scales[filters].shape)
        mean_input, mean_target = moment.means()
        bias[filters] = mean_target - rounded.reconstruct() @ mean_input
    return replace(kernel, codes=codes, scales=scales), bias


def _batches(images: int, values: int) -> Iterator[slice]:
    """Slices of images of which each has that many unfolded inputs."""
    size = max(1, CHUNK // values)
    return (slice(first, first + size) for first in range(0, images, size))


def _moments(x: torch.Tensor, target: torch.Tensor, term: FloatTerm) -> tuple[Moments, ...]:
    """Of every group, the moments of the term's inputs `x` and of `target` (N, Co, Ho, Wo)."""
    filters, depth, rows, columns = term.weight.shape
    features, outputs = depth * rows * columns, filters // term.groups
    moments = tuple(Moments.zero(features, outputs) for _ in range(term.groups))
    top, bottom, left, right = term.padding
    pixels = target.shape[2] * target.shape[3]
    for batch in _batches(len(x), features * term.groups * pixels):
        padded = functional.pad(x[batch], (left, right, top, bottom))
        unfolded = functional.unfold(padded, (rows, columns), term.dilation, 0, term.stride)
        inputs = unfolded.transpose(0, 1).unflatten(0, (term.groups, -1)).flatten(2)
        wanted = target[batch].transpose(0, 1).unflatten(0, (term.groups, -1)).flatten(2)
        for moment, own, part in zip(moments, inputs, wanted, strict=True):
            moment.add(own, part)
    return moments


def _reconstructed(term: FloatTerm, kernel: VariableQuantizedKernel) -> FloatTerm:
    """The term with the weights that the codes stand for."""
    return replace(term, weight=kernel.reconstruct().astype(np.float32))


def _compensated(
    layer: Layer,
    reference: FloatLayer,
    wanted: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
) -> Layer:
    """The layer with codes, scales and bias that give on `tensors` what comes near to `wanted`."""
    pairs = list(zip(layer.terms, reference.terms, strict=True))
    free = [number for number, (_, term) in enumerate(pairs) if not (term.constant or term.coded)]
    fixed = [
        term if number in free else _reconstructed(term, stored.kernel)
        for number, (stored, term) in enumerate(pairs)
    ]
    sums = layer_result(replace(reference, terms=tuple(fixed)), tensors)
    # What the filters shall add to the terms that are not rounded yet, with their float weights.
    target = (wanted - sums) * REPAIR + torch.from_numpy(reference.bias)[:, None, None]
    terms, bias = list(layer.terms), layer.bias
    for number in free:
        term, x = fixed[number], tensors[fixed[number].source]
        target += convolved(x, term)
        moments = _moments(x, target, term)
        kernel, bias = _rounded(terms[number].kernel, term.weight.astype(np.float64), moments)
        terms[number] = replace(terms[number], kernel=kernel)
        target -= convolved(x, _reconstructed(term, kernel))
    return replace(layer, terms=tuple(terms), bias=layer.constants(bias))


def _enough(network: QuantizedNetwork, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those of the images that are used."""
    channels = {layer.name: layer.bias.size for layer in network.layers}
    channels[INPUT] = network.folded_shape[0]
    largest = max(channels[name] * h * w for name, (h, w) in network.sizes().items())
    return images[: max(1, min(IMAGES, VALUES // largest))]


@exact_arithmetic()
def compensate(
    network: QuantizedNetwork,
    references: Sequence[FloatLayer],
    images: NDArray[np.float32],
    names: Set[str],
) -> QuantizedNetwork:
    """The network with other codes, scales and biases of some layers, chosen on images.

    Formats, bits and blocks stay, and so do weights that are constant or codes already.

    Parameters
    ----------
    network : as quantized by any method
    references : its layers in floating point, the image folded as the network's
    images : (N, C, H, W) float32; at most IMAGES are used, fewer if they are large
    names : of the layers that are changed
    """
    if not names:
        return network
    images = _enough(network, images)
    x = torch.from_numpy(images)
    tensors = {INPUT: fixed_point(network.input, x, network.fold)}
    floating = {
        INPUT: x if network.fold is None else torch.from_numpy(network.fold.compute(images))
    }
    stored = {INPUT: tensors[INPUT].decode_images()}
    last = {term.source: layer.name for layer in references for term in layer.terms}
    layers = []
    with workers(torch.get_num_threads()) as pool:
        for layer, reference in zip(network.layers, references, strict=True):
            wanted = layer_result(reference, floating)
            if layer.name in names and reference.reduce == "add":
                layer = _compensated(layer, reference, wanted, stored)
            layers.append(layer)
            result = HardwareLayer(layer, network.input.planes).result(tensors, pool)
            floating[layer.name] = wanted.clamp(*reference.limits)
            if result.stored is not None:
                tensors[layer.name] = result.stored
                stored[layer.name] = result.stored.decode_images()
            for name in [name for name, reader in last.items() if reader == layer.name]:
                del floating[name], tensors[name], stored[name]
    return replace(network, layers=tuple(layers))
