"""Settings that a person gives and that change nothing, as another one decides: said, since who gave them believes
otherwise.

Given are those in a command's words and in files of one's own. None of them is refused: a sweep switches what decides.
Nothing is said of what the configurations that come with maep bring, such as epochs, nor of what a later layer replaces
by writing what decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from maep.config.consistency import objectives_of
from maep.config.implementations import OBJECTIVES, THREAT_MODELS, WITHOUT_GRADIENT
from maep.config.load import Writing, writings
from maep.config.schema import Settings
from maep.pipeline.stages import stages_of
from maep.runtime.console import say

READ_BY_OTHERS = ("classifiers", "teacher")  # of robust: refused by themselves where no training reads them
# Of classifier: what is read where one is trained.
OF_CLASSIFIER_TRAINING = (
    "initial", "purifier", "purified_noise", "epochs", "batch_size", "lr", "warmup", "milestones", "momentum",
    "weight_decay", "flip", "crop_padding", "nesterov", "train_norm", "train_eps", "train_step", "train_steps",
    "train_late_from", "attack_mode", "trades_weight", "awp_gamma", "awp_warmup", "dkl_alpha", "dkl_beta",
    "dkl_temperature", "soap_weight", "averaging", "averaging_decay", "save_every",
)  # fmt: skip
# Of evaluation: the threat models that read it.
OF_THREAT_MODELS = {
    "exact_gradients": frozenset(THREAT_MODELS) - set(WITHOUT_GRADIENT),
    "adaptive_images": frozenset(THREAT_MODELS) - {"oblivious"},
    "adaptive_attacks": frozenset(THREAT_MODELS) - {"oblivious", "blackbox"},
    "surrogate_share": frozenset({"surrogate"}),
    "auxiliary_weight": frozenset({"auxiliary-aware"}),
    "blackbox_attacks": frozenset({"blackbox"}),
    "blackbox_draws": frozenset({"blackbox"}),
}
# Of data: what a set is built by.
OF_BUILDS = (
    "format", "resize", "train_limit", "test_limit", "test_fraction", "shard_images", "encoding", "on_error",
)  # fmt: skip
TRADES = ("trades", "trades_awp")  # of classifier.training
ADVERSARIAL = ("pgd_at", "awp", *TRADES, "dkl")
# What some values of another setting read alone: {settings: (that one, its values)}.
GATED: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {
    ("attack.step", "attack.steps"): ("attack.method", ("bim", "pgd", "ssp")),
    ("attack.random_start",): ("attack.method", ("pgd",)),
    ("classifier.train_norm", "classifier.train_eps", "classifier.attack_mode"): ("classifier.training", ADVERSARIAL),
    ("classifier.train_step", "classifier.train_steps"): ("classifier.training", ADVERSARIAL[:-1]),
    ("classifier.trades_weight",): ("classifier.training", TRADES),
    ("classifier.awp_gamma", "classifier.awp_warmup"): ("classifier.training", ("awp", "trades_awp", "dkl")),
    ("classifier.dkl_alpha", "classifier.dkl_beta", "classifier.dkl_temperature"): ("classifier.training", ("dkl",)),
    ("classifier.purifier", "classifier.purified_noise"): ("classifier.training", ("purified",)),
    ("classifier.averaging_decay",): ("classifier.averaging", ("epochs", "steps")),
    ("classifier.soap_weight",): ("classifier.training", ("soap", "soap_rotation", "soap_reconstruction")),
    ("finetune.rank", "finetune.alpha"): ("finetune.method", ("lora", "dora")),
    ("finetune.targets",): ("finetune.method", ("lora", "dora", "ia3")),
    ("objective.smoothing",): ("objective.distance", ("smooth_l1",)),
}
# Of objective: the objectives that read it.
OF_OBJECTIVES = {
    "rec_weight": ("maep",),
    "target": ("maep",),
    "trades_weight": ("trades_pixel", "trades_latent"),
    "clean_weight": ("robust",),
    "kl_weight": ("robust",),
    "pixel_weight": ("robust", "stability", "feature"),
    "gan_weight": ("feature",),
    "code_weight": ("code",),
    "noise": ("nim", "stability"),
    "noise_mean": ("nim", "stability"),
}


@dataclass(frozen=True)
class Unread:
    """Settings without effect. names: theirs; deciders: of those that decide in their place; reason: why, in words.

    by: of those that a person may not know to have brought it about: it is said to who writes them, too.
    """

    names: tuple[str, ...]
    deciders: tuple[str, ...]
    reason: str
    by: tuple[str, ...] = ()

    def given(self, written: Mapping[str, Writing]) -> list[str]:
        """Those that a person wrote, or brought about, and that no later layer replaced."""
        last = max((written[name].layer if name in written else -1 for name in self.deciders), default=-1)
        mine = {name: writing.layer for name, writing in written.items() if writing.is_users}
        brought = any(name in mine for name in self.by)
        return [name for name in self.names if brought or mine.get(name, -2) >= last]

    def line(self, settings: Settings, names: Sequence[str]) -> str:
        """What is said of some of them: one with its value."""
        named = ", ".join(names) if len(names) > 1 else f"{names[0]}={_value_of(settings, names[0])}"
        return f"{named}: without effect: {self.reason}"


def unread_settings(settings: Settings) -> Iterator[Unread]:
    """All that these settings have no use for, whoever wrote them and whether anybody did.

    One that is there twice has no effect for two reasons, of which the first goes furthest.
    """
    stages = stages_of(settings)
    yield from _of_data(settings)
    yield from _of_classifier(settings)
    yield from _of_trainings(settings, stages)
    if "pretrain" in stages:
        yield from _of_objectives(settings)
    for names, (decider, values) in GATED.items():
        if (value := _value_of(settings, decider)) not in values:
            yield Unread(names, (decider,), f"{decider}={value}; read for {', '.join(values)} alone")
    yield from _of_judging(settings)
    if settings.purifier.kind == "dram" and settings.dram.false_alarms == 1:  # type: ignore[attr-defined]
        names = _names("dram", "detection", "calibration_images")
        yield Unread(names, ("dram.false_alarms",), "dram.false_alarms=1 repairs every image, and judges none")


def _of_data(settings: Settings) -> Iterator[Unread]:
    data = settings.data
    if data.shards:
        yield Unread(_names("data", "root", *OF_BUILDS), ("data.shards",), f"data.shards={data.shards} are used")
    if settings.attack.online:
        names = _names("attack", "shards", "batch_size")
        yield Unread(names, ("attack.online",), "attack.online=true makes the adversarial images")


def _of_classifier(settings: Settings) -> Iterator[Unread]:
    """Its training is that of further classifiers too."""
    classifier = settings.classifier
    if classifier.weights and all("=" in word for word in settings.robust.classifiers):
        why = f"classifier.weights={classifier.weights} are used, and none are trained"
        yield Unread(_names("classifier", *OF_CLASSIFIER_TRAINING), ("classifier.weights",), why)
    end = f"not before the end, classifier.epochs={classifier.epochs}"
    if late := [f"{each:g}" for each in classifier.milestones if each >= classifier.epochs]:
        yield Unread(("classifier.milestones",), (), f"{', '.join(late)} {end}", by=("classifier.epochs",))
    if classifier.awp_warmup >= classifier.epochs:
        yield Unread(("classifier.awp_warmup",), (), f"AWP would begin {end}", by=("classifier.epochs",))
    if classifier.train_norm == "L2" and classifier.training in TRADES:
        deciders = _names("classifier", "training", "train_norm")
        why = f"classifier.training={classifier.training} in L2 takes steps of 2 train_eps / train_steps"
        yield Unread(("classifier.train_step",), deciders, why)
    if not classifier.train_late_steps:
        late_steps = "classifier.train_late_steps"
        yield Unread(("classifier.train_late_from",), (late_steps,), f"{late_steps}=0: no attack takes its place")


def _of_trainings(settings: Settings, stages: Sequence[str]) -> Iterator[Unread]:
    judged, kind, method = settings.evaluation.purifier, settings.purifier.kind, settings.finetune.method
    of_pretraining = tuple(name for section in ("pretrain", "objective", "attack") for name in _all(settings, section))
    # The method says itself that there is no finetuning, also where there could be none.
    of_finetuning = tuple(name for name in _all(settings, "finetune") if name != "finetune.method")
    if judged:
        why = f"evaluation.purifier={judged} is judged, and none is trained"
        yield Unread(of_pretraining + of_finetuning, ("evaluation.purifier",), why)
    elif "pretrain" not in stages:
        yield Unread(of_pretraining + of_finetuning, ("purifier.kind",), f"purifier.kind={kind} is not trained")
    elif "finetune" not in stages:
        yield Unread(of_finetuning, ("purifier.kind",), f"purifier.kind={kind} is not finetuned")
    elif method == "none":
        yield Unread(of_finetuning, ("finetune.method",), "finetune.method=none trains nothing")
    yield from _of_network(settings)
    for name in ("pretrain", "finetune"):
        if steps := getattr(settings, name).steps:
            why = f"{name}.steps={steps} is its length; set {name}.steps=null to train by epochs"
            yield Unread((f"{name}.epochs",), (f"{name}.steps",), why)
    if "whole" not in (settings.pretrain.attacked, settings.finetune.attacked):
        names = tuple(name for name in _all(settings, "robust") if name not in _names("robust", *READ_BY_OTHERS))
        why = "read by trainings against the whole alone (pretrain.attacked=whole)"
        yield Unread(names, ("pretrain.attacked", "finetune.attacked"), why)
    if not settings.robust.late_steps:
        yield Unread(("robust.late_from",), ("robust.late_steps",), "robust.late_steps=0: no attack takes its place")
    if not settings.robust.check_every:
        names = _names("robust", "check_images", "overfit_drop")
        yield Unread(names, ("robust.check_every",), "robust.check_every=0 holds out no images")


def _of_network(settings: Settings) -> Iterator[Unread]:
    model = settings.model
    if not model.refine_width:
        names = _names("model", "refine_depth", "refine_scale")
        yield Unread(names, ("model.refine_width",), "model.refine_width=0: nothing refines")
        if model.prediction != "residual":
            deciders = _names("model", "prediction", "refine_width")
            why = f"model.prediction={model.prediction} and model.refine_width=0 predict no residual"
            yield Unread(("model.residual_scale",), deciders, why)
    for name in ("pretrain", "finetune"):
        if not getattr(settings, name).mask_ratio:
            yield Unread((f"{name}.mask_until",), (f"{name}.mask_ratio",), f"{name}.mask_ratio=0 hides nothing")


def _of_objectives(settings: Settings) -> Iterator[Unread]:
    """An objective is of the pretraining, and of the finetuning unless that has its own."""
    deciders, used = ("objective.name", "finetune.objective"), set(objectives_of(settings).values())
    given = f"{deciders[0] if len(used) == 1 else ' and '.join(deciders)}={' and '.join(sorted(used))}"
    if not any(OBJECTIVES[name].attacks for name in used):
        yield Unread(_all(settings, "attack"), deciders, f"{given} trains on no attacked image")
    for name, objectives in OF_OBJECTIVES.items():
        if used.isdisjoint(objectives):
            yield Unread((f"objective.{name}",), deciders, f"{given}; read for {', '.join(objectives)} alone")
    if not settings.robust.teacher:
        yield Unread(
            ("objective.soft_weight",), ("robust.teacher",), "no robust.teacher is named, whose answers it weighs"
        )


def _of_judging(settings: Settings) -> Iterator[Unread]:
    evaluation, certify = settings.evaluation, settings.certify
    models = f"evaluation.threat_models=[{', '.join(evaluation.threat_models)}]"
    for name, attackers in OF_THREAT_MODELS.items():
        if attackers.isdisjoint(evaluation.threat_models):
            why = f"{models}; read for {', '.join(each for each in THREAT_MODELS if each in attackers)} alone"
            yield Unread((f"evaluation.{name}",), ("evaluation.threat_models",), why)
    if not certify.sigma:
        names = tuple(name for name in _all(settings, "certify") if name != "certify.sigma")
        yield Unread(names, ("certify.sigma",), "certify.sigma=[] makes no certificates")
    if not certify.attack_radii:
        names = _names("certify", "attack_images", "attack", "attack_draws")
        yield Unread(names, ("certify.attack_radii",), "certify.attack_radii=[] attacks none of them")


def say_unread(settings: Settings, cfg: str, words: Sequence[str]) -> None:
    """Say those that a command's `key=value` words, or files of the person who gives it, bring."""
    written, said = writings(cfg, words), set[str]()
    for unread in unread_settings(settings):
        if names := [name for name in unread.given(written) if name not in said]:
            say(unread.line(settings, names))
            said.update(names)


def say_unread_of_points(points: Sequence[tuple[Settings, Mapping[str, Writing]]]) -> None:
    """Of a sweep: say those that none of its points has a use for, among those to which a person gives them.

    points: the settings of each, and who wrote them.
    """
    lines: dict[str, str] = {}
    read: set[str] = set()
    for settings, written in points:
        unread: dict[str, Unread] = {}
        for each in unread_settings(settings):
            unread = dict.fromkeys(each.given(written), each) | unread
        lines = {name: each.line(settings, [name]) for name, each in unread.items()} | lines
        read |= {name for name, writing in written.items() if writing.is_users} - unread.keys()
    for name, line in lines.items():
        if name not in read:
            say(line)


def _names(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _all(settings: Settings, section: str) -> tuple[str, ...]:
    """The settings of a section."""
    return _names(section, *(item.name for item in fields(getattr(settings, section))))


def _value_of(settings: Settings, name: str) -> object:
    section, _, key = name.partition(".")
    value = getattr(getattr(settings, section), key)
    return f"{value:g}" if isinstance(value, float) else value
