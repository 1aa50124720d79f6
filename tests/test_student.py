"""Networks that train as they are quantized."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shiftcore.examples.digits import data, model
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.adapt import DistillationConfig, distill_network, distillation_loss
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.fold import fold_input
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.quant.student import Student, Teacher
from shiftcore.tests.stored import content, contents

IMAGES = data.load()[0].x[:96]
HELD_OUT = data.load()[1].x[:200]


def quantized(**options) -> QuantizedNetwork:
    return quantize(model.load(), IMAGES, QuantConfig(**options))


def student_of(network: QuantizedNetwork) -> Student:
    layers = lower(as_graph(model.load(), IMAGES))
    return Student(network, fold_input(layers, network.block)[1])


def on_a_grid(network: QuantizedNetwork) -> QuantizedNetwork:
    """The network with coarse scales and biases, whose float32 sums are exact in any order."""
    layers = []
    for layer in network.layers:
        terms = []
        for term in layer.terms:
            mantissa, exponent = np.frexp(term.kernel.scales)
            scales = np.ldexp(np.rint(mantissa * 2) / 2, np.clip(exponent, -6, 2))
            terms.append(replace(term, kernel=replace(term.kernel, scales=scales)))
        bias = layer.bias
        if layer.reduce == "add":
            bias = np.rint(bias * 16) / 16
        layers.append(replace(layer, terms=tuple(terms), bias=bias.astype(np.float32)))
    return replace(network, layers=tuple(layers))


@pytest.mark.parametrize("options", [{}, {"weight_bits": 2, "act_bits": 8}, {"block": 5}])
def test_it_computes_what_hardware_mode_does(options) -> None:
    network = on_a_grid(quantized(method="l2", **options))
    images = torch.from_numpy(HELD_OUT)
    student = student_of(network)
    with torch.no_grad():
        found = student(images)
    assert torch.equal(found, HardwareNetwork(network)(images).flatten(1))


def test_untrained_it_is_the_network() -> None:
    for method in ("l2", "compensated"):
        network = quantized(weight_bits=3, method=method)
        assert contents(student_of(network).network()) == contents(network)


def test_codes_scales_and_biases_get_gradients() -> None:
    student = student_of(quantized())
    student(torch.from_numpy(IMAGES[:8])).square().sum().backward()
    names = {name.rsplit(".", 1)[1] for name, _ in student.named_parameters()}
    assert names == {"shadow", "change"}
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        assert parameter.grad is None or parameter.grad.any(), name


def test_trained_it_stays_on_the_grid_and_is_what_it_computed() -> None:
    network = on_a_grid(quantized(weight_bits=3, method="l2"))
    student = student_of(network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("shadow"):
                parameter += torch.randn(parameter.shape, generator=random)
    moved = student.network()
    assert contents(moved) != contents(network)
    for before, after in zip(network.layers, moved.layers, strict=True):
        for one, two in zip(before.terms, after.terms, strict=True):
            assert two.kernel.codes.min() >= -4
            assert two.kernel.codes.max() <= 3
            assert np.array_equal(one.kernel.scales, two.kernel.scales)
    images = torch.from_numpy(HELD_OUT)
    with torch.no_grad():
        assert torch.equal(student(images), HardwareNetwork(moved)(images).flatten(1))


def test_scales_move_within_their_format_and_keep_their_sign() -> None:
    network = quantized()
    student = student_of(network)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if name.endswith("change"):
                parameter += 1.234 if "weights" in name else 0
                parameter.reshape(-1)[0] -= 100
    moved = student.network()
    for before, after in zip(network.layers, moved.layers, strict=True):
        for one, two in zip(before.terms, after.terms, strict=True):
            assert (one.kernel.scales * two.kernel.scales >= 0).all()
    assert contents(moved) != contents(network)


def test_constant_weights_do_not_train() -> None:
    network = quantized()
    layers = fold_input(lower(as_graph(model.load(), IMAGES)), network.block)[1]
    constant = [n for n, layer in enumerate(layers) if all(t.constant for t in layer.terms)]
    trained = distill_network(
        model.load(), network, IMAGES, DistillationConfig(batch=32, rate=0.3), device=CPU
    )
    assert constant
    for number, layer in enumerate(layers):
        before, after = network.layers[number], trained.layers[number]
        assert (content(before) == content(after)) == (number in constant), layer.name


CPU = torch.device("cpu")


def loss(network: QuantizedNetwork, images: np.ndarray) -> float:
    x = torch.from_numpy(images)
    with torch.no_grad():
        given = HardwareNetwork(network)(x).flatten(1)
        return distillation_loss(given, model.load()(x)).item()


def test_the_teacher_is_the_float_network() -> None:
    teacher = Teacher(lower(as_graph(model.load(), IMAGES)))
    x = torch.from_numpy(HELD_OUT)
    with torch.no_grad():
        assert torch.equal(teacher(x).argmax(1), model.load()(x).argmax(1))
        assert distillation_loss(teacher(x), model.load()(x)) < 1e-9


def test_with_eight_bits_there_is_next_to_nothing_to_learn() -> None:
    fine = quantized(weight_bits=8, act_bits=8, method="l2")
    assert loss(fine, IMAGES) < 1e-3
    assert loss(quantized(weight_bits=2, method="l2"), IMAGES) > 0.1


@pytest.mark.parametrize("bits", [2, 3])
def test_distillation_brings_held_out_answers_nearer(bits) -> None:
    network = quantized(weight_bits=bits, method="l2")
    config = DistillationConfig(epochs=3, batch=32, rate=0.01, schedule="cosine")
    images = data.load()[0].x[:512]
    trained = distill_network(model.load(), network, images, config, device=CPU)
    assert loss(trained, HELD_OUT) < 0.6 * loss(network, HELD_OUT)


def test_a_network_of_another_model_is_refused() -> None:
    network = quantized()
    other = replace(network, layers=network.layers[:-1])
    with pytest.raises(ValueError, match="not made from this model"):
        distill_network(model.load(), other, IMAGES, DistillationConfig())
