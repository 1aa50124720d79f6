"""Adaptation of trained networks: shifters only, new classes, distillation.

None of it changes the codes of DSConv layers or the statistics of batch norms, and each function
checks by hash that nothing has changed but what it trains. They train in place, but for
:func:`distill_network`, which returns a new network.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ..golden.network import QuantizedNetwork
from .calibrate import check_images
from .convert import Model, as_graph
from .dsconv import DSLinear, shifters
from .fold import fold_input
from .lower import lower
from .student import Student, Teacher
from .training import Augment, TrainingConfig, fingerprint, fit, in_mode, process_device

__all__ = [
    "SHADOWS",
    "DistillationConfig",
    "distill",
    "distill_network",
    "distillation_loss",
    "frozen_state",
    "replace_classifier",
    "transfer",
    "tune_shifters",
]

Array = torch.Tensor | NDArray


@dataclass(frozen=True)
class DistillationConfig(TrainingConfig):
    """How a student learns from a teacher.

    Parameters
    ----------
    temperature : what logits are divided by before the softmax
    kind : of loss, see :func:`distillation_loss`
    """

    temperature: float = 1.0
    kind: Literal["kl", "mse"] = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_distillation(self.temperature, self.kind)


def _check_distillation(temperature: float, kind: str) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a number above 0, not {temperature!r}")
    if kind not in ("kl", "mse"):
        raise ValueError(f"kind must be 'kl' or 'mse', not {kind!r}")


SHADOWS = DistillationConfig(rate=2e-3, schedule="cosine")
"""of a quantized network, whose weights are in codes: the rate is in codes too"""


def frozen_state(model: nn.Module) -> dict[str, str]:
    """SHA-256 of each buffer, and of each parameter that requires no gradient, by name."""
    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    return {
        name: fingerprint({name: tensor})
        for name, tensor in model.state_dict().items()
        if name not in trained
    }


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Raises ``RuntimeError``, naming it, if something is frozen and changes all the same."""
    before = frozen_state(model)
    yield
    after = frozen_state(model)
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        raise RuntimeError(f"{changed[0]} is frozen, and training changed it")


@contextmanager
def _only(model: nn.Module, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for the chosen parameters alone; afterwards for those that had them before."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with _unchanged(model):
            yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _classify(
    model: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    images: Array,
    labels: Array,
    config: TrainingConfig,
    augment: Augment | None,
    rates: Mapping[str, float] | None = None,
) -> list[float]:
    def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(x), y)

    data = torch.as_tensor(images), torch.as_tensor(labels)
    if len(data[0]):
        with torch.no_grad(), in_mode(model, "eval"):
            classes = model(data[0][:1].to(next(iter(chosen.values())).device)).shape[1]
        _check_labels(data[1], len(data[0]), classes)
    with _only(model, chosen.values()):
        return fit(model, loss, data, replace(config, mode="eval"), augment=augment, rates=rates)


def _check_labels(labels: torch.Tensor, images: int, classes: int) -> None:
    if labels.shape != (images,):
        raise ValueError(f"{images} images need as many labels, not {tuple(labels.shape)}")
    if images and not (labels.min() >= 0 and labels.max() < classes):
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels must be 0 to {classes - 1}, not {found}")


def tune_shifters(
    model: nn.Module,
    images: Array,
    labels: Array,
    config: TrainingConfig,
    *,
    augment: Augment | None = None,
) -> list[float]:
    """Train the kernel and channel shifters of DSConv layers, and nothing else (v1, section 5).

    Codes, batch norms with their statistics, biases, and a classifier that is no DSConv layer stay
    as they are; the model runs in evaluation mode, whatever ``config.mode``.

    Parameters
    ----------
    model : a network with DSConv layers
    images : (N, C, H, W) float32
    labels : (N,) integers
    config, augment : as of :func:`.training.fit`

    Returns the loss of every step. Raises ``ValueError`` if the model has no DSConv layer.
    """
    chosen = dict(shifters(model))
    if not chosen:
        raise ValueError("the model has no DSConv layers, whose shifters could be trained")
    return _classify(model, chosen, images, labels, config, augment)


