"""The search of bits: the knapsack is exact, losses are what whole networks lose, budgets hold."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shiftcore.compiler.network import compile_network
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant import search_report
from shiftcore.quant.accounting import account_file, total
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.dsconv import DSConvConfig, quantize_
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.quant.search import (
    HELD_OUT,
    Budget,
    Point,
    Search,
    best_choices,
    search,
    sensitivities,
)
from shiftcore.quant.search_report import figures, front_table, write_search

HARDWARE = HardwareConfig(16, 4, weight_bits=4, act_bits=4)


@pytest.mark.parametrize("seed", range(8))
def test_the_knapsack_is_that_of_all_choices(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers, options = int(random.integers(1, 6)), int(random.integers(1, 5))
    sizes = random.integers(0, 12, (layers, options))
    losses = random.integers(-3, 12, (layers, options)) / 8  # ties, and layers better in fewer bits
    found = best_choices(sizes, losses)
    rows = np.arange(layers)
    every = [
        (int(sizes[rows, choice].sum()), float(losses[rows, choice].sum()))
        for choice in map(list, product(range(options), repeat=layers))
    ]
    front = {
        (size, loss)
        for size, loss in every
        if not any((s <= size and x < loss) or (s < size and x <= loss) for s, x in every)
    }
    assert list(zip(found.sizes.tolist(), found.losses.tolist(), strict=True)) == sorted(front)
    assert sizes[rows, found.options].sum(1).tolist() == found.sizes.tolist()
    assert losses[rows, found.options].sum(1).tolist() == found.losses.tolist()
    for size in range(-1, int(found.sizes.max()) + 2):
        number = found.within(size)
        allowed = [loss for own, loss in every if own <= size]
        assert (number is None) == (not allowed)
        assert number is None or found.losses[number] == min(allowed)


def test_a_knapsack_of_few_states_is_still_true() -> None:
    random = np.random.default_rng(0)
    sizes = np.sort(random.integers(1, 10_000, (12, 4)), 1)
    losses = -np.sort(-random.random((12, 4)), 1)
    exact, rough = best_choices(sizes, losses), best_choices(sizes, losses, states=50)
    assert len(rough.sizes) <= 51 < len(exact.sizes)
    rows = np.arange(12)
    assert (sizes[rows, rough.options].sum(1) == rough.sizes).all()
    np.testing.assert_allclose(losses[rows, rough.options].sum(1), rough.losses)
    assert rough.sizes[0] == exact.sizes[0]
    for size, loss in zip(rough.sizes, rough.losses, strict=True):
        number = exact.within(size)
        assert number is not None
        assert exact.losses[number] <= loss + 1e-12


def scores(network: QuantizedNetwork, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the float network, and of the quantized one."""
    with torch.inference_mode():
        wanted = model.load()(torch.from_numpy(images)).double().numpy()
    return wanted, HardwareNetwork(network)(torch.from_numpy(images)).flatten(1).double().numpy()


def noise(network: QuantizedNetwork, images: np.ndarray) -> float:
    wanted, found = (x - x.mean(1, keepdims=True) for x in scores(network, images))
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


def divergence(network: QuantizedNetwork, images: np.ndarray) -> float:
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in scores(network, images))
    return float((p * np.log(p / q)).sum(1).mean())


def test_a_sensitivity_is_the_loss_of_the_network_with_that_layer() -> None:
    images = data.load()[0].x[:70]  # more than a batch
    networks = [
        quantize(model.load(), images, QuantConfig(weight_bits=b, method="l2")) for b in (2, 4)
    ]
    references = lower(as_graph(model.load(), images))
    steps: list[None] = []
    losses = sensitivities(networks, references, images, lambda: steps.append(None))
    narrow, base = networks
    assert losses.shape == (len(base.layers), 2)
    assert len(steps) == 2 * len(base.layers)
    np.testing.assert_allclose(losses[:, 1], noise(base, images), rtol=1e-4)
    for index, layer in enumerate(narrow.layers):
        layers = (*base.layers[:index], layer, *base.layers[index + 1 :])
        expected = noise(replace(base, layers=layers), images)
        np.testing.assert_allclose(losses[index, 0], expected, rtol=1e-4)


STEPS: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def found() -> Search:
    images, labels = data.load()[0]
    cycles = {4: 5000, 6: 4000}
    STEPS.clear()
    return search(
        model.load(),
        images[:64],
        Budget(bytes=20_000),
        weight_bits=(2, 3, 4),
        act_bits=(4, 6),
        blocks=(16,),
        labels=labels[:64],
        cycles=lambda network: cycles[network.act_bits],
        points=4,
        progress=lambda *step: STEPS.append(step),
    )


def test_the_chosen_network_keeps_the_budget(found: Search, tmp_path: Path) -> None:
    chosen = found.chosen
    assert chosen.bytes <= 20_000
    assert not chosen.uniform
    fitting = [point for point in found.points if point.bytes <= 20_000]
    assert chosen.loss == min(point.loss for point in fitting)
    # What the configuration gives is the network, and its bytes are those in the file.
    images = data.load()[0].x[:64]
    held_out = np.arange(64) % HELD_OUT == HELD_OUT - 1
    again = quantize(model.load(), images[~held_out], chosen.config)
    write_search(tmp_path / "search", "digits", found)
    again.save(tmp_path / "again.safetensors")
    written = tmp_path / "search" / "net.safetensors"
    assert written.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert total(account_file(written)).memory.bytes == chosen.bytes
    assert chosen.loss == pytest.approx(noise(again, images[held_out]), rel=1e-4)
    assert chosen.divergence == pytest.approx(divergence(again, images[held_out]), rel=1e-4)
    bits = figures(chosen)["weight_bits"]
    for layer in again.layers:
        assert {term.kernel.weight_bits for term in layer.terms} == {bits[layer.name]}


