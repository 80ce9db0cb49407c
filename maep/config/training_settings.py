"""Settings of the network, its objectives and its trainings."""

from dataclasses import dataclass

from maep.config.implementations import ATTACKED, FINETUNING, NOISES, OBJECTIVES
from maep.config.setting import setting


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
        "what the decoder predicts: pixels, the residual to the visible input, or patches of mean 0 and deviation 1 "
        "(MAE's norm_pix_loss), which get those of the input's patches",
        choices=("pixels", "residual", "normalized"),
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
    gan_weight: float = setting(
        0.0, "weight of the term that fools a discriminator, trained beside the purifier (feature); 0: there is none",
        low=0.0, added=True,
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
