"""What attackers who follow a defense's own gradients get where it has none: said, or refused if asked so."""

from maep.config.evaluation_settings import EvaluationSettings
from maep.config.implementations import WITHOUT_GRADIENT
from maep.evaluation.scoring.evaluation import Evaluation
from maep.purifiers import Purifier
from maep.runtime.console import say
from maep.runtime.errors import fail


def followers(settings: EvaluationSettings) -> list[str]:
    """The threat models that are asked for whose attackers follow gradients through the purifier."""
    return [name for name in settings.threat_models if name not in WITHOUT_GRADIENT]


def check_purifier(purifier: Purifier, name: str, settings: EvaluationSettings) -> None:
    """Raise UserError where exact gradients are asked of a purifier that says that it has none. name: for the message.

    What a purifier says is known before anything is made; `settle_gradients` asks the defense itself.
    """
    if settings.exact_gradients and followers(settings) and not purifier.is_differentiable:
        _refuse(name, followers(settings))


def settle_gradients(evaluation: Evaluation) -> None:
    """Say what attackers of a defense without a gradient follow in its place, before they start.

    Raises UserError where `evaluation.exact_gradients` asks for the defense's own.
    """
    settings, name = evaluation.settings.evaluation, evaluation.directory.name
    who = followers(settings)
    if not who or evaluation.targets.gives_gradient:
        return
    if settings.exact_gradients:
        _refuse(name, who)
    instead = "that of the classifier at the purified point (BPDA)" if evaluation.defense.is_approximated else "zeros"
    say(f"{name}: has no gradient; attackers who would follow it ({', '.join(who)}) get {instead}")


def _refuse(name: str, who: list[str]) -> None:
    fail(
        f"evaluation.exact_gradients=true: {name} has none for evaluation.threat_models=[{', '.join(who)}] to follow; "
        f"choose among {', '.join(WITHOUT_GRADIENT)}, or set it to false"
    )
