"""What settings must fulfil together, beyond the range of each."""

import math
import os
from collections.abc import Sequence

from maep.config.architectures import is_own
from maep.config.attack_names import check_attack, check_attacks
from maep.config.data_settings import ClassifierSettings
from maep.config.evaluation_settings import CertifySettings, EvaluationSettings
from maep.config.implementations import OBJECTIVES
from maep.config.published_classifiers import PUBLISHED
from maep.config.schema import PurifierSettings, Settings
from maep.config.training_settings import ModelSettings, RobustSettings, TrainSettings
from maep.runtime.errors import fail
from maep.runtime.text import unfit_name

MOST_PATCHES = 2**16  # of a tile: attention takes their square, 16 GB a head in fp32 where it is not fused
PIXELS = "[0,1] pixels"  # the unit of budgets, steps and whatever else is a difference of pixels
# How architectures end that have the part which a joint training of SOAP's trains.
SOAP_PARTS = {"soap_rotation": "_rotation", "soap_reconstruction": "_autoencoder"}
LEVELS = 255  # of an 8-bit image: whoever writes a budget above 1 most likely counts in these
# Settings that become the name of a folder below runs/ or the cache.
NAMES = ("run.name", "data.name", "classifier.arch")


def check_budget(value: float, norm: str, name: str) -> None:
    """Raise UserError for a budget, or a step, that cannot be one of `norm` in units of the [0, 1] pixel range.

    value: finite and at least 0; of Linf at most 1, of L2 any. name: what it is, for the message, such as
    `attack.eps`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        fail(f"{name}={value}: expected a finite number, at least 0")
    if norm == "Linf" and value > 1:
        fail(f"{name}={value:g}: above 1, and pixels lie in [0, 1]; did you mean {value:g}/{LEVELS}?")


def _check_names(settings: Settings) -> None:
    for key in NAMES:
        section, _, part = key.partition(".")
        name = getattr(getattr(settings, section), part)
        # timm's names of models elsewhere, such as hf-hub:timm/resnet18 or local-dir:/models/mine, have slashes.
        is_model = key == "classifier.arch" and not name.startswith("/")
        parts = filter(None, name.split("/")) if is_model else [name]
        if problem := next(filter(None, map(unfit_name, parts)), ""):
            fail(f"{key}={name}: {problem}; it becomes the name of a folder: use letters, digits, - and _")


def check_model(model: ModelSettings, source: str = "") -> None:
    """Raise UserError where settings of the network do not fit together. source: where they were saved."""
    where = f"{source}: " if source else ""
    if model.image_size % model.patch_size:
        fail(f"{where}model.patch_size={model.patch_size}: does not divide model.image_size={model.image_size}")
    patches = (model.image_size // model.patch_size) ** 2
    if patches > MOST_PATCHES:
        fail(f"{where}model.image_size={model.image_size}: makes {patches} patches; at most {MOST_PATCHES}")
    for part in ("encoder", "decoder"):
        width, heads = getattr(model, f"{part}_width"), getattr(model, f"{part}_heads")
        if width % heads or width % 4:
            fail(f"{where}model.{part}_width={width}: must be a multiple of 4 and of model.{part}_heads={heads}")
    if model.image_size % model.refine_scale:
        fail(f"{where}model.refine_scale={model.refine_scale}: does not divide model.image_size={model.image_size}")
    if model.stem_scale > 1 and (not model.stem_width or model.patch_size % model.stem_scale):
        fail(f"{where}model.stem_scale={model.stem_scale}: wants a stem (stem_width, stem_depth), and has to divide "
             f"model.patch_size={model.patch_size}")  # fmt: skip
    if bool(model.stem_width) != bool(model.stem_depth):
        fail(f"{where}model.stem_width and model.stem_depth: set both or neither")


def _check_cuda_graphs(settings: Settings) -> None:
    compute = settings.compute
    if not compute.cuda_graphs:
        return
    if not compute.compile:
        fail("compute.cuda_graphs=true: torch.compile makes them; set compute.compile=true")
    if compute.zero_stage is not None:
        fail(f"compute.cuda_graphs=true: not under DeepSpeed; unset compute.zero_stage={compute.zero_stage}")
    for name, train in (("pretrain", settings.pretrain), ("finetune", settings.finetune)):
        if train.accumulation > 1:  # the losses of one micro-batch lie where the next one's graph writes its own
            fail(f"compute.cuda_graphs=true: {name}.accumulation={train.accumulation}: must be 1")


def check_consistency(settings: Settings) -> None:
    """Raise UserError, naming the settings, where values that are valid one by one do not fit together."""
    model, data = settings.model, settings.data
    if model.image_size > data.image_size:
        fail(f"model.image_size={model.image_size}: larger than data.image_size={data.image_size}")
    if data.cache_bytes and data.cache_bytes < 2 * data.cache_block:
        fail(f"data.cache_bytes={data.cache_bytes}: must hold two blocks of {data.cache_block}, or be 0")
    if settings.purify.overlap >= model.image_size:
        fail(f"purify.overlap={settings.purify.overlap}: must be below model.image_size={model.image_size}")
    if len(settings.classifier.mean) != 3 or len(settings.classifier.std) != 3:
        fail("classifier.mean and classifier.std: three numbers each, one a channel")
    if bool(settings.finetune.clean_shards) != bool(settings.finetune.adversarial_shards):
        fail("finetune.clean_shards and finetune.adversarial_shards: set both or neither")
    if settings.finetune.clean_shards and settings.finetune.source:
        fail("finetune.source and finetune.clean_shards: both name other images; set one")
    is_own(settings.classifier.arch)
    _check_evaluation(settings.evaluation)
    _check_published(settings)
    _check_soap(settings.classifier)
    _check_training_attack(settings.classifier)
    _check_names(settings)
    _check_masks(settings)
    _check_noise(settings)
    _check_attack(settings)
    _check_teacher(settings)
    _check_cuda_graphs(settings)
    _check_certificates(settings.certify)
    _check_discriminator(settings)
    _check_optimizers(settings)
    if settings.purifier.kind == PurifierSettings().kind:  # other kinds say themselves what their networks are
        check_model(model)
        check_objective(settings, settings.purifier.kind, "images")


def _check_optimizers(settings: Settings) -> None:
    """AdamW divides by 1 - beta."""
    for section, train in (("pretrain", settings.pretrain), ("finetune", settings.finetune)):
        for name in ("beta1", "beta2"):
            if getattr(train, name) >= 1:
                fail(f"{section}.{name}={getattr(train, name):g}: must be below 1")


def objectives_of(settings: Settings) -> dict[str, str]:
    """Objectives by the setting that names them: the pretraining's, and the finetuning's where it has its own."""
    names = {"objective.name": settings.objective.name}
    if settings.finetune.method != "none" and settings.finetune.objective:
        names["finetune.objective"] = settings.finetune.objective
    return names


def check_objective(settings: Settings, kind: str, network: str) -> None:
    """Raise UserError unless the objective trains such a network, of a kind of purifiers, as `OBJECTIVES` calls it."""
    for key, name in objectives_of(settings).items():
        if OBJECTIVES[name].network != network:
            fitting = ", ".join(each for each, objective in OBJECTIVES.items() if objective.network == network)
            fail(f"{key}={name}: trains no network of purifier.kind={kind}; choose one of {fitting}")


def _check_discriminator(settings: Settings) -> None:
    """The purifier's loss takes its weights for constants, which ZeRO-3 leaves on other processes."""
    discriminates = any(OBJECTIVES[name].discriminates for name in objectives_of(settings).values())
    if settings.objective.gan_weight and discriminates and settings.compute.zero_stage == 3:
        fail(
            f"objective.gan_weight={settings.objective.gan_weight:g}: its discriminator is not trained under "
            "compute.zero_stage=3; choose 2 at most, or unset it"
        )


