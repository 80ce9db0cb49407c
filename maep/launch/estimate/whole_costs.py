"""What a configuration's images cost, whatever its purifier: training, purifying, attacks, judging; all is counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from maep.attacks.attack_spec import AttackSpec
from maep.attacks.threat_models import Adaptive, AdaptiveEot, BlackBox, Oblivious, threat_model
from maep.config.pair_source import TRAININGS, source_settings
from maep.config.schema import Settings
from maep.evaluation.audit.gradient_masking import BUDGETS, CURVE_STEPS, STEPS
from maep.evaluation.scoring.tasks import Task, plan_tasks, undefended_task
from maep.evaluation.stage import purifiers_of
from maep.launch.estimate.attack_queries import Queries, attack_queries
from maep.launch.estimate.cost_model import Constants
from maep.launch.estimate.data_sizes import class_count, test_images, training_images, training_steps
from maep.launch.estimate.defense_count import DefenseCount, Taken
from maep.launch.estimate.training_count import StepCount, count_training
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.pipeline.stages import stages_of
from maep.training.finetune import with_adapter
from maep.training.schedule import held_out_images

SCORED = 3  # times that a record purifies and classifies its images: clean, attacked, attacked and rounded to 8 bits
ALONE = 2  # times that it classifies them without the purifier
CHECKS = len(BUDGETS) * CURVE_STEPS + sum(STEPS)  # gradients of an image that is asked about masked gradients


@dataclass(frozen=True)
class Part:
    """What is done to so many images, in batches. taken: for an image, and of launches for a batch."""

    name: str
    images: int
    batch: int
    taken: Taken

    @property
    def flops(self) -> float:
        """Of all images."""
        return self.images * self.taken.flops

    def hours(self, machine: Constants, *, bf16: bool = False) -> float:
        """On one GPU: of the arithmetic, or of the launches where those take longer."""
        peak = machine.peak_bf16 if bf16 else machine.peak_fp32
        launches = ceil(self.images / self.batch) * self.taken.launches * machine.launch.value
        return max(self.flops / (peak.value * machine.mfu.value), launches) / 3600


class EvaluationCost:
    """An evaluation, attack by attack, as `maep.evaluation` plans it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.defense = settings, DefenseCount(settings)

    @cached_property
    def tasks(self) -> list[Task]:
        """Of one purifier. Raises UserError as `plan_tasks`."""
        return plan_tasks(self.settings.evaluation, test_images(self.settings))

    def parts(self) -> Iterator[Part]:
        """The attacks of each threat model, the records, and the checks for masked gradients."""
        evaluation, judged = self.settings.evaluation, len(purifiers_of(self.settings))
        attacks = self.attacks
        for threat in dict.fromkeys(task.threat_model for task in attacks):
            asked, times = self.defense.asked(threat), judged if threat_model(threat).uses_purifier else 1
            for name in dict.fromkeys(task.attack for task in attacks if task.threat_model == threat):
                own = [task for task in attacks if (task.threat_model, task.attack) == (threat, name)]
                queries = attack_queries(name, evaluation.norm, class_count(self.settings))
                yield self._part(f"{threat}: {name}", times * sum(task.count for task in own), asked.by(queries))
        draws = 2 * evaluation.draws if self.defense.is_random else 0
        defended = (self.defense.purify + self.defense.classify).times(SCORED + draws)
        images = judged * sum(task.count for task in self.tasks)
        yield self._part("records", images, defended + self.defense.undefended.times(ALONE))
        knowing = AdaptiveEot.name if self.defense.is_random else Adaptive.name
        checked = self.defense.asked(knowing).by(Queries.of_gradients(CHECKS))
        yield self._part("checks for masked gradients", judged * evaluation.check_images, checked)

    def _part(self, name: str, images: int, taken: Taken) -> Part:
        return Part(name, images, self.settings.evaluation.batch_size, taken)

    @cached_property
    def attacks(self) -> list[Task]:
        """Each attack once: several records may be made of one, and all need the one on the classifier alone."""
        evaluation, available = self.settings.evaluation, test_images(self.settings)
        alone = [undefended_task(task, evaluation, available) for task in self.tasks]
        own = [self.defense.identity.attack_task(task) for task in self.tasks]
        return list(dict.fromkeys([*alone, *(task for task in own if task.threat_model != Oblivious.name)]))