def replace_classifier(
    model: nn.Module, classes: int, *, name: str | None = None, seed: int = 0
) -> str:
    """Put an untrained linear layer in the place of the classifier, and say which layer that was.

    `name` is that of the layer, by default the last linear one of the model.

    Raises ``ValueError`` if there is no such layer.
    """
    linear = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Linear | DSLinear)}
    if not linear:
        raise ValueError("the model has no linear layer to replace as its classifier")
    name = next(reversed(linear)) if name is None else name
    if name not in linear:
        raise ValueError(f"{name!r} is no linear layer; linear are {', '.join(linear)}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, not {classes!r}")
    parameter = next(linear[name].parameters())
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = nn.Linear(linear[name].in_features, classes, dtype=parameter.dtype)
    _put(model, name, layer.to(parameter.device).train(linear[name].training))
    return name


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def transfer(
    model: nn.Module,
    classes: int,
    images: Array,
    labels: Array,
    config: TrainingConfig,
    *,
    with_shifters: bool = True,
    classifier_rate: float | None = None,
    classifier: str | None = None,
    augment: Augment | None = None,
) -> list[float]:
    """Give a network new classes: a new classifier, trained alone or with the shifters.

    The new classifier's first weights follow from ``config.seed``; otherwise as
    :func:`tune_shifters`. (v1, section 5, table 5.)

    Parameters
    ----------
    model : a network with a linear classifier
    classes : number of new classes
    images : (N, C, H, W) float32
    labels : (N,) integers from 0 to ``classes - 1``
    config, augment : as of :func:`.training.fit`
    with_shifters : whether the shifters of DSConv layers train too
    classifier_rate : first learning rate of the classifier, by default that of ``config``, which is
        also the shifters'. Scales are small, the more so the more bits: what a new classifier needs
        is too much for them
    classifier : the name of the layer to replace, by default the last linear one

    Returns the loss of every step. Raises ``ValueError`` if there is no such classifier, no DSConv
    layer whose shifters could train, or a label out of range. After an error the classifier is the
    old one.
    """
    targets = torch.as_tensor(labels)
    _check_labels(targets, len(images), classes)
    if with_shifters and not any(True for _ in shifters(model)):
        raise ValueError("the model has no DSConv layers, whose shifters could be trained")
    before = dict(model.named_modules())
    name = replace_classifier(model, classes, name=classifier, seed=config.seed)
    chosen = {f"{name}.{part}": p for part, p in model.get_submodule(name).named_parameters()}
    rates = {} if classifier_rate is None else dict.fromkeys(chosen, classifier_rate)
    if with_shifters:
        chosen |= dict(shifters(model))
    try:
        return _classify(model, chosen, images, targets, config, augment, rates)
    except BaseException:
        _put(model, name, before[name])
        raise


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    kind: Literal["kl", "mse"] = "kl",
) -> torch.Tensor:
    """How far logits (N, classes) of a student are from those of its teacher, a scalar.

    "kl" is the divergence KL(softmax(teacher / T) || softmax(student / T)) T² at temperature T, the
    mean over the images (Hinton et al., arXiv 1503.02531); "mse" the mean squared difference of the
    logits, whatever the temperature.
    """
    _check_distillation(temperature, kind)
    if student.shape != teacher.shape:
        raise ValueError(f"logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    if kind == "mse":
        return functional.mse_loss(student, teacher)
    given, wanted = (functional.log_softmax(x / temperature, 1) for x in (student, teacher))
    divergence = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def distill(
    student: nn.Module,
    teacher: nn.Module,
    images: Array,
    config: DistillationConfig,
    *,
    augment: Augment | None = None,
    facts: Mapping[str, str] | None = None,
) -> list[float]:
    """Train a student to answer as its teacher does, on images without labels.

    What of the student requires a gradient is trained. Both run in evaluation mode, whatever
    ``config.mode``: batch norms keep their statistics. The teacher, on the student's device, stays
    as it is.

    Parameters
    ----------
    student, teacher : (N, C, H, W) to logits (N, classes)
    images : (N, C, H, W) float32
    config : see :class:`DistillationConfig`
    augment, facts : as of :func:`.training.fit`; both see the same images

    Returns the loss of every step.
    """

    def loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(x)
        return distillation_loss(network(x), target, config.temperature, config.kind)

    taught = {parameter for parameter in student.parameters() if parameter.requires_grad}
    if not taught.isdisjoint(teacher.parameters()):
        raise ValueError("student and teacher share a parameter that is to be trained")
    before = fingerprint(teacher.state_dict())
    with _unchanged(student), in_mode(teacher, "eval"):
        losses = fit(
            student, loss, (torch.as_tensor(images),), replace(config, mode="eval"),
            augment=augment, facts={"teacher": before, **(facts or {})},
        )  # fmt: skip
    if fingerprint(teacher.state_dict()) != before:
        raise RuntimeError("training changed the teacher")
    return losses


def distill_network(
    model: Model,
    network: QuantizedNetwork,
    images: NDArray[np.float32],
    config: DistillationConfig = SHADOWS,
    *,
    augment: Augment | None = None,
    device: torch.device | None = None,
) -> QuantizedNetwork:
    """Train a quantized network to answer as the float network does, on images without labels.

    Codes, scales and biases train, as :class:`.student.Student` says; formats and bits stay.

    Parameters
    ----------
    model : what :func:`.convert.quantize` was given
    network : what it returned
    images : (N, C, H, W) float32
    config : see :class:`DistillationConfig`; its rate is in codes of the weights
    augment : as of :func:`.training.fit`
    device : where to train, by default :func:`.training.process_device`

    Raises ``ValueError`` if the images do not fit or the network was not made from the model.
    """
    images = check_images(images, network.input_shape)
    layers = lower(as_graph(model, images))
    if [layer.name for layer in layers] != [layer.name for layer in network.layers]:
        raise ValueError("the quantized network was not made from this model: layers differ")
    _, references = fold_input(layers, network.block)
    place = process_device() if device is None else device
    student, teacher = Student(network, references).to(place), Teacher(layers).to(place)
    facts = {"formats": student.formats()}
    distill(student, teacher, images, config, augment=augment, facts=facts)
    return student.network()
