"""The search: Optuna proposes configurations, workers estimate them, synthesis confirms the best.

Only the driver writes to the study's folder (workers add to its cache of networks). A trial is
stored before it runs and when it is finished, so that whatever ends the driver, the next one goes
on where it was.
"""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DatabaseError

from ..golden.config import KEYS, HardwareConfig
from ..golden.network import QuantizedNetwork
from ..quant.documents import write_text
from ..toolchain.devices import KINDS
from .pool import Pool
from .resources import count
from .space import Space, full_space
from .trial import Figures, File, ResourceModel, Task, evaluate

__all__ = ["OBJECTIVES", "Exploration", "Point", "Settings", "Study", "confirm", "explore"]

OBJECTIVES = {
    "images_per_s": StudyDirection.MAXIMIZE,
    "sqnr_db": StudyDirection.MAXIMIZE,
    **dict.fromkeys(("cycles", *KINDS), StudyDirection.MINIMIZE),
}
"""what can be sought, and where it is better"""

Progress = Callable[[str, int, int], None]
"""Called with what is done, how often it was done, and how often it will be."""


@dataclass(frozen=True)
class Settings:
    """What is explored. Studies of other settings are other studies.

    Parameters
    ----------
    network : quantized already, or a model (``.pt2``)
    calibration : images of a model, else None
    target : a device or a family
    budget : the most of some of ``KINDS``
    objectives : some of :data:`OBJECTIVES`; the first one decides which point of the front is taken
    least_sqnr : dB that the scores of a model must keep
    space : the candidates of each key; a default where it has none
    base : everything else of the hardware
    seed : the same one gives the same trials where one worker runs them
    clock : MHz of the board; None: as fast as estimated
    latency, gap : of the memory, in cycles
    """

    network: File
    target: str
    budget: Mapping[str, int]
    calibration: File | None = None
    objectives: tuple[str, ...] = ("images_per_s",)
    least_sqnr: float = 12.0
    space: Space = field(default_factory=dict)
    base: HardwareConfig = field(default_factory=lambda: HardwareConfig(16, 16))
    seed: int = 0
    clock: float | None = None
    latency: int = 20
    gap: int = 0

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, not {name!r}")
        if len(set(self.objectives)) < len(self.objectives) or not self.objectives:
            raise ValueError("objectives must be named once each, one at least")
        for name, most in self.budget.items():
            if name not in KINDS or most < 0:
                raise ValueError(
                    f"a budget is a number of one of {', '.join(KINDS)}, not {name}={most}"
                )
        if self.clock is not None and not 0 < self.clock < math.inf:
            raise ValueError(f"clock must be a number of MHz above 0, not {self.clock:g}")
        if self.latency < 0 or self.gap < 0:
            raise ValueError(
                f"latency and gap must be at least 0, not {self.latency} and {self.gap}"
            )
        if not math.isfinite(self.least_sqnr):
            raise ValueError(f"least_sqnr must be a number of dB, not {self.least_sqnr}")
        if self.calibration is None and "sqnr_db" in self.objectives:
            raise ValueError("sqnr_db is measured of a model (.pt2), not of a quantized network")

    @property
    def sought(self) -> tuple[str, ...]:
        """The objectives, and the SQNR of a model: else the fewest bits would always win."""
        if self.calibration is None or "sqnr_db" in self.objectives:
            return self.objectives
        return (*self.objectives, "sqnr_db")

    def plain(self) -> dict[str, Any]:
        """By name, as JSON has it; files by the hash of their content."""
        values = asdict(self) | {"network": self.network.digest}
        values["calibration"] = None if self.calibration is None else self.calibration.digest
        return json.loads(json.dumps(values))

    def wanted(self, figures: Figures) -> list[float]:
        """The values of what is sought."""
        return [getattr(figures, name) for name in self.sought]

    def excess(self, figures: Figures) -> dict[str, str]:
        """What a configuration takes too much of, in words: ``{"lut": "70000 of 60000 lut"}``."""
        found = {
            kind: f"{getattr(figures, kind)} of {most} {kind}"
            for kind, most in self.budget.items()
            if getattr(figures, kind) > most
        }
        if figures.sqnr_db is not None and figures.sqnr_db < self.least_sqnr:
            found["sqnr_db"] = f"{figures.sqnr_db:.1f} of {self.least_sqnr:g} dB"
        return found

    def violation(self, figures: Figures) -> float:
        """How far it is from keeping them, 0 if it does: parts of the budget and tens of dB."""
        far = [
            max(0.0, getattr(figures, kind) / max(most, 1) - 1 if most else getattr(figures, kind))
            for kind, most in self.budget.items()
        ]
        if figures.sqnr_db is not None:
            far.append(max(0.0, (self.least_sqnr - figures.sqnr_db) / 10))
        return sum(far)


@dataclass(frozen=True)
class Point:
    """A trial that is finished.

    Parameters
    ----------
    number : of the trial
    values : of every key of its configuration
    figures : None where there are none
    problem : what it takes too much of or why it has no figures; empty if nothing is wrong
    """

    number: int
    values: Mapping[str, Any]
    figures: Figures | None
    problem: str = ""

    @property
    def config(self) -> HardwareConfig:
        return HardwareConfig(**self.values)


