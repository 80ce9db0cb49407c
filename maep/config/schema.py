"""Every setting of the system: name, type, default, unit, range and one line of help.

`maep.config.load` merges YAML and the command line onto these classes; nothing else defines a setting.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from maep.config.implementations import (
    ATTACKED,
    FINETUNING,
    GRADIENT_ATTACKS,
    NOISES,
    NORMS,
    OBJECTIVES,
    SAMPLINGS,
    THREAT_MODELS,
)
from maep.config.published_classifiers import PUBLISHED


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: Iterable[Any] | str = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    affects_result: bool | tuple[str, ...] = True,
    stands_in: bool = False,
    added: bool | tuple[str, ...] = False,
) -> Any:
    """A dataclass field with its documentation, its range and what it decides.

    choices: the valid values, or `module:NAME` of the registry that has them. low <= value <= high, value > above.
    affects_result: whether artefacts depend on it: all that read its section, none, or those named
    (`maep.config.identity.READS`). stands_in: it names an artefact made elsewhere, whose content counts, not its path.
    added: it came later; identities leave it out while it has its default, so that what was made before stays valid
    (of all artefacts, or of those named).
    """
    metadata = {
        "help": help, "unit": unit, "choices": choices if isinstance(choices, str) else tuple(choices), "low": low,
        "high": high, "above": above, "affects_result": affects_result, "stands_in": stands_in, "added": added,
    }  # fmt: skip
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunSettings:
    name: str = setting("default", "name of the run", affects_result=("report",))
    dir: str = setting("runs/${run.name}", "run directory", unit="path", affects_result=False)
    cache: str = setting("runs/cache", "where artefacts shared between runs live", unit="path", affects_result=False)
    seed: int = setting(0, "seed of order, masks, augmentation, attacks and initialisation", low=0)


@dataclass
class DataSettings:
    name: str = setting("digits", "data set name, used in reports")
    root: str | None = setting(
        None, "images: directory, .zip or .tar; the embedded digits if data.format=digits", unit="path"
    )
    format: str = setting(
        "auto",
        "layout of data.root",
        choices=("auto", "digits", "folders", "labels", "cifar10", "cifar100", "imagenet"),
    )
    image_size: int = setting(32, "height and width of the stored images", unit="pixels", low=8)
    resize: int | None = setting(None, "shorter side before the centre crop; unset: image_size", unit="pixels", low=8)
    train_limit: int | None = setting(
        None, "training images taken, balanced over classes; unset: all", unit="images", low=1
    )
    test_limit: int | None = setting(None, "test images taken, balanced over classes; unset: all", unit="images", low=1)
    test_fraction: float = setting(
        0.2, "share of each class held out where the source has no test split; 1.0: all", low=0.0, high=1.0
    )
    shard_images: int = setting(1000, "images a shard, at most", unit="images", low=1)
    encoding: str = setting(
        "png",
        "how images are stored, all without loss: png and webp take less room, raw (uint8) is read many times faster",
        choices=("png", "webp", "raw"),
    )
    on_error: str = setting("raise", "what a corrupt image does", choices=("raise", "skip"), affects_result=("shards",))
    max_pixels: int = setting(
        64_000_000,  # the largest cameras that people hold have 61; decoding takes up to 8 bytes a pixel, so 0.5 GB
        "an image of more is a corrupt image",
        unit="pixels",
        low=1,
        affects_result=("shards",),
        added=True,
    )
    background: str = setting(
        "white",  # what browsers and viewers show transparent images on, and what most of them are drawn for
        "what the transparent pixels of an image lie on",
        choices=("white", "black", "grey"),
        affects_result=("shards",),
        added=True,
    )
    workers: int | None = setting(
        2,
        "processes that decode, encode and load; null: from the cores of the task, to feed an accelerator",
        unit="processes",
        low=0,
        affects_result=False,
    )
    shards: str | None = setting(
        None,
        "existing clean shards to use instead of building them",
        unit="path, or address such as https:// or s3://",
        stands_in=True,
    )
    read_timeout: float = setting(
        30.0, "one read of remote shards, at most", unit="seconds", above=0.0, affects_result=False
    )
    read_attempts: int = setting(6, "times that a read of remote shards is tried", low=1, affects_result=False)
    read_backoff: float = setting(
        0.5,
        "wait, at most, before the second try; twice as long before each further one",
        unit="seconds",
        low=0.0,
        affects_result=False,
    )
    cache_dir: str = setting(
        "${run.cache}/blocks",
        "where blocks of remote shards are kept; best a local disk",
        unit="path",
        affects_result=False,
    )
    cache_bytes: int = setting(
        20 * 10**9, "size of the block cache, at most; 0: none", unit="bytes", low=0, affects_result=False
    )
    cache_block: int = setting(
        2**18,
        "size of a block: of remote shards so much is read at least",
        unit="bytes",
        low=4096,
        affects_result=False,
    )


@dataclass
class ClassifierSettings:
    arch: str = setting(
        "cifar_resnet20",
        "cifar_resnet20…56, cifar_resnet32w, wrn28_1, wrn28_10, …, dm_wrn28_10, dm_preact18, soap_resnet, any timm "
        "model name; cifar_resnetN_rotation, soap_resnet_rotation: with SOAP's head for turns; …_autoencoder: with a "
        "decoder",
    )
    weights: str | None = setting(
        None, "safetensors or torch file; unset: the classifier stage trains one", unit="path", stands_in=True
    )
    robustbench: str | None = setting(
        None,
        "model of RobustBench whose file classifier.weights is; sets arch, mean and std; reports check its accuracy",
        choices=(None, *PUBLISHED),
        affects_result=False,  # what it sets does
        added=True,
    )
    mean: list[float] = setting([0.4914, 0.4822, 0.4465], "channel means of its input", unit="[0,1] pixels")
    std: list[float] = setting(
        [0.2471, 0.2435, 0.2616], "channel deviations of its input", unit="[0,1] pixels", above=0.0
    )
    timm_args: dict[str, Any] = field(default_factory=dict, metadata={"help": "further arguments of timm.create_model"})
    epochs: int = setting(200, "training length", unit="epochs", low=1)
    batch_size: int = setting(128, "images a step", unit="images", low=1)
    lr: float = setting(0.1, "peak learning rate of SGD", above=0.0)
    warmup: float = setting(0.0, "share of the training that warms up", low=0.0, high=1.0)
    milestones: list[float] = setting(
        [], "when the rate falls to a tenth, in place of a cosine to 0 (TRADES, AWP, SOAP)", unit="epochs", above=0.0,
        added=True,
    )  # fmt: skip
    momentum: float = setting(0.9, "Nesterov momentum", low=0.0, high=1.0)
    weight_decay: float = setting(5e-4, "weight decay", low=0.0)
    flip: bool = setting(True, "mirror images at random")
    crop_padding: int = setting(4, "padding of the random crop", unit="pixels", low=0)
    nesterov: bool = setting(True, "Nesterov's form of the momentum", added=True)
    training: str = setting(
        "standard",
        "what the classifier stage minimises: cross-entropy, an adversarial training (awp: pgd_at with AWP), or one of "
        "SOAP's joint losses",
        choices=(
            "standard",
            "pgd_at",
            "trades",
            "awp",
            "trades_awp",
            "dkl",
            "soap",
            "soap_rotation",
            "soap_reconstruction",
        ),
        added=True,
    )
    train_eps: float = setting(8 / 255, "L∞ budget of adversarial training", unit="[0,1] pixels", above=0.0, added=True)
    train_step: float = setting(
        2 / 255, "step size of its attack (dkl: half the budget)", unit="[0,1] pixels", above=0.0, added=True
    )
    train_steps: int = setting(10, "steps of its attack (dkl: 5)", low=1, added=True)
    train_attack: str = setting(
        "pgd", "attack of pgd_at and awp; nfgsm: one step of the whole budget, from noise of twice that, not cut to it",
        choices=("pgd", "nfgsm"), added=True,
    )  # fmt: skip
    train_late_steps: int = setting(
        0, "iterations of PGD that take that attack's place at the end (pgd_at, awp); 0: it stays", low=0, added=True
    )
    train_late_from: float = setting(0.8, "share of the epochs after which they do", low=0.0, high=1.0, added=True)
    attack_mode: str = setting(
        "eval",
        "mode of the network under that attack; train: batch norms take the batch's statistics, and keep none",
        choices=("eval", "train"),
        added=True,
    )
    trades_weight: float = setting(6.0, "beta of trades and trades_awp; 0: cross-entropy", low=0.0, added=True)
    awp_gamma: float = setting(
        0.005, "size of AWP's move of each weight, of its norm (awp: 0.01 published; trades_awp, dkl: 0.005); 0: none",
        low=0.0, high=1.0, added=True,
    )  # fmt: skip
    awp_warmup: int = setting(
        0, "epochs before AWP begins (trades_awp, dkl: 10 published)", unit="epochs", low=0, added=True
    )
    dkl_alpha: float = setting(4.0, "weight of DKL's cross-entropy between the pair", low=0.0, added=True)
    dkl_beta: float = setting(20.0, "weight of DKL's distances between the pair's logits", low=0.0, added=True)
    dkl_temperature: float = setting(4.0, "temperature of DKL's means of classes", above=0.0, added=True)
    soap_weight: float = setting(
        1.0,
        "weight of what is not the classes' cross-entropy (soap, soap_rotation, soap_reconstruction)",
        low=0.0,
        added=True,
    )
    save_every: int = setting(
        1, "epochs between checkpoints of its training", unit="epochs", low=1, affects_result=False
    )


@dataclass
class AttackSettings:
    method: str = setting(
        "pgd", "attack of the training pairs; ssp: NRP's, on a feature map of the classifier", choices=GRADIENT_ATTACKS
    )
    norm: str = setting("Linf", "norm of the budget; another than before needs its own", choices=NORMS)
    eps: float = setting(8 / 255, "budget; a fraction such as 8/255 may be written", unit="[0,1] pixels", low=0.0)
    step: float = setting(2 / 255, "step size", unit="[0,1] pixels", above=0.0)
    steps: int = setting(10, "iterations", low=1)
    random_start: bool = setting(True, "start at a random point of the ball (pgd)")
    targeted: bool = setting(False, "attack towards a random other class")
    batch_size: int = setting(250, "images a batch; part of the attack's identity", unit="images", low=1)
    online: bool = setting(False, "the trainer attacks each batch itself; no adversarial shards")
    shards: str | None = setting(
        None, "existing adversarial shards to use instead of making them", unit="path or address", stands_in=True
    )


@dataclass
class ModelSettings:
    # The upper bounds are far above any network of this kind: they keep a saved configuration from taking the machine.
    image_size: int = setting(32, "side of the images or tiles it is trained on", unit="pixels", low=1, high=2**16)
    patch_size: int = setting(2, "side of a patch, p", unit="pixels", choices=(1, 2, 4, 8, 16))
    encoder_width: int = setting(192, "encoder width", low=4, high=2**16)
    encoder_depth: int = setting(12, "encoder blocks", low=1, high=256)
    encoder_heads: int = setting(3, "encoder attention heads", low=1)
    decoder_width: int = setting(192, "decoder width", low=4, high=2**16)
    decoder_depth: int = setting(4, "decoder blocks", low=0, high=256)
    decoder_heads: int = setting(3, "decoder attention heads", low=1)
    mlp_ratio: float = setting(4.0, "hidden width of a block's MLP over its width", above=0.0, high=64.0)
    class_token: bool = setting(True, "carry MAE's class token through encoder and decoder")
    prediction: str = setting(
        "pixels",
        "what the decoder predicts: pixels, or the residual to the visible input",
        choices=("pixels", "residual"),
    )
    stem_width: int = setting(0, "channels of a convolutional stem on the masked pixels; 0: none", low=0, high=2**16)
    stem_depth: int = setting(0, "3x3 convolutions in the stem", low=0, high=256)
    stem_scale: int = setting(1, "they work on pixels unshuffled by this factor", choices=(1, 2, 4), added=True)
    refine_width: int = setting(0, "channels of residual convolutions after the decoder; 0: none", low=0, high=2**16)
    refine_depth: int = setting(0, "residual blocks after the decoder", low=0, high=256)
    refine_scale: int = setting(1, "those blocks work on pixels unshuffled by this factor", choices=(1, 2, 4))
    residual_scale: float = setting(
        8 / 255,
        "unit of predicted residuals and refinements; a fraction may be written",
        unit="[0,1] pixels",
        above=0.0,
    )
    init: str | None = setting(
        None, "weights to start from: an official MAE checkpoint, or a purifier of ours", unit="path"
    )


@dataclass
class ObjectiveSettings:
    name: str = setting(
        "maep",
        "training objective (Eq. 1, 2, 9-16; denoise: of diffusion purifiers; score: of adp; flow: of flowpure; code: "
        "of comdefend; likelihood: of pixeldefend; feature: NRP's); mlm changes its stage at pretrain.mask_until",
        choices=OBJECTIVES,
    )
    rec_weight: float = setting(1.0, "lambda, weight of the hidden patches' term (maep)", low=0.0)
    trades_weight: float = setting(1.0, "beta, weight of the distance between the pair (trades_*)", low=0.0)
    target: str = setting("clean", "what hidden patches are compared with (maep)", choices=("clean", "adversarial"))
    distance: str = setting("l1", "distance of pixels and latents", choices=("l1", "mse", "smooth_l1"))
    smoothing: float = setting(
        1 / 255, "smooth_l1 is square below this difference, linear above", unit="[0,1] pixels", above=0.0
    )
    clean_weight: float = setting(
        1.0, "weight of the cross-entropy on purified clean images (robust)", low=0.0, added=True
    )
    kl_weight: float = setting(
        0.0, "beta of TRADES, weight of KL(f(P(x)) || f(P(x_a))) (robust); 0: none", low=0.0, added=True
    )
    pixel_weight: float = setting(
        1.0, "weight of d(P(x_a), x) beside the other terms (robust, stability, feature)", low=0.0, added=True
    )
    soft_weight: float = setting(
        1.0, "share of robust.teacher's answer in what both cross-entropies ask for; the rest is the label (robust)",
        low=0.0, high=1.0, added=True,
    )  # fmt: skip
    code_weight: float = setting(1e-4, "weight of the code's mean square (code)", low=0.0, added=True)
    noise: str = setting(
        "gamma",
        "how each image's deviation of noise is drawn (nim, stability): of shape 25, always the mean, up to twice it",
        choices=NOISES,
        added=True,
    )
    noise_mean: float = setting(
        75 / 255,
        "mean of that deviation (nim, stability); a fraction may be written",
        unit="[0,1] pixels",
        above=0.0,
        added=True,
    )


@dataclass
class TrainSettings:
    mask_ratio: float = setting(0.5, "share of patches hidden, r", low=0.0, high=0.95)
    mask_until: float = setting(1.0, "share of the training after which r becomes 0", low=0.0, high=1.0)
    epochs: float = setting(100.0, "training length", unit="epochs", above=0.0)
    steps: int | None = setting(None, "training length instead of epochs", unit="steps", low=1)
    batch_size: int = setting(256, "global batch over all processes", unit="images", low=1)
    accumulation: int = setting(1, "micro-batches a step", low=1)
    lr: float = setting(1e-3, "peak learning rate of AdamW", above=0.0)
    min_lr: float = setting(0.0, "learning rate at the end", low=0.0)
    warmup: float = setting(0.05, "share of the training that warms up", low=0.0, high=1.0)
    beta1: float = setting(0.9, "AdamW beta 1", low=0.0, high=1.0)
    beta2: float = setting(0.95, "AdamW beta 2", low=0.0, high=1.0)
    weight_decay: float = setting(0.05, "AdamW weight decay (biases and norms have none)", low=0.0)
    clip: float = setting(1.0, "gradient norm clip; 0: none", low=0.0)
    ema: float = setting(0.999, "decay of the averaged weights that become the purifier; 0: none", low=0.0, high=1.0)
    flip: bool = setting(True, "mirror pairs at random")
    transpose: bool = setting(
        False, "also turn pairs upside down and swap their rows and columns at random (DISCO)", added=True
    )
    crop_padding: int = setting(0, "padding of a random crop of pairs; 0: none", unit="pixels", low=0, added=True)
    attacked: str = setting(
        "classifier",
        "what attack.online attacks: the classifier alone, or the whole of purifier and classifier as it is trained",
        choices=ATTACKED,
        added=True,
    )
    clean_share: float = setting(0.0, "share of samples whose input is the clean image itself", low=0.0, high=1.0)
    log_every: int = setting(10, "steps between lines of metrics.jsonl", unit="steps", low=1, affects_result=False)
    save_every: int = setting(200, "steps between checkpoints", unit="steps", low=1, affects_result=False)
    source: str | None = setting(
        None, "configuration whose images, classifier and attack make the training pairs; unset: the run's own"
    )
    source_set: list[str] = setting([], "key=value words on top of that configuration, such as data.root=PATH")
    pause_at: int | None = setting(
        None,
        "step after which the training is saved and left, to go on another time",
        unit="steps",
        low=1,
        affects_result=False,
    )
    keep_last: int = setting(3, "newest checkpoints kept", low=2, affects_result=False)
    keep_every: int = setting(
        0, "checkpoints of every so many steps kept besides; 0: none", unit="steps", low=0, affects_result=False
    )
    keep_best: int = setting(
        0, "checkpoints kept besides for the lowest mean loss since the one before", low=0, affects_result=False
    )


@dataclass
class FinetuneSettings(TrainSettings):
    method: str = setting(
        "lora", "what is trained: an adapter (lora, dora, ia3), everything (full), nothing (none)",
        choices=FINETUNING,
    )  # fmt: skip
    targets: str = setting("decoder", "which layers an adapter adapts", choices=("decoder", "both"))
    objective: str | None = setting(
        None, "its objective, where it is another; unset: objective.name", choices=(None, *OBJECTIVES), added=True
    )
    rank: int = setting(8, "rank of lora and dora", low=1)
    alpha: int = setting(16, "alpha of lora and dora", low=1)
    mask_ratio: float = setting(0.0, "share of patches hidden, r (Sec. 4.4: 0)", low=0.0, high=0.95)
    epochs: float = setting(5.0, "training length", unit="epochs", above=0.0)
    clean_shards: str | None = setting(None, "clean shards of another data set to finetune on", unit="path or address")
    adversarial_shards: str | None = setting(
        None, "adversarial shards beside finetune.clean_shards", unit="path or address"
    )


@dataclass
class RobustSettings:
    """Of trainings whose attack sees the whole (pretrain.attacked or finetune.attacked=whole)."""

    classifiers: list[str] = setting(
        [], "further frozen classifiers, of which each step draws one or the run's own: architectures, which the "
        "classifier stage trains too, or ARCH=PATH of their weights", added=True,
    )  # fmt: skip
    teacher: str | None = setting(
        None, "robust classifier, ARCH=PATH of its weights, whose answers to the clean training images take their "
        "labels' place in the losses (robust); made once, by the classifier stage", added=True,
    )  # fmt: skip
    clean_until: float = setting(
        0.0, "share of the training that has no attack, so that the purifier first learns images", low=0.0, high=1.0,
        added=True,
    )  # fmt: skip
    eps_ramp: float = setting(
        0.0, "share of the training after it in which the budget grows from 0 to attack.eps", low=0.0, high=1.0,
        added=True,
    )  # fmt: skip
    late_steps: int = setting(
        0, "iterations of PGD that take the attack's place at the end; 0: the attack stays", low=0, added=True
    )
    late_from: float = setting(0.8, "share of the training after which they do", low=0.0, high=1.0, added=True)
    check_every: int = setting(
        500, "steps between attacks on held-out images; 0: none, and the last weights are kept", unit="steps", low=0,
        added=True,
    )  # fmt: skip
    check_images: int = setting(
        256, "training images held out for them, on which the purifier is also chosen", unit="images", low=1, added=True
    )
    overfit_drop: float = setting(
        20.0, "fall of held-out robust accuracy between them after which training goes back, to a longer attack",
        unit="percent of the images", above=0.0, added=True,
    )  # fmt: skip


@dataclass
class ComputeSettings:
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"), affects_result=False)
    precision: str = setting("fp32", "arithmetic of training", choices=("fp32", "bf16", "fp16"))
    compile: bool = setting(False, "torch.compile the training step")
    cuda_graphs: bool = setting(
        False,
        "replay the compiled training step as CUDA graphs, so that a fast device waits less for its host; takes more "
        "memory; for one process, without DeepSpeed or accumulation",
        added=True,
    )
    tf32: str = setting(
        "convolutions",  # what torch itself does
        "what trainings in fp32 compute on CUDA devices in TF32, which has 10 bits of mantissa instead of 23",
        choices=("none", "convolutions", "all"),
        added=True,
    )
    cudnn_benchmark: bool = setting(
        False,
        "cuDNN times its convolutions for each new shape and takes the fastest; last bits may then differ between runs",
        affects_result=False,
        added=True,
    )
    threads: int = setting(0, "CPU threads a process; 0: torch's choice", low=0, affects_result=False)
    image_memory: int = setting(
        4 * 10**9,  # half of a laptop's: DISCO, the hungriest, then takes 790 x 790 pixels whole
        "what `maep purify` may take for one image beside its pixels, about; an image that takes more is refused",
        unit="bytes",
        low=10**6,
        affects_result=False,
        added=True,
    )
    claim_timeout: float = setting(
        60.0,
        "silence after which a worker's shards or chunks are taken over by others",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )
    zero_stage: int | None = setting(
        None, "DeepSpeed ZeRO stage; unset: no DeepSpeed", choices=(None, 0, 1, 2, 3), affects_result=False
    )
    log_samples: bool = setting(
        False, "write down which samples each process consumed, under run.dir/samples", affects_result=False
    )
    join_timeout: float = setting(
        300.0, "time in which all processes of a job must have joined", unit="seconds", above=0.0, affects_result=False
    )
    stall_timeout: float = setting(
        600.0,
        "time without progress after which a job ends, naming who stalled",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )
    grace: float = setting(
        60.0,
        "time between a signal and the kill; bounds the last save",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )


@dataclass
class PurifierSettings:
    kind: str = setting(
        "maep", "which defense; its settings are the section of that name (maep: model, objective and purify)",
        choices="maep.purifiers.registry:KINDS", added=True,
    )  # fmt: skip


@dataclass
class PurifySettings:
    batch_tiles: int = setting(
        256,
        "tiles a forward pass; bounds the memory",
        unit="tiles",
        low=1,
        high=2**20,
        affects_result=("evaluate", "point"),
    )
    gradient_memory: int = setting(
        10**9,  # of a laptop's; the digits' purifiers then take no step twice
        "what exact gradients through a purifier of many steps may keep of the steps' graphs, beside one step; the "
        "steps that do not fit are computed twice, at half as much time again (0: all)",
        unit="bytes", low=0, high=2**50, affects_result=False, added=True,
    )  # fmt: skip
    overlap: int = setting(0, "overlap of neighbouring tiles, blended", unit="pixels", low=0)
    shifts: int = setting(
        1,
        "grids, each shifted by a further share of a tile down and right, whose results are averaged",
        low=1,
        high=16,
        added=("records",),
    )
    passes: int = setting(1, "times the purifier is applied to its own output (the paper: 1)", low=1, high=1000)
    noise: float = setting(
        0.0, "deviation of Gaussian noise added before each pass; above 0 the purifier is random",
        unit="[0,1] pixels", low=0.0, high=10.0, added=("records",))  # fmt: skip
    mask_ratio: float = setting(
        0.0,
        "share of patches hidden at random when purifying, r; above 0 the purifier is random",
        low=0.0,
        high=0.95,
        added=("records",),
    )


@dataclass
class EvaluationSettings:
    images: int = setting(1000, "test images, the first of the balanced order", unit="images", low=1)
    adaptive_images: int = setting(
        64, "images of the attacks that depend on the purifier: all but oblivious", unit="images", low=0
    )
    chunk_images: int = setting(250, "images a chunk: the unit of work and of resume", unit="images", low=1)
    batch_size: int = setting(250, "images an attack batch; part of the attack's identity", unit="images", low=1)
    attacks: list[str] = setting(
        ["fgsm", "pgd-20", "autoattack-standard"],
        "attacks: fgsm, bim-K, pgd-K, autoattack-standard, -plus, -rand, autoattack-custom:apgd-ce+square, or one "
        "of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square",
    )
    adaptive_attacks: list[str] = setting(
        [], "attacks of who attacks the purifier with gradients, all but oblivious and blackbox; empty: attacks",
        added=True,
    )  # fmt: skip
    surrogate_share: float = setting(
        0.2, "share of a purifier's steps that the surrogate attacker follows, one at least (Lee and Kim 2023 attack "
        "DiffPure's 100 through 20)", above=0.0, high=1.0, added=True,
    )  # fmt: skip
    blackbox_attacks: list[str] = setting(
        ["square"], "attacks of the black-box threat model: square, or square-K with K queries instead of 5000"
    )
    norm: str = setting("Linf", "norm of the budget; another than before needs its own", choices=NORMS)
    eps: list[float] = setting([8 / 255], "budgets; fractions may be written", unit="[0,1] pixels", low=0.0)
    threat_models: list[str] = setting(
        ["oblivious", "bpda", "adaptive", "adaptive-eot", "blackbox"], "what the attacker knows", choices=THREAT_MODELS
    )
    exact_gradients: bool = setting(
        False,
        "refuse a defense that has no gradient of its own; otherwise attackers who would follow it get BPDA's, which "
        "is said and marked in the tables",
        affects_result=False,
        added=True,
    )
    precision: str = setting(
        "fp32",
        "arithmetic of the model that attacks follow; verdicts are taken in fp32",
        choices=("fp32", "bf16"),
        affects_result=("evaluate", "point"),
    )
    compile: bool = setting(
        False,
        "torch.compile the model that attacks follow; verdicts are the uncompiled one's",
        affects_result=("evaluate", "point"),
    )
    draws: int = setting(
        8, "draws of a random purifier that adaptive-eot averages over, and that its scores are taken from", low=1
    )
    draws_at_once: int = setting(
        1,
        "draws that attacks which average over several compute as one batch: faster on an accelerator, if they fit "
        "into its memory; the same draws, but last bits may differ",
        low=1,
        affects_result=("evaluate", "point"),
        added=True,
    )
    blackbox_draws: int = setting(
        1,
        "draws of a random purifier that the black-box attacker averages over; a search that keeps the best of what it "
        "sees takes one lucky draw for progress",
        low=1,
        added=True,
    )
    decision_draws: int = setting(
        1,
        "draws of a random purifier whose commonest answer decides, after each attack, whether an image has fallen; "
        "by a single one, as AutoAttack decides, an image that fell by luck is not attacked any further",
        low=1,
        added=True,
    )
    purifiers: str = setting(
        "both",
        "which of the run's purifiers to judge",
        choices=("both", "pretrained", "finetuned"),
        affects_result=("evaluate", "point"),
    )
    purifier: str | None = setting(
        None,
        "run, purifier/ or checkpoint to judge instead of the run's own, without training one; also purifier=PATH",
        unit="path",
        stands_in=True,
    )
    twin: str | None = setting(
        None,
        "run, purifier/ or checkpoint of another purifier of the judged one's kind, independently trained, which the "
        "twin attacker follows in its place",
        unit="path",
        stands_in=True,
        added=True,
    )
    check_images: int = setting(
        16,
        "images on which the defense itself is checked for masked gradients, by 228 gradient steps on each, times "
        "evaluation.draws for a random purifier: fewer bound what a slow one takes",
        unit="images",
        low=1,
        affects_result=("evaluate", "point"),
    )
    baseline: str | None = setting(
        None,
        "run, or report.json, whose classifier was adversarially trained and stands without a purifier, which the "
        "report sets beside the purifiers",
        unit="path",
        affects_result=("report",),
        added=True,
    )
    figure_images: int = setting(
        8, "images in the report's figure", unit="images", low=1, affects_result=("evaluate", "report", "point")
    )


@dataclass
class CertifySettings:
    """Of the certificates by randomised smoothing (Cohen et al. 2019)."""

    sigma: list[float] = setting(
        [], "deviations of the noise that certificates are made with; empty: none are made", unit="[0,1] pixels",
        above=0.0, added=True,
    )  # fmt: skip
    images: int = setting(250, "test images, the first of the balanced order", unit="images", low=1, added=True)
    undefended: bool = setting(
        False, "certify the classifier without a purifier too: what the purifier adds is the difference", added=True
    )  # fmt: skip
    first_draws: int = setting(100, "draws that choose an image's class, N₀", low=1, added=True)
    draws: int = setting(1000, "draws that certify it, N", low=1, high=10**9, added=True)
    alpha: float = setting(0.001, "probability, at most, that a certificate is wrong", above=0.0, high=0.5, added=True)
    sampling: str = setting(
        "float",
        "how the noise is drawn: in floating point, or as whole levels of 1/255 in integer arithmetic, for which the "
        "guarantee is exact (of the classifier of images rounded to levels)",
        choices=SAMPLINGS,
        added=True,
    )
    chunk_images: int = setting(
        10, "images a chunk: the unit of work and of resume", unit="images", low=1, added=True,
    )  # fmt: skip
    batch_size: int = setting(
        250, "draws a forward pass; part of the certificate's identity", unit="images", low=1, added=True
    )
    attack_radii: list[float] = setting(
        [], "L2 radii within which the same images are attacked, beside their certificates; empty: none are",
        unit="[0,1] pixels in L2", above=0.0, added=True,
    )  # fmt: skip
    attack_images: int = setting(64, "images that are attacked, the first ones", unit="images", low=1, added=True)
    attack: str = setting(
        "autoattack-standard",
        "attack on purifier and classifier without noise, as in evaluation.attacks; the majority under noise is "
        "attacked by PGD, whatever this says",
        added=True,
    )
    attack_draws: int = setting(
        200, "draws that decide whether the majority under noise has fallen", low=1, high=10**9, added=True
    )


@dataclass
class Settings:
    """The whole configuration, one section a concern; `maep.config.load` adds the section of the purifier's kind."""

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    pretrain: TrainSettings = field(default_factory=TrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    robust: RobustSettings = field(default_factory=RobustSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    purifier: PurifierSettings = field(default_factory=PurifierSettings)
    purify: PurifySettings = field(default_factory=PurifySettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    certify: CertifySettings = field(default_factory=CertifySettings)