def test_the_bits_of_a_point_are_those_of_its_kernels() -> None:
    coded = model.load()
    quantize_(coded, DSConvConfig(3), lambda _, name: name == "conv2")
    config = QuantConfig(4)
    network = quantize(coded, data.load()[0].x[:8], config)
    point = Point(config, network, bytes=1, loss=0.1, divergence=0.1)
    bits = figures(point)["weight_bits"]
    assert bits == {layer.name: 3 if layer.name == "conv2" else 4 for layer in network.layers}
    assert not point.uniform
    _, _, ((*_, mean, _, _, _),) = front_table(Search((point,), point))
    assert 3.5 < float(mean) < 4


def test_the_front_of_a_search(found: Search, tmp_path: Path) -> None:
    assert {point.config.act_bits for point in found.front} == {6}  # better in both
    sizes, losses = zip(*((point.bytes, point.loss) for point in found.front), strict=True)
    assert list(sizes) == sorted(set(sizes))
    assert list(losses) == sorted(set(losses), reverse=True)
    assert found.points[0].bytes == min(sizes)
    assert all(point.top1 is not None for point in found.points)
    assert {point.config.weight_bits for point in found.points if point.uniform} == {2, 3, 4}
    write_search(tmp_path / "one", "digits", found)
    write_search(tmp_path / "two", "digits", found)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["front.json", "front.md", "front.svg", "net.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    written = json.loads((tmp_path / "one" / "front.json").read_text())
    assert len(written["points"]) == len(found.points)
    assert sum(point["front"] for point in written["points"]) == len(found.front)
    assert written["chosen"] == figures(found.chosen)
    _, headings, rows = front_table(found)
    assert len(rows) == len(found.front)
    assert {len(row) for row in rows} == {len(headings)}
    assert sum("*" in row[0] for row in rows) == 1


def test_a_plot_that_fails_leaves_the_network(
    found: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(found: Search) -> str:
        raise OSError("no plot")

    monkeypatch.setattr(search_report, "_plot", fail)
    with pytest.raises(OSError, match="no plot"):
        write_search(tmp_path, "digits", found)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["front.json", "front.md", "net.safetensors"]


def test_progress_goes_from_none_to_all(found: Search) -> None:
    assert list(dict.fromkeys(message for message, _, _ in STEPS)) == [
        "sensitivity, B = 16", "whole networks",
    ]  # fmt: skip
    for name in ("sensitivity, B = 16", "whole networks"):
        done = [done for message, done, _ in STEPS if message == name]
        assert {of for message, _, of in STEPS if message == name} == {done[-1]}
        assert done == list(range(len(done)))
    assert STEPS[-1][1] == len(found.points)


def test_budgets_that_cannot_be_kept() -> None:
    images = data.load()[0].x[:8]
    space: dict[str, Any] = {"weight_bits": (2,), "act_bits": (8,), "blocks": (16,)}
    with pytest.raises(ValueError, match=r"^no network takes 100 bytes or less: the smallest tak"):
        search(model.load(), images, Budget(bytes=100), **space)
    with pytest.raises(
        ValueError, match=r"^no network takes 6 cycles or less: the fastest takes 7$"
    ):
        search(model.load(), images, Budget(cycles=6), cycles=lambda _: 7, **space)
    with pytest.raises(ValueError, match=r"^a budget of cycles needs the hardware"):
        search(model.load(), images, Budget(cycles=6), **space)
    counted = iter([5])
    with pytest.raises(ValueError, match=r"^no network that was measured keeps the budget"):
        search(model.load(), images, Budget(cycles=6), cycles=lambda _: next(counted, 7), **space)
    with pytest.raises(ValueError, match=r"^at least 4 images are needed, not 3$"):
        search(model.load(), images[:3], Budget(bytes=100), **space)


def test_a_mixed_network_runs_on_the_array() -> None:
    training, held_out = data.load()
    bits = {"conv1": 4, "conv2": 3, "block1.conv1": 2, "block1.conv2": 3, "block2.conv1": 2}
    overrides = {name: {"weight_bits": b} for name, b in bits.items()}
    network = quantize(model.load(), training.x[:32], QuantConfig(overrides=overrides))
    assert {t.kernel.weight_bits for x in network.layers for t in x.terms} == {2, 3, 4}
    program = compile_network(network, HARDWARE)
    images = held_out.x[:4]
    run = Machine(program).run(program.encode_input(network.encode_input(images)))
    expected = HardwareNetwork(network)(torch.from_numpy(images)).numpy()
    np.testing.assert_array_equal(program.decode_output(run.outputs), expected)
    message = "the network has 4-bit weights, the hardware 3: set weight_bits = 4"
    with pytest.raises(ValueError, match=f"^{message}$"):
        compile_network(network, replace(HARDWARE, weight_bits=3))
