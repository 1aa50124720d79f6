"""Exploration: what it finds is best, nothing that was finished is lost, no process is left."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from contextlib import closing
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import dask.config
import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster
from torch import nn

from shiftcore.benchmarks import explore as benchmark
from shiftcore.cli import main
from shiftcore.estimate.network import network_cycles
from shiftcore.examples.digits import data, model
from shiftcore.explore import pool as pool_module
from shiftcore.explore import resources
from shiftcore.explore import study as exploring_study
from shiftcore.explore.pool import Pool, open_pool
from shiftcore.explore.report import finish, problems, write_exploration
from shiftcore.explore.space import DEFAULT, full_space, parse
from shiftcore.explore.study import Exploration, Point, Settings, Study, confirm, explore
from shiftcore.explore.trial import Figures, File
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.tests.exploring import SPACE, fake, settings


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "net.safetensors"
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 40, 3)
    images = np.random.default_rng(0).normal(size=(4, 1, 6, 6)).astype(np.float32)
    quantize(nn.Sequential(*layers).eval(), images, QuantConfig(method="l2")).save(path)
    return path


def figures(point: Point) -> Figures:
    assert point.figures is not None
    return point.figures


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
    fixed["accumulator"] = ("float32",)
    assert space == {**DEFAULT, "cols": (4,), **fixed}
    with pytest.raises(ValueError, match=r"rows cannot vary: the network is quantized .*, with 16"):
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


def test_the_front_is_that_of_all_configurations(network: Path, tmp_path: Path) -> None:
    space = {**SPACE, "weight_fifo": (64,), "accumulator_depth": (512,)}
    own = settings(network, space=space)
    stored = QuantizedNetwork.load(network)
    costs = {}
    for chosen in product(*space.values()):
        config = replace(own.base, **dict(zip(space, chosen, strict=True)))
        area = fake(config, own.target)
        cycles = network_cycles(config, stored)
        if area.lut <= own.budget["lut"] and area.bram <= own.budget["bram"]:
            assert area.fmax_mhz is not None
            costs[config] = -(area.fmax_mhz * 1e6 / cycles), area.lut
    assert len(costs) < 4 * 3 * 2  # some do not keep the budget
    found = trials(tmp_path / "study", own, 60)
    seen = {costs[p.config] for p in found.points if p.config in costs}
    best = {a for a in seen if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in seen)}
    assert 1 < len(best) < len(seen)
    assert [costs[p.config] for p in found.front] == sorted(best)  # the best first, each once
    assert found.chosen is found.front[0]
    assert costs[found.chosen.config] == min(costs.values())


def test_one_objective_has_one_point(network: Path, tmp_path: Path) -> None:
    found = trials(tmp_path / "study", settings(network, objectives=("dsp",)), 20)
    points = [p for p in found.points if p.figures and not p.problem]
    least = min(figures(p).dsp for p in points)
    smallest = [p for p in points if figures(p).dsp == least]
    assert len({str(p.values) for p in smallest}) > 1
    budget = found.settings.budget
    parts = [sum(getattr(figures(p), k) / budget[k] for k in budget) for p in smallest]
    assert found.front == (smallest[parts.index(min(parts))],)


def test_what_cannot_be_is_stored_with_its_reason(network: Path, tmp_path: Path) -> None:
    space = {**SPACE, "cols": (1, 16), "accumulator_depth": (8, 64), "buffer_depth": (16, 1024)}
    found = trials(tmp_path / "study", settings(network, space=space, budget={"lut": 9000}), 30)
    assert len(found.points) == 30
    failed = [point for point in found.points if point.figures is None]
    reasons = {point.problem for point in failed}
    assert any(r.startswith("accumulator_depth must be at least 16, not 8") for r in reasons)
    over = [point for point in found.points if point.figures and point.problem]
    assert over
    for point in over:
        assert point.problem == f"{figures(point).lut} of 9000 lut"
    counts = dict(problems(found))
    assert counts["too much lut"] == len(over)
    assert sum(counts.values()) == len(over) + len(failed)
    assert not {p.number for p in found.front} & {p.number for p in [*over, *failed]}
    nothing = trials(tmp_path / "nothing", settings(network, budget={"lut": 9}), 3)
    with pytest.raises(ValueError, match=r"no trial of 3 keeps everything; .* of 9 lut: allow"):
        _ = nothing.chosen


class Dies(Exception):
    """Ends a driver."""


class Dying(Executor):
    """A process that ends in the middle of a trial, after some of them."""

    def __init__(self, after: int) -> None:
        self.left = after

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.left -= 1
        if self.left < 0:
            raise Dies
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def test_a_study_that_was_interrupted_is_as_if_it_was_not(network: Path, tmp_path: Path) -> None:
    own = settings(network)
    whole = trials(tmp_path / "whole", own, 16)
    for after in (5, 0, 7):
        with (
            pytest.raises(Dies),
            Study.open(tmp_path / "parts", own, fake) as study,
        ):
            explore(study, Pool(Dying(after), lambda: 1), 16)
    assert trials(tmp_path / "parts", own, 16) == whole
    assert trials(tmp_path / "parts", own, 16) == whole  # nothing is left to do
    other = trials(tmp_path / "other", replace(own, seed=1), 3)
    assert [p.values for p in other.points] != [p.values for p in whole.points[:3]]


def test_a_folder_is_that_of_one_study(network: Path, tmp_path: Path) -> None:
    own, folder = settings(network), tmp_path / "study"
    trials(folder, own, 1)
    with pytest.raises(ValueError, match=r"study was begun with another seed: 0, not 1; name ano"):
        trials(folder, replace(own, seed=1), 1)
    with Study.open(folder, own, fake), pytest.raises(ValueError, match="another exploration wor"):
        trials(folder, own, 1)
    changed = tmp_path / "net.safetensors"
    changed.write_bytes(network.read_bytes())
    mine = replace(own, network=File.of(changed))
    changed.write_bytes(b"")
    with pytest.raises(ValueError, match=r"net.safetensors has changed since the study began"):
        mine.network.check()


def test_an_error_of_a_worker_is_a_reason(network: Path, tmp_path: Path) -> None:
    errors = iter([ZeroDivisionError("by nothing"), MemoryError("all\ntaken")])

    def broken(config: HardwareConfig, target: str) -> Any:
        raise next(errors)

    with (
        Study.open(tmp_path / "study", settings(network), broken) as study,
        open_pool("here") as pool,
    ):
        found = explore(study, pool, 2)
    problems = [p.problem for p in found.points]
    assert problems == ["ZeroDivisionError: by nothing", "MemoryError: all taken"]
    with pytest.raises(ValueError, match="no trial of 2 could be estimated; the first: ZeroDivis"):
        _ = found.chosen


@pytest.mark.parametrize("error", [OSError("disk full"), ImportError("no torch")])
def test_a_trial_whose_worker_failed_is_not_finished(
    network: Path, tmp_path: Path, error: Exception
) -> None:
    own, folder = settings(network), tmp_path / "study"

    def broken(config: HardwareConfig, target: str) -> Any:
        raise error

    message = f"^{type(error).__name__}: {error}$"
    with (
        Study.open(folder, own, broken) as study,
        open_pool("here") as pool,
        pytest.raises(RuntimeError, match=message),
    ):
        explore(study, pool, 2)
    assert trials(folder, own, 3) == trials(tmp_path / "whole", own, 3)


def test_files_that_are_no_study(network: Path, tmp_path: Path) -> None:
    own, folder = settings(network), tmp_path / "study"
    trials(folder, own, 1)
    database = (folder / "study.db").read_bytes()
    (folder / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"study\.db cannot be used: \S+"):
        trials(folder, own, 1)
    (folder / "study.db").write_bytes(database)
    for text in ("[]", "1", "{"):
        (folder / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"settings\.json are no settings of a study$"):
            trials(folder, own, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clock": math.nan}, "clock must be a number of MHz above 0, not nan"),
        ({"clock": math.inf}, "clock must be a number of MHz above 0, not inf"),
        ({"latency": -4}, "latency and gap must be at least 0, not -4 and 0"),
        ({"least_sqnr": math.nan}, "least_sqnr must be a number of dB, not nan"),
    ],
)
def test_settings_that_no_study_has(network: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        replace(settings(network), **changes)


def test_a_network_that_cannot_be_read_leaves_no_folder(network: Path, tmp_path: Path) -> None:
    broken = tmp_path / "net.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"net\.safetensors is no safetensors file"):
        trials(tmp_path / "study", settings(broken), 1)
    assert not (tmp_path / "study").exists()


def test_workers_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is sent to a scheduler that has none yet."""
    monkeypatch.setattr(pool_module, "_PATIENCE", 0.1)
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        open_pool(cluster.scheduler_address) as pool,
    ):
        assert pool.width() == 1
        future = pool.executor.submit(str, 5)
        cluster.scale(1)
        assert future.result(60) == "5"


