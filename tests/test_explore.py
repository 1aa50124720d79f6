"""Exploration: what it finds is best, nothing that was finished is lost, no process is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from shiftcore.examples.digits import data, model
from shiftcore.explore.pool import Pool, open_pool
from shiftcore.explore.report import figures, finish, problems, write_exploration
from shiftcore.explore.space import DEFAULT, full_space, parse
from shiftcore.explore.study import Exploration, Settings, Study, confirm, explore
from shiftcore.explore.trial import File, Task, evaluate
from shiftcore.golden.config import KEYS, HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.tests import exploring
from shiftcore.tests.exploring import SPACE, fake, settings


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    quantize(model.load(), data.load()[0].x[:8], QuantConfig(method="l2")).save(path)
    return path


def trials(folder: Path, own: Settings, number: int) -> Exploration:
    """An exploration in this process."""
    with Study.open(folder, own, fake) as study, open_pool("here") as pool:
        return explore(study, pool, number)


def test_keys_and_their_candidates() -> None:
    assert parse("cols=16,4,8,4") == ("cols", (4, 8, 16))
    assert parse("multiplier=dsp,lut") == ("multiplier", ("lut", "dsp"))
    assert parse("clamp=true,false") == ("clamp", (False, True))
    for key, candidates in DEFAULT.items():
        assert parse(f"{key}={','.join(map(str, candidates))}") == (key, candidates)
    for text, message in {
        "cols": "'cols' must be key=value,value with one of the keys rows, cols, ",
        "speed=2": "'speed=2' must be key=value,value with one of the keys rows, cols, ",
        "cols=4,x": "cols must be a whole number from 1 to 128, not 'x'",
        "cols=0": "cols must be a whole number from 1 to 128, not 0",
        "clamp=maybe": "clamp must be one of False, True, not 'maybe'",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse(text)


def test_a_quantized_network_fixes_what_it_shares_with_the_array(network: Path) -> None:
    stored = QuantizedNetwork.load(network)
    space = full_space({"cols": (4,)}, stored)
    fixed = {"weight_bits": (4,), "act_bits": (4,), "rows": (16,), "scale": ("bf16",)}
    assert space == {**DEFAULT, "cols": (4,), **fixed}
    with pytest.raises(ValueError, match="rows cannot vary: the network is quantized .*, with 16"):
        full_space({"rows": (8, 16)}, stored)


def test_settings_are_checked(network: Path) -> None:
    for changes, message in (
        ({"objectives": ("speed",)}, "objective must be one of images_per_s, .*, not 'speed'"),
        ({"objectives": ("lut", "lut")}, "objectives must be named once each"),
        ({"objectives": ("sqnr_db",)}, r"sqnr_db is measured of a model \(.pt2\)"),
        ({"budget": {"luts": 5}}, "a budget is a number of one of lut, .*, not luts=5"),
        ({"budget": {"lut": -1}}, "not lut=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(network, **changes)


def every(own: Settings, network: Path, folder: Path) -> list[tuple[dict, dict]]:
    """All configurations of SPACE and what comes of them, without the search."""
    found = []
    for chosen in product(*SPACE.values()):
        values = {**asdict(own.base), **dict(zip(SPACE, chosen, strict=True))}
        task = Task(values, own.target, File.of(network), None, folder, fake)
        found.append((values, evaluate(task)))
    return found


def test_the_front_is_that_of_all_configurations(network: Path, tmp_path: Path) -> None:
    own = settings(network, space={**SPACE, "weight_fifo": (64,), "accumulator_depth": (512,)})
    all_figures = [
        (found["images_per_s"], found["lut"])
        for values, found in every(own, network, tmp_path)
        if "reason" not in found
        and found["lut"] <= own.budget["lut"]
        and found["bram"] <= own.budget["bram"]
        and values["weight_fifo"] == 32
        and values["accumulator_depth"] == 512
    ]
    del all_figures
    found = trials(tmp_path / "study", own, 60)
    points = [p for p in found.points if p.figures and not p.problem]
    assert len({str(p.values) for p in found.points}) == 4 * 3 * 2  # all of the space
    costs = {p.number: (-p.figures.images_per_s, p.figures.lut) for p in points}
    beaten = {
        a for a in costs for b in costs
        if costs[b] != costs[a] and all(x <= y for x, y in zip(costs[b], costs[a], strict=True))
    }  # fmt: skip
    assert {costs[p.number] for p in found.front} == {costs[n] for n in costs if n not in beaten}
    assert len({str(p.values) for p in found.front}) == len(found.front) > 1
    assert found.chosen is found.front[0]
    assert costs[found.chosen.number] == min(costs.values())