def count_trainings(settings: Settings) -> dict[str, StepCount]:
    """A step of each training that the configuration has, by its stage."""
    stages, steps = stages_of(settings), dict[str, StepCount]()
    if "pretrain" in stages:
        steps["pretrain"] = count_training(settings, settings.pretrain)
    if "finetune" in stages and settings.finetune.method != "none":
        steps["finetune"] = count_training(settings, settings.finetune, _finetuned(settings))
    return steps


def _finetuned(settings: Settings) -> nn.Module:
    """What the finetuning trains."""
    model, method = MaskedAutoencoder(settings.model), settings.finetune.method
    return model if method == "full" else with_adapter(model, settings.finetune, settings.run.seed)


def training_parts(settings: Settings, trainings: Mapping[str, StepCount]) -> Iterator[Part]:
    """The attack on the training images, where a stage makes it, and the trainings, as `count_trainings` has them."""
    pairs = source_settings(settings, settings.pretrain)
    if "attack" in stages_of(settings) and not (pairs.attack.online or pairs.attack.shards):
        spec = AttackSpec.of(pairs.attack)
        asked = DefenseCount(pairs).asked(Oblivious.name).by(Queries.of_gradients(spec.steps))
        yield Part(f"attack: {spec.name} on training images", training_images(pairs), pairs.attack.batch_size, asked)
    for name, step in trainings.items():
        train = settings.finetune if name == "finetune" else settings.pretrain
        images = training_steps(settings, train) * train.batch_size
        yield Part(name, images, train.batch_size, Taken(step.flops, step.launches))


def print_costs(settings: Settings, trainings: Mapping[str, StepCount], machine: Constants, page: Console) -> None:
    """Two tables: what an image takes of each attacker's questions, and what all images take together."""
    evaluation = EvaluationCost(settings)
    page.print(_questions(settings, evaluation))
    page.print(_whole(settings, [*training_parts(settings, trainings), *evaluation.parts()], machine))
    for line in _notes(settings, evaluation):
        page.print(line, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _questions(settings: Settings, evaluation: EvaluationCost) -> Table:
    table = _table(f"An image of {settings.data.image_size} x {settings.data.image_size}", "what", "GFLOP", "launches")
    defense = evaluation.defense
    rows = {"classified without a defense": defense.undefended, "purified": defense.purify,
            "purified and classified": defense.purify + defense.classify}  # fmt: skip
    for threat in dict.fromkeys(task.threat_model for task in evaluation.attacks):
        asked = defense.asked(threat)
        rows[f"{threat}: an answer"] = asked.answer
        if threat != BlackBox.name:
            rows[f"{threat}: an answer and its gradient"] = asked.gradient
    for name, taken in rows.items():
        table.add_row(name, f"{taken.flops / 1e9:.4g}", f"{taken.launches:.0f}")
    return table


def _whole(settings: Settings, parts: Sequence[Part], machine: Constants) -> Table:
    table = _table("The whole, at most", "what", "images", "PFLOP", "GPU-hours")
    half = TRAININGS if settings.compute.precision != "fp32" else ()
    hours = [part.hours(machine, bf16=part.name in half) for part in parts]
    for part, duration in zip(parts, hours, strict=True):
        table.add_row(part.name, f"{part.images:,}", f"{part.flops / 1e15:.4g}", f"{duration:.3g}")
    table.add_section()
    table.add_row("together", "", f"{sum(part.flops for part in parts) / 1e15:.4g}", f"{sum(hours):.3g}")
    return table


def _notes(settings: Settings, evaluation: EvaluationCost) -> Iterator[str]:
    """What the tables do not say, a line each."""
    kind, defense = settings.purifier.kind, evaluation.defense
    yield "An image is attacked to the end here, as if none were ever fooled: what is needed is at most this."
    if (defense.purify + defense.classify).flops <= defense.undefended.flops:
        yield f"purifier.kind={kind}: has no matrix products and no convolutions, and nothing else is counted in FLOP."
    yield (
        "GPU-hours: the arithmetic's at mfu of the peak, of bf16 for trainings that have it, else of fp32; or those of "
        "launches one by one, where they take longer. Reading, writing and work of the host are not in them."
    )
    left_out = ["the classifier's own training", *(["certificates"] if settings.certify.sigma else [])]
    if held_out_images(settings.pretrain, settings.robust):
        left_out += ["attacks on held-out images (robust.check_every)", "what a training repeats that goes back"]
    yield f"Not in it: {', '.join(left_out)}."
