"""Settings of how a purifier is used, attacked and certified."""

from dataclasses import dataclass

from maep.config.implementations import NORMS, SAMPLINGS, THREAT_MODELS
from maep.config.setting import setting


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
    auxiliary_weight: float = setting(
        100.0, "how much of a purifier's own loss the auxiliary-aware attacker takes off the one that he raises "
        "(Shi et al. 2021)", above=0.0, added=True,
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
