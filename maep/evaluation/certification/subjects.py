"""What is certified: a run's purifiers before its classifier and, where it is asked for, the classifier alone."""

from torch import nn

from maep.config.schema import Settings
from maep.evaluation.scoring.defense import UNDEFENDED, Defense
from maep.evaluation.stage import purifier_identity, purifiers_of
from maep.runtime.errors import fail


def certified_identities(settings: Settings) -> dict[str, str]:
    """`{label: identity of the purifier}` of all that is certified. Raises UserError for a purifier of that name."""
    identities = {label: purifier_identity(settings, label) for label in purifiers_of(settings)}
    if not settings.certify.undefended:
        return identities
    if UNDEFENDED in identities:
        fail(
            f"purifier={settings.evaluation.purifier}: {UNDEFENDED} is the name of the classifier alone; rename the "
            "folder, or leave out certify.undefended"
        )
    return {**identities, UNDEFENDED: UNDEFENDED}


def certified_defenses(settings: Settings, defenses: dict[str, Defense]) -> dict[str, Defense]:
    """`{label: defense}` of the same. defenses: the purifiers', as `subjects_of` gives them; at least one."""
    one = next(iter(defenses.values()))
    alone = Defense(nn.Identity(), one.classifier, UNDEFENDED, one.classifier_identity)
    return {label: defenses.get(label, alone) for label in certified_identities(settings)}