def _check_certificates(certify: CertifySettings) -> None:
    """There must be draws enough to certify an image whose draws all agree."""
    check_attack(certify.attack, "certify.attack")
    if not certify.sigma:
        return
    _check_apart("certify.sigma", certify.sigma)
    if certify.draws < certify.first_draws:
        fail(f"certify.draws={certify.draws}: must be at least certify.first_draws={certify.first_draws}")
    if certify.alpha ** (1 / certify.draws) <= 0.5:
        fewest = math.floor(math.log2(1 / certify.alpha)) + 1
        fail(f"certify.draws={certify.draws}: certifies nothing at certify.alpha={certify.alpha:g}; at least {fewest}")
    if certify.attack_radii and 2 ** (1 - certify.attack_draws) > certify.alpha:
        fewest = math.floor(math.log2(2 / certify.alpha)) + 1
        fail(
            f"certify.attack_draws={certify.attack_draws}: no image could be shown to have fallen at "
            f"certify.alpha={certify.alpha:g}; at least {fewest}"
        )


def _check_evaluation(evaluation: EvaluationSettings) -> None:
    """Something must be attacked, by someone, within some budget."""
    threats = evaluation.threat_models
    needed = {"threat_models": True, "eps": True, "attacks": set(threats) - {"blackbox"}}
    needed["blackbox_attacks"] = "blackbox" in threats
    for name, is_needed in needed.items():
        if is_needed and not getattr(evaluation, name):
            fail(f"evaluation.{name}=[]: is empty; name one at least")
    if not evaluation.adaptive_images and "oblivious" not in threats:
        fail(
            f"evaluation.adaptive_images=0: leaves nothing to evaluation.threat_models=[{', '.join(threats)}]; set it "
            "above 0, or add oblivious"
        )
    if evaluation.exact_gradients and evaluation.precision != "fp32":
        fail(
            f"evaluation.precision={evaluation.precision}: attacks follow a rounded model, and "
            "evaluation.exact_gradients=true asks for the defense's own gradients; set it to fp32"
        )
    check_attacks([*evaluation.attacks, *evaluation.adaptive_attacks], evaluation.blackbox_attacks)
    _check_apart("evaluation.eps", evaluation.eps)
    if "twin" in threats and not evaluation.twin:
        fail("evaluation.threat_models: twin: set evaluation.twin to the run of another purifier of the same kind")
    if evaluation.twin and "twin" not in threats:
        fail(f"evaluation.twin={evaluation.twin}: nobody follows it; add twin to evaluation.threat_models")


