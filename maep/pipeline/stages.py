"""The stages of the pipeline: what each reads, needs, leaves behind, and does.

A stage is identified by the settings that decide its result (`maep.config.identity`) and by the identities of what the
stages before it made. `execution` runs them; `stage_records` says what is known of one. What a stage's work needs is
imported where it is done, so that a run which is finished says so without importing torch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maep.config.identity import decisive_settings
from maep.config.implementations import FINETUNING, OBJECTIVES
from maep.config.pair_source import source_settings
from maep.config.schema import Settings
from maep.config.training_settings import TrainSettings
from maep.data.adversarial_set import adversarial_path
from maep.data.classifier_weights import classifier_weights, further_classifiers
from maep.data.images.build import SPLITS, build_shards, clean_shards, clean_split, shards_are_outdated
from maep.data.shards import ShardSet
from maep.models.classifiers import classifier_identity
from maep.pipeline.preconditions import (
    check_attack,
    check_certify,
    check_classifiers,
    check_evaluate,
    check_finetune,
    check_judging,
    check_pretrain,
    check_shards,
)
from maep.pipeline.stage_records import digests_of, read_stage_record
from maep.purifiers.registry import stages_before
from maep.runtime.digests import digest
from maep.runtime.errors import fail
from maep.storage.atomic import sha256_file
from maep.storage.remote import Reading, open_storage
from maep.storage.sealed import MANIFEST

Launcher = Callable[[str, Settings], None]
Share = Callable[[Settings, tuple[int, int]], bool]
# Seconds between two looks at pieces that another run makes; a piece takes tens of seconds.
LOOK_AGAIN = 2.0
JUDGING = ("evaluate", "certify")  # stages that judge purifiers


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; its name is that of its artefact in `maep.config.identity.READS`.

    needs: stages before it. outputs: what it leaves in run.dir. run: does the work, or what is left of it. identity:
    of its result. files: patterns, below run.dir, of files of its result that the identity does not cover. kept:
    patterns of JSON files that it takes over as they are when it runs again. idle: why there is nothing to do for these
    settings, or "". share: does a share of the work beside other workers and tells whether the whole is finished; None
    where the work is not shared out. anew: why a longer training begins anew instead of going on from the shorter
    one's checkpoint, where it does. check: raises UserError for what it would be given and could not use, as far as can
    be told without doing its work; writes nothing.
    """

    name: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[Settings, Launcher], None]
    identity: Callable[[Settings], str]
    idle: Callable[[Settings], str] = lambda _settings: ""
    share: Share | None = None
    files: tuple[str, ...] = ()
    anew: str = ""
    kept: tuple[str, ...] = ()
    check: Callable[[Settings], None] = lambda _settings: None

    def digests(self, run: Path) -> dict[str, str]:
        """`{name: SHA-256}` of the files of its result in a run directory; what is no file there has none."""
        return digests_of(run, (*self.files, *self.kept))


def _shards(settings: Settings, _launch: Launcher) -> None:
    build_shards(settings)


def _shards_identity(settings: Settings) -> str:
    if shards_are_outdated(settings):
        fail(f"data.root={settings.data.root} holds other files now than the shards were built from")
    return digest([shards.identity for shards in clean_shards(settings).values()])


def _classifier(settings: Settings, _launch: Launcher) -> None:
    from maep.training.classifier import train_classifier

    train, test = (clean_split(settings, split) for split in SPLITS)
    for each in _classifiers(settings):
        if not each.classifier.weights:
            train_classifier(each, train, test)
    if settings.robust.teacher:
        from maep.data.soft_labels import make_soft_labels

        make_soft_labels(settings)


def _classifiers(settings: Settings) -> list[Settings]:
    """The settings, and again with each further classifier of a training against several."""
    return [settings, *further_classifiers(settings)]


def _classifier_idle(settings: Settings) -> str:
    if settings.robust.teacher:
        return ""  # its answers are to be written down
    is_given = all(each.classifier.weights for each in _classifiers(settings))
    return "its weights are given (classifier.weights)" if is_given else ""


def _classifier_identity(settings: Settings) -> str:
    return classifier_identity(settings.classifier, classifier_weights(settings))


def _classifiers_identity(settings: Settings) -> str:
    """Of the run's own classifier, of further ones where there are any, and of a teacher's answers."""
    own, *further = (_classifier_identity(each) for each in _classifiers(settings))
    if settings.robust.teacher:
        from maep.data.soft_labels import SoftLabels

        further.append(SoftLabels.of(settings).manifest.identity)
    return digest([own, *further]) if further else own


def _to_the_end(share: Share, settings: Settings) -> None:
    """Do all of a stage whose pieces other runs may need, and be making, too; waits for theirs."""
    while not share(settings, (0, 1)):
        time.sleep(LOOK_AGAIN)


def _attack(settings: Settings, _launch: Launcher) -> None:
    _to_the_end(_attack_share, settings)


