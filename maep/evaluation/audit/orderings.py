"""Orders that an evaluation should come out in, and where it does not.

Who knows more should leave no more images standing: exact gradients, a surrogate's, BPDA's, none. Of the draws of a
random defense the worst should be below their mean, and that below their majority. These are not alarms: with few
images, or a defense that is right in less than half of its draws, they fail by themselves, and a reader is told so.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from maep.attacks.threat_models import Adaptive, AdaptiveEot, Bpda, Oblivious, Surrogate
from maep.evaluation.audit.findings import robust_images, shares_of_common
from maep.evaluation.reporting.rows import Combination
from maep.evaluation.scoring.tasks import eps_text

# From who knows most to who knows least: what each attacker follows, and his threat models.
ATTACKERS = {
    "exact gradients": (Adaptive.name, AdaptiveEot.name),
    "those of a surrogate": (Surrogate.name,),
    "those of BPDA": (Bpda.name,),
    "those of the classifier alone": (Oblivious.name,),
}
DRAWS = ("worst", "average", "majority")  # the scores of draws, lowest first


def broken_orders(rows: Sequence[Combination]) -> list[str]:
    """In words, where the rows of one purifier are not in these orders; [] where they are."""
    return [*_of_attackers(rows), *_of_draws(rows)]


def _of_attackers(rows: Sequence[Combination]) -> Iterator[str]:
    for eps in dict.fromkeys(row.result.eps for row in rows):
        stood = {
            who: robust_images(row for row in rows if row.result.eps == eps and row.result.threat_model in threats)
            for who, threats in ATTACKERS.items()
        }
        for (more, strong), (less, weak) in pairwise((who, images) for who, images in stood.items() if images):
            common, above, below = shares_of_common(strong, weak)
            if above > below:
                told = f"{above:.1f} % stand against {more} and {below:.1f} % against {less}"
                yield f"ε = {eps_text(eps)}: {told}, of the same {common} images; the other order is expected"


def _of_draws(rows: Sequence[Combination]) -> Iterator[str]:
    for row in rows:
        for what in ("clean", "robust"):
            scores = {name: getattr(row.result, f"{what}_{name}") for name in DRAWS}
            if None in scores.values() or list(scores.values()) == sorted(scores.values()):
                continue
            told = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
            where = f"{row.result.threat_model}, {row.result.attack}" if what == "robust" else "clean images"
            yield f"{where}: {told} % of {row.result.draws} draws: expected to rise in that order"