def _check_apart(key: str, values: Sequence[float]) -> None:
    """Raise UserError for two numbers whose records would lie in one folder: workers would overwrite them for ever."""
    names: dict[str, float] = {}
    for value in values:
        if names.setdefault(f"{value:.6g}", value) != value:
            first = names[f"{value:.6g}"]
            fail(f"{key}: {first!r} and {value!r} are one number to six digits, as records are named; leave one out")


def _check_noise(settings: Settings) -> None:
    """An objective on noise has no attack beside it."""
    name, attacked = settings.objective.name, (settings.pretrain.attacked, settings.finetune.attacked)
    if not OBJECTIVES[name].attacks and (settings.attack.online or "whole" in attacked):
        fail(f"objective.name={name}: trains on noise, not on attacks; leave out attack.online and attacked=whole")
    tuned = settings.finetune.objective if settings.finetune.method != "none" else None
    if tuned and OBJECTIVES[tuned].noises != OBJECTIVES[name].noises:
        ours, theirs = ("noise" if OBJECTIVES[each].noises else "adversarial images" for each in (tuned, name))
        fail(
            f"finetune.objective={tuned}: trains on {ours}, objective.name={name} on {theirs}; choose two that train "
            "on the same"
        )


def _check_attack(settings: Settings) -> None:
    """What is attacked must be there while it is attacked, and attacked as it will be used."""
    attack, trainings = settings.attack, {"pretrain": settings.pretrain, "finetune": settings.finetune}
    if attack.method == "nfgsm" and (attack.norm != "Linf" or not attack.online):
        fail("attack.method=nfgsm: leaves the budget, in Linf, for training alone; set attack.norm=Linf, attack.online")
    if attack.method == "ssp" and (attack.norm != "Linf" or attack.targeted):
        fail("attack.method=ssp: moves features, within Linf; set attack.norm=Linf and attack.targeted=false")
    if settings.finetune.method == "none":
        del trainings["finetune"]
    for section in (name for name, train in trainings.items() if train.attacked == "whole"):
        if not attack.online:
            fail(f"{section}.attacked=whole: changes with every step; set attack.online=true with it")
        if OBJECTIVES[settings.objective.name].attacked and settings.robust.check_every:
            fail(
                f"robust.check_every={settings.robust.check_every}: attacks held-out images through the network, and "
                f"objective.name={settings.objective.name} trains one that purifies in several steps; set it to 0"
            )
        if attack.method == "ssp":
            fail(f"attack.method=ssp: attacks the classifier's features; set {section}.attacked=classifier")
        if attack.norm != "Linf" or attack.targeted:
            fail(f"{section}.attacked=whole: is untargeted, in Linf; set attack.norm=Linf and attack.targeted=false")
        if settings.compute.zero_stage == 3:
            fail(f"{section}.attacked=whole: needs the purifier whole on every process; set compute.zero_stage up to 2")
        if settings.model.image_size != settings.data.image_size:
            sizes = f"model.image_size={settings.model.image_size}, data.image_size={settings.data.image_size}"
            fail(f"{section}.attacked=whole: the classifier takes whole images, not crops; make {sizes} equal")
    is_whole = any(train.attacked == "whole" for train in trainings.values())
    _check_classifiers(settings.classifier, settings.robust.classifiers, is_whole)
    if is_whole:
        _check_schedule(settings.robust)