def _attack_share(settings: Settings, worker: tuple[int, int]) -> bool:
    from maep.data.adversarial import make_adversarial_shards

    place = make_adversarial_shards(settings, worker, shared=True)
    return open_storage(place, Reading.of(settings.data)).exists(MANIFEST)


def _attack_idle(settings: Settings) -> str:
    if OBJECTIVES[settings.objective.name].noises:
        return f"the trainer adds noise to clean images (objective.name={settings.objective.name})"
    if OBJECTIVES[settings.objective.name].clean_images:
        return f"the training sees no adversarial image (objective.name={settings.objective.name})"
    return "the trainer makes the adversarial images itself (attack.online)" if settings.attack.online else ""


def _attack_identity(settings: Settings) -> str:
    """Of what a training gets beside clean images: attacked ones, or what it makes such ones with as it goes.

    With a teacher its answers too, whoever else is asked.
    """
    if settings.robust.teacher:
        return digest([_pairs_identity(settings), _classifiers_identity(settings)])
    return _pairs_identity(settings)


def _pairs_identity(settings: Settings) -> str:
    objective = OBJECTIVES[settings.objective.name]
    if not objective.attacks:
        return digest(["noise", _classifier_identity(settings)]) if objective.classifies else "noise"
    if settings.attack.online:
        return digest(["online", _classifiers_identity(settings), decisive_settings(settings, "attack")])
    clean = clean_split(settings, "train")
    path = adversarial_path(settings, clean, _classifier_identity(settings))
    return ShardSet(path, Reading.of(settings.data)).identity


def _make_source(settings: Settings, launch: Launcher, train: TrainSettings) -> None:
    """Make the pairs of another data set, where a training names one."""
    source = source_settings(settings, train)
    if source is not settings:
        for name in ("shards", "classifier", "attack"):
            if not STAGES[name].idle(source):
                STAGES[name].run(source, launch)


def _pretrain(settings: Settings, launch: Launcher) -> None:
    from maep.training.inputs import own_pairs, verify_pairs, verify_soft_labels

    _make_source(settings, launch, settings.pretrain)
    verify_pairs(own_pairs(settings, settings.pretrain))
    verify_soft_labels(settings, settings.pretrain)
    launch("pretrain", settings)


def _finetune(settings: Settings, launch: Launcher) -> None:
    from maep.training.inputs import finetuning_pairs, verify_pairs, verify_soft_labels

    _make_source(settings, launch, settings.finetune)
    verify_pairs(finetuning_pairs(settings))
    verify_soft_labels(settings, settings.finetune)
    launch("finetune", settings)


def _finetune_idle(settings: Settings) -> str:
    return "none is wanted (finetune.method)" if settings.finetune.method == "none" else ""


def _weights_identity(*names: str) -> Callable[[Settings], str]:
    def identity(settings: Settings) -> str:
        paths = [Path(settings.run.dir) / name for name in names]
        return digest([sha256_file(path) for path in paths if path.is_file()])

    return identity


def _evaluate(settings: Settings, _launch: Launcher) -> None:
    _to_the_end(_evaluate_share, settings)


def _evaluate_share(settings: Settings, worker: tuple[int, int]) -> bool:
    from maep.evaluation.stage import evaluate_run

    return evaluate_run(settings, worker)


def _certify(settings: Settings, _launch: Launcher) -> None:
    _to_the_end(_certify_share, settings)


def _certify_share(settings: Settings, worker: tuple[int, int]) -> bool:
    from maep.evaluation.certification.certifying import certify_run

    return certify_run(settings, worker)


def _certify_idle(settings: Settings) -> str:
    return "" if settings.certify.sigma else "no noise is named (certify.sigma)"


def _records_identity(settings: Settings) -> str:
    return _digest_of_json(Path(settings.run.dir) / "evaluation")


def _certificates_identity(settings: Settings) -> str:
    return _digest_of_json(Path(settings.run.dir) / "certificates")


def _report_identity(settings: Settings) -> str:
    """Of the records; and of the certificates, where there are to be some."""
    records = _records_identity(settings)
    return digest([records, _certificates_identity(settings)]) if settings.certify.sigma else records


def _digest_of_json(folder: Path) -> str:
    return digest([sha256_file(path) for path in sorted(folder.rglob("*.json"))])