@pytest.mark.parametrize("error", [MemoryError("none\nleft"), CancelledError()])
def test_a_synthesis_that_failed_is_one_line(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    found = trials(tmp_path / "study", settings(network), 5)

    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(exploring_study, "count", failing)
    message = "MemoryError: none left" if isinstance(error, MemoryError) else "the workers are gone"
    with open_pool("here") as pool, pytest.raises(RuntimeError, match=f"^{message}"):
        confirm(found, pool, 1)


def test_synthesis_decides(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = trials(tmp_path / "study", settings(network), 15)
    best = found.front[0].config

    def counted(config: HardwareConfig, target: str) -> dict[str, int]:
        assert target == "ecp5-85k-8"
        area = fake(config, target)
        return {"lut": 30000 if config == best else area.lut, "ff": 1, "dsp": 2, "bram": area.bram}

    monkeypatch.setattr(exploring_study, "count", counted)
    with open_pool("here") as pool:
        none, one, two = (confirm(found, pool, points) for points in (0, 1, 2))
    assert none.chosen is found.front[0]
    assert two.chosen is found.front[1]
    assert two.synthesized[found.front[0].number]["lut"] == 30000
    with pytest.raises(ValueError, match="none of the 1 best points keeps the budget when it"):
        _ = one.chosen


def test_what_is_left(network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    found = trials(folder, settings(network), 20)
    chosen = finish(found)
    assert chosen.cycles == figures(found.chosen).cycles
    write_exploration(folder, "net on ecp5", found, chosen)
    assert HardwareConfig.load(folder / "hw.toml") == found.chosen.config
    assert (folder / "net.safetensors").read_bytes() == network.read_bytes()
    report = json.loads((folder / "front.json").read_text())
    assert [p["trial"] for p in report["points"]] == list(range(20))
    assert {p["trial"] for p in report["points"] if p["front"]} == {p.number for p in found.front}
    assert report["chosen"]["hardware"] == asdict(found.chosen.config)
    table = (folder / "front.md").read_text()
    assert f"\n| {found.chosen.number} * | 16 |" in table
    page = (folder / "front.html").read_text()
    assert all(f"trial {number}<br>" in page.replace("\\u003c", "<").replace("\\u003e", ">")
               for number in range(20))  # fmt: skip
    assert "<script src=" not in page  # needs no other file


def test_there_is_no_such_pool() -> None:
    for on, message in {
        "cloud": "'cloud' is none of here, local, slurm, .* and no address such as tcp://host:8786",
        "tcp://127.0.0.1:1": "there is no Dask scheduler at tcp://127.0.0.1:1",
    }.items():
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(ValueError, match=message),
            open_pool(on),
        ):
            pass


def finished(folder: Path) -> dict[int, tuple[str, str]]:
    """Number → state and what came of every finished trial, by the database itself."""
    with closing(sqlite3.connect(f"file:{folder}/study.db?mode=ro", 60, uri=True)) as database:
        rows = database.execute(
            "select number, state, value_json from trials join trial_user_attributes"
            " using (trial_id) where state != 'RUNNING'"
        ).fetchall()
    return {number: (state, text) for number, state, text in rows}


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def some(folder: Path) -> int:
    try:
        return len(finished(folder))
    except sqlite3.OperationalError:  # not made yet, or locked
        return 0


def test_killed_workers_and_drivers_lose_nothing(network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    command = [sys.executable, "-P", "-m", "shiftcore.tests.exploring", folder, network, "local"]
    driver = psutil.Popen([*command, "100000"], stdout=subprocess.PIPE, start_new_session=True)
    try:
        wait_for(lambda: some(folder) >= 3)
        family = driver.children(recursive=True)
        workers = [p for p in family if "spawn_main" in " ".join(p.cmdline())]
        assert len(workers) == 2
        workers[0].kill()
        before = some(folder)
        wait_for(lambda: some(folder) >= before + 3)  # by the one that is left
        assert driver.is_running()
        family += driver.children(recursive=True)
        stored = finished(folder)
    finally:
        driver.kill()
        driver.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert stored.items() <= finished(folder).items()
    number = len(finished(folder)) + 3
    found = trials(folder, settings(network), number)
    assert stored.items() <= finished(folder).items()
    assert [p.number for p in found.points] == list(range(number))
    assert not any("Error" in p.problem for p in found.points)


def test_a_model_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = data.load()[0].x
    exported = torch.export.export(model.load(), (torch.from_numpy(training[:2]),))
    torch.export.save(exported, tmp_path / "digits.pt2")
    np.savez(tmp_path / "calibration.npz", x=training[:32])
    monkeypatch.setattr(resources, "estimated", fake)
    monkeypatch.setattr(resources, "calibrated", lambda: ("ecp5", "xilinx7"))
    monkeypatch.setattr(resources, "clocked", lambda: ("ecp5",))
    arguments = [
        "explore", tmp_path / "digits.pt2", "--calib", tmp_path / "calibration.npz", "--target",
        "ecp5-85k-8", "--budget", "lut=60000", "--trials", 10, "--synthesize", 0, "--on", "here",
        "--vary", "weight_bits=2,4", "--vary", "act_bits=4", "--vary", "rows=16", "--seed", 3,
        "-o", tmp_path / "study", "--least-sqnr", 6,
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["trials"] == 10
    assert {p["hardware"]["weight_bits"] for p in found["front"]} == {4}
    assert all(p["lut"] <= 60000 and p["bram"] <= 208 for p in found["front"])
    network = QuantizedNetwork.load(tmp_path / "study" / "net.safetensors")
    config = HardwareConfig.load(tmp_path / "study" / "hw.toml")
    assert network_cycles(config, network) == found["chosen"]["network"]["cycles"]
    assert found["chosen"]["network"]["sqnr_db"] > found["chosen"]["sqnr_db"]  # than plain L2
    kept = sorted(p.name for p in (tmp_path / "study" / "networks").glob("*.safetensors"))
    assert kept == [f"b{b}-m4-B16-bf16-float32.safetensors" for b in (2, 4)]
    shown = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Pareto front of 10 trials" in shown.stdout
    (tmp_path / "hw.toml").write_text(
        "rows = 16\ncols = 4\nmultiplier = 'ecp5-carry'\npipeline = 'ecp5-fast'\n"
    )
    foreign = ["--hw", tmp_path / "hw.toml", "--target", "xc7a35t", "--clock", 100, "--trials", 1]
    said = CliRunner().invoke(main, [*map(str, [*arguments, *foreign, "-o", tmp_path / "other"])])
    line = "for xc7a35t: pipeline 'fast' instead of 'ecp5-fast'; same numbers and cycles"
    assert line in said.stderr.splitlines()
    for changes, message in (
        (["--vary", "cols=0"], "cols must be a whole number from 1 to 128, not 0"),
        (["--target", "ecp5-85k-6"], "the clock is estimated for ecp5-85k-8 only: give that of"),
        (["--target", "5cseba6"], "resources are estimated for ecp5, xilinx7, not for 5cseba6"),
        *(
            (
                ["--target", "xc7a35t", "--clock", 100, "--vary", f"{key}={usual},{other}"],
                f"there is no estimate for {key} {other!r} on xc7a35t",
            )
            for key, usual, other in (
                ("multiplier", "lut", "ecp5-carry"),
                ("scale_multiplier", "dsp", "ecp5-dsp"),
                ("pipeline", "balanced", "ecp5-fast"),
            )
        ),
    ):
        refused = CliRunner().invoke(main, [*map(str, [*arguments, *changes])])
        assert refused.exit_code == 1
        assert message in refused.stderr
    monkeypatch.setattr(resources, "clocked", tuple)
    refused = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "the clock is estimated for no device yet: give that of ecp5-85k-8" in refused.stderr


def test_the_benchmark_judges() -> None:
    hardware = asdict(HardwareConfig(16, 8))
    counted = {"lut": 1000, "ff": 2000, "dsp": 8, "bram": 0}
    chosen = {
        **counted, "cycles": 500, "images_per_s": 1e5, "synthesis": counted, "hardware": hardware,
        "network": {"cycles": 500, "sqnr_db": 15.0},
    }  # fmt: skip

    def missed(budget: int = 1000, **changes: object) -> list[str]:
        rows = benchmark.compare(chosen | changes, budget)
        return [row["name"] for row in rows if not row["kept"]]

    assert missed() == missed(lut=1100, ff=1800) == []
    assert missed(lut=1101) == ["LUT of the chosen"]
    assert missed(ff=1799, dsp=9) == ["FF of the chosen", "DSP of the chosen"]
    assert missed(bram=1) == ["BRAM of the chosen"]
    assert missed(999) == ["LUT by synthesis"]
    assert missed(cycles=501) == ["cycles of its network"]


def test_any_scheduler_gives_the_same(network: Path, tmp_path: Path) -> None:
    own = settings(network)
    here = trials(tmp_path / "here", own, 8)
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Study.open(tmp_path / "there", own, fake) as study,
        open_pool(cluster.scheduler_address) as pool,
    ):  # fmt: skip
        assert explore(study, pool, 8) == here


SBATCH = """#!/bin/sh
# A queue of its own: keeps the job script and runs it at once.
cp "$1" {pid}.job
sh {pid}.job > {log} 2>&1 &
echo $! > {pid}
echo Submitted batch job 7
"""


def test_jobs_of_a_queueing_system(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    scripts = {"sbatch": SBATCH.format(log=tmp_path / "log", pid=pid), "scancel": "#!/bin/sh\n"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = {"cores": 1, "memory": "2GB", "python": f"{sys.executable} -P"}
    own = settings(network)
    with (
        dask.config.set({f"jobqueue.slurm.{key}": value for key, value in job.items()}),
        Study.open(tmp_path / "study", own, fake) as study,
    ):
        with open_pool("slurm", 1) as pool:
            worker = psutil.Process(int(pid.read_text()))
            family = [worker, *worker.children(recursive=True)]
            found = explore(study, pool, 4)
        _, alive = psutil.wait_procs(family, timeout=60)
    assert len(family) > 1
    assert alive == []  # jobs end with their scheduler
    assert found.front == trials(tmp_path / "here", own, 4).front