def _check_schedule(robust: RobustSettings) -> None:
    """A training that attacks at all ends under the whole of attack.eps."""
    clean, ramp = robust.clean_until, robust.eps_ramp
    if clean < 1 < clean + ramp:
        fail(
            f"robust.clean_until={clean:g}, robust.eps_ramp={ramp:g}: the training ends before its budget is "
            "attack.eps; choose shares of it that add up to 1 at most"
        )


def _check_classifiers(own: ClassifierSettings, words: list[str], is_whole: bool) -> None:
    """Further classifiers are named, none of them twice, and there is a training that meets them."""
    if words and not is_whole:
        named = ", ".join(words)
        fail(f"robust.classifiers=[{named}]: only a training against the whole meets them; set pretrain.attacked=whole")
    met = {(own.arch, _resolved(own.weights))}
    if own.initial and not own.weights and any("=" not in word for word in words):
        fail("classifier.initial: has the weights of one network; give those of robust.classifiers, as ARCH=PATH")
    for word in words:
        arch, given, path = word.partition("=")
        if not arch or (given and not path):
            fail(f"robust.classifiers: {word!r} names none; give an architecture, or ARCH=PATH of its weights")
        is_own(arch, "robust.classifiers")
        if (arch, _resolved(path)) in met:
            fail(f"robust.classifiers: {word}: is there twice, or is the run's own classifier; name each once")
        met.add((arch, _resolved(path)))


def _resolved(weights: str | None) -> str:
    """One name of a file, however it is written; "" for none, where the classifier stage trains.

    Also of one that cannot be there, such as a link to itself: who reads it says so.
    """
    return os.path.realpath(os.path.expanduser(weights)) if weights else ""


