"""Settings of what a training reads: images, the classifier before which a purifier stands, and its attacks."""

from dataclasses import dataclass, field
from typing import Any

from maep.config.implementations import GRADIENT_ATTACKS, NORMS
from maep.config.published_classifiers import PUBLISHED
from maep.config.setting import setting


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
    initial: str | None = setting(
        None, "weights, as classifier.weights, that its training begins with; unset: random ones", unit="path",
        stands_in=True, added=True,
    )  # fmt: skip
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
        "what the classifier stage minimises: cross-entropy (purified: of images that classifier.purifier made), an "
        "adversarial training (awp: pgd_at with AWP), or one of SOAP's joint losses",
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
            "purified",
        ),
        added=True,
    )
    purifier: str | None = setting(
        None, "a purifier's directory, for training=purified; used as the section purify says", unit="path",
        stands_in=True, added=True,
    )  # fmt: skip
    purified_noise: float | None = setting(
        None,
        "greatest deviation of the noise before purifying for training=purified, drawn for each batch from 0 to it "
        "(NIM-MAE: 30/255); unset: purify.noise",
        unit="[0,1] pixels", low=0.0, added=True,
    )  # fmt: skip
    train_norm: str = setting(
        "Linf",
        "norm of the budget of adversarial training, which another needs its own of; L2: pgd_at, awp, trades, "
        "trades_awp",
        choices=NORMS,
        added=True,
    )
    train_eps: float = setting(
        8 / 255, "budget of adversarial training, in train_norm", unit="[0,1] pixels", above=0.0, added=True
    )
    train_step: float = setting(
        2 / 255,
        "step size of its attack (dkl: half the budget; trades and trades_awp in L2: 2 train_eps / train_steps)",
        unit="[0,1] pixels",
        above=0.0,
        added=True,
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
    averaging: str = setting(
        "none",
        "average of the weights that the training leaves, beside the last batch norms' statistics: epochs, of those "
        "after each (DKL); steps, after each, with a warm-up (Rebuffi et al., Wang et al.)",
        choices=("none", "epochs", "steps"),
        added=True,
    )
    averaging_decay: float = setting(
        0.9,
        "what of the average is kept when weights are taken in (epochs: 0.9 published; steps: 0.995)",
        low=0.0,
        high=1.0,
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
