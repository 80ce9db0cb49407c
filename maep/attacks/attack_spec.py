"""What a gradient attack is, without the attack: identities and messages need no torch."""

from dataclasses import asdict, dataclass

from maep.config.data_settings import AttackSettings
from maep.config.implementations import GRADIENT_ATTACKS, NORMS
from maep.runtime.digests import digest


@dataclass(frozen=True)
class AttackSpec:
    """One attack, completely.

    method: `fgsm` (one step of eps from the image), `nfgsm` (one step of eps from the image with noise of up to 2 eps,
    not cut to eps afterwards: for training alone), `bim` (steps from the image), `pgd` (steps from a random
    point of the ball if random_start) or `ssp` (steps from noise that move a feature map of the classifier, for
    training alone). norm: `Linf` or `L2`. eps, step: [0,1] pixels, in that norm.
    targeted: towards a random other class instead of away from the label.
    """

    method: str
    norm: str
    eps: float
    step: float
    steps: int
    random_start: bool
    targeted: bool

    def __post_init__(self) -> None:
        if self.method not in GRADIENT_ATTACKS or self.norm not in NORMS or self.eps < 0:
            raise ValueError(f"not an attack: {self}")
        if self.method in ("nfgsm", "ssp") and self.norm != "Linf":
            raise ValueError(f"not an attack: {self}")
        if self.method == "ssp" and self.targeted:
            raise ValueError(f"not an attack: {self}")

    @classmethod
    def of(cls, settings: AttackSettings) -> "AttackSpec":
        """The configured attack; what its method does not use has one fixed value, so equal attacks are equal."""
        if settings.method in ("fgsm", "nfgsm"):
            starts = settings.method == "nfgsm"
            return cls(settings.method, settings.norm, settings.eps, settings.eps, 1, starts, settings.targeted)
        start = (settings.random_start and settings.method == "pgd") or settings.method == "ssp"
        budget = (settings.eps, settings.step, settings.steps)
        return cls(settings.method, settings.norm, *budget, start, settings.targeted)

    @property
    def name(self) -> str:
        """As in reports: `fgsm`, `bim-10`, `pgd-20`."""
        return self.method if self.method in ("fgsm", "nfgsm") else f"{self.method}-{self.steps}"

    def identity(self) -> str:
        """64 hex digits that differ when any of the fields does."""
        return digest(asdict(self))