def _check_teacher(settings: Settings) -> None:
    """A teacher is named with its weights, and there is a training that learns from it."""
    word, finetune = settings.robust.teacher, settings.finetune
    if word is None:
        return
    arch, _, path = word.partition("=")
    if not (arch and path):
        fail(f"robust.teacher={word}: expected ARCH=PATH, an architecture and the file of its weights")
    is_own(arch, "robust.teacher")
    tuned = finetune.method != "none"
    if "robust" not in (settings.objective.name, finetune.objective if tuned else None):
        fail(f"robust.teacher={word}: only objective.name=robust asks for its answers; leave it out")
    if tuned and finetune.clean_shards and (finetune.objective or settings.objective.name) == "robust":
        fail("robust.teacher: answers for the run's own images; leave out finetune.clean_shards")
    names = {"pretrain": settings.objective.name, "finetune": finetune.objective or settings.objective.name}
    for section, train in (("pretrain", settings.pretrain), *([("finetune", finetune)] if tuned else [])):
        if train.source and names[section] == "robust":
            fail(f"robust.teacher: answers for the run's own images; leave out {section}.source")


def _check_soap(classifier: ClassifierSettings) -> None:
    """A joint training of SOAP's has the part of the classifier that it trains."""
    suffix = SOAP_PARTS.get(classifier.training, "")
    if not classifier.arch.endswith(suffix):
        fail(
            f"classifier.training={classifier.training}: {classifier.arch} has not what it trains; choose "
            f"classifier.arch=…{suffix}, such as soap_resnet{suffix}"
        )


def _check_training_attack(classifier: ClassifierSettings) -> None:
    """Only PGD-AT has an attack to choose: that of the others belongs to their losses. DKL and N-FGSM are of L∞."""
    if classifier.train_norm == "L2":
        for name, value in (("training", "dkl"), ("train_attack", "nfgsm")):
            if getattr(classifier, name) == value:
                fail(f"classifier.train_norm=L2: classifier.{name}={value} is defined in Linf alone; set it to Linf")
    if classifier.training in ("pgd_at", "awp"):
        return
    for name, unset in (("train_attack", "pgd"), ("train_late_steps", 0)):
        if (value := getattr(classifier, name)) != unset:
            fail(f"classifier.{name}={value}: only for classifier.training=pgd_at or awp, not {classifier.training}")


def _check_published(settings: Settings) -> None:
    """A published model is what its identifier says, and its weights are given."""
    name, classifier = settings.classifier.robustbench, settings.classifier
    if name is None:
        return
    for key, value in PUBLISHED[name].settings.items():
        given = getattr(classifier, key.partition(".")[2])
        if given != value:
            fail(f"{key}={given}: classifier.robustbench={name} has {value}; leave {key} out")
    if classifier.weights is None:
        fail(f"classifier.robustbench={name}: set classifier.weights to its file; none is fetched")


def _check_masks(settings: Settings) -> None:
    """Masking ratios must fit the objective: some are defined on hidden patches, some on whole images."""
    name, finetune = settings.objective.name, settings.finetune
    trainings: dict[str, tuple[str, TrainSettings]] = {"pretrain": (name, settings.pretrain)}
    if finetune.method != "none":
        trainings["finetune"] = finetune.objective or name, finetune
    for section, (objective, train) in trainings.items():
        hides = train.mask_ratio > 0 and train.mask_until > 0
        key = "finetune.objective" if section == "finetune" and finetune.objective else "objective.name"
        if OBJECTIVES[objective].whole_images and hides:
            fail(f"{key}={objective}: is defined on whole images; set {section}.mask_ratio=0")
        if objective == "mae" and not (hides and train.mask_until == 1):
            also = " (or finetune.method=none)" if section == "finetune" else ""
            remedy = f"set {section}.mask_ratio above 0 and {section}.mask_until=1{also}"
            fail(f"{key}=mae: learns from hidden patches alone; {remedy}")
    if name == "mlm" and not (settings.pretrain.mask_ratio > 0 and 0 < settings.pretrain.mask_until < 1):
        fail(
            "objective.name=mlm: has two stages; set pretrain.mask_ratio above 0 and pretrain.mask_until within (0, 1)"
        )
