"""Networks that train as they are quantized."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shiftcore.examples.digits import data, model
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant import adapt
from shiftcore.quant.adapt import DistillationConfig, distill_network, distillation_loss
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.dsconv import DSConvConfig, quantize_
from shiftcore.quant.fold import fold_input
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.lower import lower
from shiftcore.quant.student import Student, Teacher
from shiftcore.tests.stored import content, contents

IMAGES = data.load()[0].x[:96]
HELD_OUT = data.load()[1].x[:200]
LEAST = {2: 5.0, 3: 0.5}
"""points of top-1, above which distillation brings codes of 2 and 3 bits"""


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
            if ".weight" in name and name.endswith("change"):
                parameter += 1.25  # an eighth of the scale
                parameter.reshape(-1)[0] = -100
    learnt = sum(name.endswith("shadow") for name, _ in student.named_parameters())
    for before, after in zip(network.layers, student.network().layers, strict=True):
        for one, two in zip(before.terms, after.terms, strict=True):
            old, new = one.kernel.scales.ravel(), two.kernel.scales.ravel()
            if np.array_equal(old, new):
                continue
            learnt -= 1
            assert np.array_equal(new, two.kernel.scale_format.round(new))
            assert new[0] == 0
            assert (new[1:][old[1:] != 0] != old[1:][old[1:] != 0]).all()
            # bfloat16 rounds by at most one part in 256.
            np.testing.assert_allclose(new[1:], 1.125 * old[1:], rtol=2**-8)
    assert learnt == 0


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
    """Of the divergence a good part goes, and top-1 rises, by moving codes on their grid."""
    network = quantized(weight_bits=bits, method="l2")
    config = DistillationConfig(epochs=3, batch=32, rate=0.03, schedule="cosine")
    training, held_out = data.load()
    trained = distill_network(model.load(), network, training.x[:512], config, device=CPU)
    assert loss(trained, held_out.x) < 0.6 * loss(network, held_out.x)
    before, after = (evaluate(each, *held_out).top1 for each in (network, trained))
    assert after > before + LEAST[bits]
    limit, moved = 1 << (bits - 1), 0
    for one, two in zip(network.layers, trained.layers, strict=True):
        for old, new in zip(one.terms, two.terms, strict=True):
            assert new.kernel.codes.dtype == np.int8
            assert new.kernel.weight_bits == old.kernel.weight_bits
            if new.kernel.weight_bits == bits:
                assert new.kernel.codes.min() >= -limit
                assert new.kernel.codes.max() < limit
                moved += np.count_nonzero(old.kernel.codes != new.kernel.codes)
    assert moved > 50


def test_an_interrupted_distillation_ends_in_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    network = quantized(weight_bits=2, method="l2")
    path = tmp_path / "state.pt"
    config = DistillationConfig(epochs=2, batch=24, rate=0.1, schedule="cosine", every=3)

    def trained(checkpoint: Path | None) -> list[list[bytes]]:
        changed = replace(config, checkpoint=checkpoint)
        return contents(distill_network(model.load(), network, IMAGES, changed, device=CPU))

    steps = iter(range(5))  # of eight

    def stopping(*logits, **options):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return distillation_loss(*logits, **options)

    with monkeypatch.context() as patch:
        patch.setattr(adapt, "distillation_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(path)
    assert len(torch.load(path)["losses"]) == 3
    assert trained(path) == trained(None) != contents(network)


def test_a_network_of_another_model_is_refused() -> None:
    network = quantized()
    other = replace(network, layers=network.layers[:-1])
    with pytest.raises(ValueError, match="not made from this model"):
        distill_network(model.load(), other, IMAGES, DistillationConfig())


def test_codes_of_dsconv_layers_do_not_train() -> None:
    coded = model.load()
    quantize_(coded, DSConvConfig(weight_bits=3), lambda module, name: name == "block1.conv1")
    network = quantize(coded, IMAGES, QuantConfig(act_bits=8))
    config = DistillationConfig(batch=32, rate=0.3)
    trained = distill_network(coded, network, IMAGES, config, device=CPU)
    same = [a == b for a, b in zip(contents(network), contents(trained), strict=True)]
    names = [layer.name for layer in network.layers]
    assert same[names.index("block1.conv1")]
    assert not same[names.index("conv2")]


@pytest.mark.parametrize(
    "other", [{"act_bits": 8}, {"scale": "fp16"}, {"rounding": "truncate"}, {"method": "joint"}]
)
def test_a_checkpoint_of_another_quantization_is_refused(tmp_path: Path, other: dict) -> None:
    config = DistillationConfig(batch=64, rate=1e-3, checkpoint=tmp_path / "state.pt")
    options = {"weight_bits": 3, "method": "l2"}
    distill_network(model.load(), quantized(**options), IMAGES, config, device=CPU)
    with pytest.raises(ValueError, match="is that of another training"):
        distill_network(model.load(), quantized(**options | other), IMAGES, config, device=CPU)
