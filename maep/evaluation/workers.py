"""The work of an evaluation, shared by any number of workers: chunks attacked, purified, classified, written down.

A worker claims one unit at a time (maep.storage.claims): first attacks, an attack on the undefended classifier being
one unit for all purifiers and threat models; and each record as soon as its attacks are there. What a record holds
depends on its own chunk alone, so it is the same however the work was shared, cut or interrupted. A finished unit is
not done again; one made for another classifier, purifier, attack, seed or image set is.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.progress import Progress, TaskID

from maep.attacks.attack_state import AttackState, OnState
from maep.attacks.threat_models import Adaptive, threat_model
from maep.evaluation.audit.gradient_masking import MaskingCheck
from maep.evaluation.audit.purification_cost import CostMeasurement
from maep.evaluation.scoring.chunk_attack import ChunkAttack
from maep.evaluation.scoring.chunk_record import ChunkRecord
from maep.evaluation.scoring.evaluation import Evaluation, prepare
from maep.evaluation.scoring.score import is_scored, score_chunk
from maep.evaluation.scoring.tasks import Task
from maep.runtime.console import progress_bar, say
from maep.runtime.device import keep_freed_memory, warn_of_slow_bf16
from maep.runtime.digests import digest
from maep.runtime.errors import Stopped
from maep.storage.atomic import remove_temporaries
from maep.storage.claims import Claims

Audits = Mapping[str, MaskingCheck | CostMeasurement]


def evaluate_all(evaluations: Sequence[Evaluation], worker: tuple[int, int] = (0, 1)) -> bool:
    """Measure clean and robust accuracy of every evaluation in every threat model, attack and budget it plans.

    Evaluations must share their settings and images. worker: (i, n); the first worker starts at the first chunk,
    the others further on, the last at the checks of the defense itself, and each takes whatever no living worker has.
    Returns whether everything is finished now; if not, the remaining work is in the hands of living workers.
    Raises UserError when the settings, the models and the test set do not fit.
    """
    units = [Unit(evaluation, task) for evaluation in evaluations for task in prepare(evaluation)]
    audits: Audits = {
        audit.claim: audit
        for evaluation in evaluations
        for audit in (CostMeasurement(evaluation), MaskingCheck(evaluation))
    }
    settings = evaluations[0].settings
    if Adaptive.name in settings.evaluation.threat_models and not settings.evaluation.adaptive_images:
        say("adaptive threat model left out: evaluation.adaptive_images=0")
    if evaluations[0].defense.device.type == "cpu":
        keep_freed_memory()
    warn_of_slow_bf16("evaluation.precision", settings.evaluation.precision, evaluations[0].defense.device)
    pending = [unit for unit in units if not unit.is_done()]
    if len(units) > len(pending):
        say(f"evaluation: {len(units) - len(pending)} of {len(units)} chunks were done before")
    directory = Path(settings.run.cache) / "attacked" / ".claims"
    with stopped_at_once(), progress_bar() as bar, Claims(directory, settings.compute.claim_timeout) as claims:
        note = ProgressNote(bar, bar.add_task("evaluate", total=sum(u.task.count for u in pending), note=""))
        if 0 < worker[0] == worker[1] - 1:  # or all would wait for the checks in the end
            _audit(audits, claims, note)
        _Share(pending, claims, note, worker).do()
        _audit(audits, claims, note)
    return all(unit.is_done() for unit in pending) and all(audit.is_done() for audit in audits.values())


def _audit(audits: Audits, claims: Claims, note: "ProgressNote") -> None:
    """The checks and measurements that no other worker has."""
    for name in claims.shared(list(audits), lambda name: audits[name].is_done()):
        note.checking(f"checks of {audits[name].evaluation.directory.name}: {audits[name].description}")
        audits[name].run()


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """SIGTERM and SIGUSR2 raise Stopped here: all that is finished is on disk, so there is nothing to save first.

    Python takes signals in the main thread alone; in another one, they stay as they were.
    """

    def stop(signum: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped(signum, -1)

    signums = (signal.SIGTERM, signal.SIGUSR2) if threading.current_thread() is threading.main_thread() else ()
    previous = {signum: signal.signal(signum, stop) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@dataclass(frozen=True)
class Unit:
    """One record to be made."""

    evaluation: Evaluation
    task: Task

    @property
    def name(self) -> str:
        """Of its claim; records of different run directories are different units."""
        directory = str(self.evaluation.directory.resolve())
        return "record-" + digest([directory, self.evaluation.identity.record(self.task)])[:24]

    def attacks(self) -> list[ChunkAttack]:
        """What has to be made before it."""
        return self.evaluation.attacks.of(self.task)

    def is_done(self) -> bool:
        """Whether the record is there."""
        return is_scored(self.evaluation, self.task)


class _Share:
    """What one worker does of the pending units."""

    def __init__(self, units: Sequence[Unit], claims: Claims, note: "ProgressNote", worker: tuple[int, int]) -> None:
        self.claims, self.note, self.worker = claims, note, worker
        self.units = {unit.name: unit for unit in units}
        self.attacks: dict[str, tuple[ChunkAttack, Evaluation]] = {}
        self.waiting: dict[str, list[str]] = {}
        self.needed: dict[str, list[str]] = {}
        self.done: set[str] = set()
        for name, unit in self.units.items():
            for attack in unit.attacks():
                key = f"attack-{attack.identity[:24]}"
                self.attacks[key] = attack, unit.evaluation
                self.waiting.setdefault(key, []).append(name)
                self.needed.setdefault(name, []).append(key)

    def do(self) -> None:
        """Attacks, each followed by the records that wait for it; then records that others did not get to."""
        self._clean()
        for key in self.claims.shared(self._turned(list(self.attacks)), self._is_attacked):
            self._attack(*self.attacks[key])
            self._score_ready(self.waiting[key])
        self._score_ready(list(self.units))
        for name in self.claims.shared(list(self.units), self._is_out_of_reach):
            self._score(self.units[name])

    def _clean(self) -> None:
        """Remove what killed workers of this host left: once, as a folder's listing grows with the test set."""
        folders = {unit.evaluation.directory / unit.task.folder for unit in self.units.values()}
        for folder in folders | {attack.folder for attack, _ in self.attacks.values()}:
            remove_temporaries(folder)

    def _turned(self, keys: list[str]) -> list[str]:
        """The keys from this worker's share on, so that workers seldom want the same unit."""
        number, workers = self.worker
        first = len(keys) * number // workers
        return keys[first:] + keys[:first]

    def _is_attacked(self, key: str) -> bool:
        return self._is_known_to_be_done(key, self.attacks[key][0].is_finished)

    def _is_known_to_be_done(self, name: str, is_done: Callable[[], bool]) -> bool:
        """Whether a unit is done, asking the disk no more once it was: what is done stays so."""
        if name not in self.done and is_done():
            self.done.add(name)
        return name in self.done

    def _is_out_of_reach(self, name: str) -> bool:
        """Whether there is nothing to do for a record: it is there, or its attack is in the hands of another."""
        if self._is_known_to_be_done(name, self.units[name].is_done):
            return True
        return not all(map(self._is_attacked, self.needed[name]))

    def _attack(self, attack: ChunkAttack, evaluation: Evaluation) -> None:
        started, task = time.perf_counter(), attack.task
        name = f"{task}" if not threat_model(task.threat_model).uses_purifier else named(evaluation, task)
        state = attack.make(*evaluation.images(task.ids), self.note.attacking(name, task))
        stood, seconds = f"{int(state.robust.sum())} of {task.count} stood", time.perf_counter() - started
        say(f"{name}: chunk {task.chunk} attacked: {stood} ({seconds:.1f} s)")

    def _score_ready(self, names: Sequence[str]) -> None:
        for name in names:
            if self._is_out_of_reach(name):
                continue
            with self.claims.hold(name) as is_held:
                if is_held and not self.units[name].is_done():
                    self._score(self.units[name])

    def _score(self, unit: Unit) -> None:
        name = named(unit.evaluation, unit.task)
        record = score_chunk(unit.evaluation, unit.task, self.note.attacking(name, unit.task))
        self.note.finished(name, unit.task, record)