def _report(settings: Settings, _launch: Launcher) -> None:
    from maep.evaluation.reporting.report import build_report

    run = Path(settings.run.dir)
    records = {name: read_stage_record(run, name) for name in ("pretrain", "finetune")}
    continued = {name: tuple(record.continued) for name, record in records.items() if record and record.continued}
    build_report(settings, run, continued=continued)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("shards", (), (), _shards, _shards_identity, check=check_shards),
        Stage(
            "classifier", ("shards",), (), _classifier, _classifiers_identity, _classifier_idle,
            anew="its learning rate falls over all epochs, and every run with these settings shares its weights",
            check=check_classifiers,
        ),
        Stage(
            "attack", ("shards", "classifier"), (), _attack, _attack_identity, _attack_idle, _attack_share,
            check=check_attack,
        ),
        Stage(
            "pretrain", ("shards", "attack"),
            ("checkpoints", "metrics.jsonl", "tensorboard/pretrain", "samples", "purifier"),
            _pretrain, _weights_identity("purifier/model.safetensors"), files=("purifier/*.json",),
            check=check_pretrain,
        ),
        Stage(
            "finetune", ("pretrain",),
            (
                "checkpoints-finetune", "metrics-finetune.jsonl", "tensorboard/finetune", "samples-finetune",
                "adapter", "finetuned",
            ),
            _finetune, _weights_identity(*dict.fromkeys(filter(None, FINETUNING.values()))),
            _finetune_idle, files=("adapter/*.json", "finetuned/*.json"), check=check_finetune,
        ),
        Stage(
            "evaluate", ("shards", "classifier", "pretrain", "finetune"), (), _evaluate, _records_identity,
            share=_evaluate_share, files=("evaluation/**/samples.safetensors",), kept=("evaluation/**/*.json",),
            check=check_evaluate,
        ),
        Stage(
            "certify", ("shards", "classifier", "pretrain", "finetune"), (), _certify, _certificates_identity,
            _certify_idle, _certify_share, kept=("certificates/**/*.json",), check=check_certify,
        ),
        Stage(
            "report", ("evaluate", "certify"), (), _report, _report_identity,
            files=("report.json", "report.html", "figures/*.png"),
        ),
    )
}  # fmt: skip

SHARED = tuple(name for name, stage in STAGES.items() if stage.share)  # any number of processes may work on one


def identity_of_given(purifier: str) -> str:
    """Digest of the purifier at a path. Raises UserError if there is none."""
    from maep.purifiers.given import given_identity

    return given_identity(purifier)


def _is_first_to_classify(settings: Settings) -> bool:
    own = settings.finetune.method != "none" and settings.finetune.objective
    return bool(own and OBJECTIVES[own].classifies and not OBJECTIVES[settings.objective.name].classifies)


def needs_of(stage: Stage, settings: Settings) -> tuple[str, ...]:
    """The stages before one.

    A purifier that is given (evaluation.purifier) is judged without training one, and one without weights to train
    needs no training stages. A report without certificates does not ask for them, and a training that sees clean
    images alone for no attack. A finetuning that asks the classifier, where the pretraining did not, needs it itself.
    """
    if stage.name == "report" and not settings.certify.sigma:
        return ("evaluate",)
    if stage.name == "pretrain" and OBJECTIVES[settings.objective.name].clean_images:
        return tuple(name for name in stage.needs if name != "attack")
    if stage.name == "finetune" and _is_first_to_classify(settings):
        return (*stage.needs, "classifier")
    if stage.name not in JUDGING:
        return stage.needs
    if settings.evaluation.purifier:
        return ("shards", "classifier")
    before = stages_before(settings.purifier.kind)
    return tuple(name for name in stage.needs if name in before)


def stages_of(settings: Settings) -> list[str]:
    """The stages of the whole pipeline for these settings, in order: the report and all that it needs."""
    needed, queue = set[str](), ["report"]
    while queue:
        name = queue.pop()
        needed.add(name)
        queue += needs_of(STAGES[name], settings)
    return [name for name in STAGES if name in needed]


def wanted_stages(settings: Settings, wanted: str) -> list[str]:
    """The stages that asking for one of them, or for all, means, in order.

    Evaluating a purifier that is given takes the images and the classifier with it, and ends with its report.
    Raises UserError for an unknown stage, one that the purifier does not need, or a purifier that cannot be
    read.
    """
    if wanted != "all" and wanted not in STAGES:
        fail(f"stage={wanted}: choose one of {', '.join([*STAGES, 'all'])}")
    names = _wanted(settings, wanted)
    if "certify" in names:
        from maep.evaluation.certification.trained_noise import check_noise

        check_noise(settings)
    return names


def _wanted(settings: Settings, wanted: str) -> list[str]:
    pipeline, purifier = stages_of(settings), settings.evaluation.purifier
    if purifier:
        identity_of_given(purifier)
    check_judging(settings)
    if wanted == "all" or (wanted == "evaluate" and purifier):
        return pipeline
    if wanted == "certify" and wanted not in pipeline:
        fail("stage=certify: set certify.sigma to the deviations of its noise, such as certify.sigma=[0.25]")
    if wanted == "certify" and purifier:
        return [name for name in pipeline if name not in ("evaluate", "report")]
    if wanted not in pipeline:
        needless = f"purifier.kind={settings.purifier.kind} needs none"
        if purifier:
            needless = f"judging a given purifier needs none (evaluation.purifier={purifier})"
        fail(f"stage={wanted}: {needless}; choose one of {', '.join([*pipeline, 'all'])}")
    return [wanted]