@dataclass(frozen=True)
class Exploration:
    """What was found.

    Parameters
    ----------
    settings : of the study
    points : every finished trial, in the order of their numbers
    front : those that keep everything and that no other beats, the best in the first objective
        first; of several with the same values, the one that takes the least of the budget
    synthesized : numbers of points → what synthesis takes
    """

    settings: Settings
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    synthesized: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def holds(self, point: Point) -> bool:
        """Whether the synthesis of a point keeps the budget too."""
        budget = self.settings.budget
        return all(self.synthesized[point.number][kind] <= budget[kind] for kind in budget)

    @cached_property
    def chosen(self) -> Point:
        """The best point of the front in the first objective; where any was synthesized, the best
        of those that keep the budget then.

        Raises ``ValueError`` if there is none.
        """
        if not self.front:
            raise ValueError(self._nothing())
        if not self.synthesized:
            return self.front[0]
        kept = [p for p in self.front if p.number in self.synthesized and self.holds(p)]
        if not kept:
            raise ValueError(
                f"none of the {len(self.synthesized)} best points keeps the budget when it is "
                "synthesized: synthesize more of them, or lower the budget"
            )
        return kept[0]

    def _nothing(self) -> str:
        measured = [point for point in self.points if point.figures is not None]
        if not measured:
            reason = self.points[0].problem if self.points else "there was none"
            return f"no trial of {len(self.points)} could be estimated; the first: {reason}"
        nearest = min(measured, key=lambda p: self.settings.violation(_figures(p)))
        return (
            f"no trial of {len(self.points)} keeps everything; the nearest has {nearest.problem}: "
            "allow more, or run more trials"
        )


def _figures(point: Point) -> Figures:
    assert point.figures is not None
    return point.figures