def named(evaluation: Evaluation, task: Task) -> str:
    """A task in words, with the purifier that it is about."""
    return f"{evaluation.directory.name} · {task}"


class ProgressNote:
    """The evaluation's progress bar: images done, and robust-so-far of the combination at work."""

    def __init__(self, bar: Progress, bar_task: TaskID) -> None:
        self.bar = bar
        self.bar_task = bar_task
        self.totals: dict[str, tuple[int, int]] = {}

    def checking(self, what: str) -> None:
        """A check or measurement of a purifier begins."""
        self.bar.update(self.bar_task, note=what)
        say(what)

    def attacking(self, name: str, task: Task) -> OnState:
        """What to call when an attack of a chunk has ended. name: of the task, with its purifier."""
        self.bar.update(self.bar_task, note=f"{name} · chunk {task.chunk}{self._so_far(name)}")

        def note(state: AttackState) -> None:
            last, robust = list(state.survivors.items())[-1]
            progress = f"chunk {task.chunk}, after {last}: {robust}/{task.count} robust"
            self.bar.update(self.bar_task, note=f"{name} · {progress}{self._so_far(name)}")

        return note

    def finished(self, name: str, task: Task, record: ChunkRecord) -> None:
        """A chunk has its record."""
        right = sum(record.correct("defended_adversarial"))
        robust, count = self.totals.get(name, (0, 0))
        self.totals[name] = robust + right, count + task.count
        self.bar.update(self.bar_task, advance=task.count, note=f"{name}{self._so_far(name)}")
        say(f"{name}: chunk {task.chunk}: {right} of {task.count} robust ({sum(record.seconds.values()):.1f} s)")

    def _so_far(self, name: str) -> str:
        robust, count = self.totals.get(name, (0, 0))
        return f" · so far {100 * robust / count:.1f} %" if count else ""
