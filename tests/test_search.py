"""The search of bits: the knapsack is exact, losses are what whole networks lose, budgets hold."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from shiftcore.compiler.network import compile_network
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.accounting import account_file, total
from shiftcore.quant.convert import QuantConfig, as_graph, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower
from shiftcore.quant.search import HELD_OUT, Budget, Search, best_choices, search, sensitivities
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


def divergence(network: QuantizedNetwork, images: np.ndarray) -> float:
    """Mean KL divergence from the float network, computed with numpy."""
    with torch.inference_mode():
        wanted = model.load()(torch.from_numpy(images)).double().numpy()
    found = HardwareNetwork(network)(torch.from_numpy(images)).flatten(1).double().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (wanted, found))
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
    np.testing.assert_allclose(losses[:, 1], divergence(base, images), rtol=1e-4)
    for index, layer in enumerate(narrow.layers):
        layers = (*base.layers[:index], layer, *base.layers[index + 1 :])
        expected = divergence(replace(base, layers=layers), images)
        np.testing.assert_allclose(losses[index, 0], expected, rtol=1e-4)