class Study:
    """A folder with the trials of some settings; one driver at a time.

    Raises ``ValueError`` if another driver works in it or if its settings are others.
    """

    def __init__(
        self, folder: Path, settings: Settings, space: Space, resources: ResourceModel
    ) -> None:
        self.folder, self.settings, self.resources = folder, settings, resources
        self.space = space
        self.cache = folder.resolve() / "networks"
        self.cache.mkdir(exist_ok=True)
        self._check_settings()
        file = folder.resolve() / "study.db"
        try:
            self._study = optuna.create_study(
                storage=optuna.storages.RDBStorage(f"sqlite:///{file}"), study_name="explore",
                load_if_exists=True, directions=[OBJECTIVES[name] for name in settings.sought],
            )  # fmt: skip
        except DatabaseError as error:
            raise ValueError(f"{file} cannot be used: {error.orig}") from None

    @classmethod
    @contextmanager
    def open(cls, folder: Path, settings: Settings, resources: ResourceModel) -> Iterator["Study"]:
        """The study of a folder, which is made if missing, locked until the end of the context."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        stored = None
        if settings.calibration is None:
            stored = QuantizedNetwork.load(settings.network.path)
        space = full_space(settings.space, stored)
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
            except BlockingIOError:
                raise ValueError(f"{folder}: another exploration works there") from None
            yield cls(folder, settings, space, resources)

    def _check_settings(self) -> None:
        file, own = self.folder / "settings.json", replace(self.settings, space=self.space).plain()
        if not file.exists():
            write_text(file, json.dumps(own, indent=1) + "\n")
            return
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise ValueError(f"{file} are no settings of a study")
        for name in own:
            if known.get(name) != own[name]:
                raise ValueError(
                    f"{self.folder} was begun with another {name}: {known.get(name)!r}, not "
                    f"{own[name]!r}; name another folder"
                )

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)

    @property
    def finished(self) -> int:
        return len(self._trials(TrialState.COMPLETE, TrialState.FAIL))

    def pending(self) -> Iterator[Trial]:
        """Trials that a driver before this one did not finish."""
        for trial in self._trials(TrialState.RUNNING):
            self._seed(trial.number)
            yield Trial(self._study, trial._trial_id)

    def ask(self) -> Trial:
        """A new trial."""
        self._seed(len(self._study.get_trials(deepcopy=False)))
        return self._study.ask()

    def _seed(self, *numbers: int) -> None:
        """Let what is drawn next follow from the seed, the numbers and the trials that are
        finished, however often the study was interrupted."""
        state = np.random.SeedSequence([self.settings.seed, *numbers]).generate_state(1)
        self._study.sampler = TPESampler(seed=int(state[0]), multivariate=True)

    def task(self, trial: Trial) -> Task:
        """What a worker is sent. Optuna is given the numbers of the candidates, which keep their
        order whatever they are."""
        own = self.settings
        values = {key: getattr(own.base, key) for key in KEYS}
        for part, (key, candidates) in enumerate(self.space.items(), 1):
            self._seed(trial.number, part)
            number = trial.suggest_int(key, 0, len(candidates) - 1) if len(candidates) > 1 else 0
            values[key] = candidates[number]
        return Task(
            values, own.target, own.network, own.calibration, self.cache, self.resources,
            own.clock, own.latency, own.gap,
        )  # fmt: skip

    def tell(self, trial: Trial, task: Task, result: Mapping[str, Any]) -> None:
        """Store what came of a trial."""
        trial.set_user_attr("found", {"values": dict(task.values), **result})
        if "reason" in result:
            self._study.tell(trial.number, state=TrialState.FAIL)
            return
        figures = Figures(**result)
        if not trial.constraints:  # unless a driver before this one ended here
            trial.set_constraint("excess", self.settings.violation(figures))
        self._study.tell(trial.number, self.settings.wanted(figures))

    def known(self) -> dict[str, dict[str, Any]]:
        """Configuration → its figures."""
        found = [dict(trial.user_attrs["found"]) for trial in self._trials(TrialState.COMPLETE)]
        return {_key(each.pop("values")): each for each in found}

    def _preference(self, point: Point) -> tuple[float, ...]:
        """By the first objective, then by the sum of the parts of the budget."""
        found, own = _figures(point), self.settings
        first = own.objectives[0]
        sign = -1 if OBJECTIVES[first] == StudyDirection.MAXIMIZE else 1
        parts = [getattr(found, kind) / max(most, 1) for kind, most in own.budget.items()]
        return sign * getattr(found, first), sum(parts), point.number

    def _point(self, trial: FrozenTrial) -> Point:
        found = dict(trial.user_attrs["found"])
        values, reason = found.pop("values"), found.pop("reason", "")
        if reason:
            return Point(trial.number, values, None, reason)
        figures = Figures(**found)
        return Point(
            trial.number, values, figures, ", ".join(self.settings.excess(figures).values())
        )

    def result(self) -> Exploration:
        """What was found until now."""
        states = (TrialState.COMPLETE, TrialState.FAIL)
        points = tuple(self._point(t) for t in self._trials(*states))
        numbers = {t.number for t in self._study.best_trials} if self.finished else set()
        best = [p for p in points if p.number in numbers and not p.problem]
        front: dict[tuple[float, ...], Point] = {}
        for point in sorted(best, key=self._preference):
            front.setdefault(tuple(self.settings.wanted(_figures(point))), point)
        return Exploration(self.settings, points, tuple(front.values()))


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _outcome(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """What a worker returned; an error that the trial would have anywhere is a reason too.

    Raises ``RuntimeError`` for what is wrong with the worker's machine: the trial is not finished.
    """
    try:
        return _settled(future)
    except RuntimeError as error:
        if isinstance(error.__cause__, CancelledError | ImportError | OSError):
            raise
        return {"reason": str(error)}


def _settled(future: Future[Any]) -> Any:
    """A result. Raises ``RuntimeError``, of whatever a worker raised, or that they are gone."""
    try:
        return future.result()
    except CancelledError as error:
        reason = "the workers are gone; the same command goes on with what is left"
        raise RuntimeError(reason) from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise RuntimeError(f"{type(error).__name__}: {message}") from error


def explore(
    study: Study, pool: Pool, trials: int, progress: Progress = lambda message, done, of: None
) -> Exploration:
    """Finish trials until the study has `trials` of them.

    Those that a driver before this one began come first. What is known of a configuration is not
    estimated again. A trial fails, with its reason, if its
    configuration or its network cannot be.
    """
    begun, known = study.pending(), study.known()
    running: dict[Future[dict[str, Any]], tuple[Trial, Task]] = {}
    while (finished := study.finished) < trials:
        progress("trials", finished, trials)
        while len(running) < min(pool.width(), trials - finished):
            trial = next(begun, None) or study.ask()
            task = study.task(trial)
            if (result := known.get(_key(task.values))) is not None:
                study.tell(trial, task, result)
                finished += 1
            else:
                running[pool.executor.submit(evaluate, task)] = trial, task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        failure: RuntimeError | None = None
        for future in sorted(done, key=lambda each: running[each][0].number):
            trial, task = running.pop(future)
            try:
                result = _outcome(future)
            except RuntimeError as error:
                failure = error
                continue
            study.tell(trial, task, result)
            if "reason" not in result:
                known[_key(task.values)] = result
        if failure is not None:
            raise failure
    progress("trials", trials, trials)
    return study.result()


def confirm(
    found: Exploration,
    pool: Pool,
    points: int,
    progress: Progress = lambda message, done, of: None,
) -> Exploration:
    """Synthesize the best `points` of the front.

    Raises ``RuntimeError`` if synthesis fails.
    """
    some: Sequence[Point] = found.front[:points]
    futures = [pool.executor.submit(count, p.config, found.settings.target) for p in some]
    waiting = set(futures)
    while waiting:
        progress("syntheses", len(futures) - len(waiting), len(futures))
        _, waiting = wait(waiting, return_when=FIRST_COMPLETED)
    counts = {p.number: _settled(f) for p, f in zip(some, futures, strict=True)}
    return replace(found, synthesized=counts)
