"""The identities of what an evaluation makes: digests of all that adversarial images and records depend on.

They are plain values of settings and inputs, so that two workers, or two versions of the program, agree on what is
finished. What is in the dictionaries here must not change, or everything that was made before is made again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from maep.attacks.threat_models import (
    Adaptive,
    AdaptiveEot,
    AuxiliaryAware,
    BlackBox,
    Bpda,
    BpdaIntermediate,
    Oblivious,
    Surrogate,
    Twin,
    threat_model,
)
from maep.config.evaluation_settings import EvaluationSettings
from maep.evaluation.scoring.chunk_record import CONTENT
from maep.evaluation.scoring.reduced_model import SurrogateSettings
from maep.evaluation.scoring.tasks import Task, chunk_size
from maep.runtime.digests import digest

# What attacks make, as part of its identity: raising it attacks all images again.
ATTACK_CONTENT = 1


@dataclass(frozen=True)
class EvaluationIdentity:
    """All that decides what an evaluation makes. classifier, purifier, images: identities; available: how many images
    the set has. is_random: the purified classifier draws random numbers. is_undefended: there is no purifier.
    is_approximated: adaptive attackers take the purifier for the identity backward. has_surrogate: the purifier has
    steps that the surrogate attacker leaves out. twin: identity of the purifier that the twin attacker follows.
    has_path: the purifier shows what its steps go through. has_auxiliary_loss: it descends a loss of its own.
    """

    settings: EvaluationSettings
    seed: int
    classifier: str
    purifier: str
    images: str
    available: int
    is_random: bool
    is_undefended: bool
    is_approximated: bool = False
    has_surrogate: bool = False
    twin: str = ""
    has_path: bool = False
    has_auxiliary_loss: bool = False

    def attack_task(self, task: Task) -> Task:
        """The task whose adversarial images a task uses: without randomness, EOT's are the adaptive ones; of a purifier
        that is the identity backward the adaptive ones are BPDA's; without a purifier, what attacks the purified
        classifier attacks the classifier. A purifier without steps to leave out is its own surrogate; one
        that does not show what its steps go through has no intermediate points, nor has one without a loss an attacker
        who is aware of it.
        """
        threat = task.threat_model
        if threat == BpdaIntermediate.name and not self.has_path:
            threat = Bpda.name
        if threat == AuxiliaryAware.name and not self.has_auxiliary_loss:
            threat = Bpda.name
        if threat == AdaptiveEot.name and not self.is_random:
            threat = Adaptive.name
        if threat == Surrogate.name and (self.is_approximated or not self.has_surrogate):
            threat = Adaptive.name
        if threat == Adaptive.name and self.is_approximated:
            threat = Bpda.name
        if threat in (Adaptive.name, BlackBox.name) and self.is_undefended and self._draws_averaged(threat) is None:
            threat = Oblivious.name
        return replace(task, threat_model=threat)

    def attack_facts(self, task: Task) -> Mapping[str, object]:
        """All that a chunk's adversarial images depend on, except which chunk it is. task: an `attack_task`."""
        facts: dict[str, object] = {
            "version": ATTACK_CONTENT,
            "classifier": self.classifier,
            "attack": task.named_attack.facts(),
            "seed": self.seed,
            "batch_size": self.settings.batch_size,
            "chunk_images": chunk_size(self.settings, self.available),
            "images": self.images,
        }
        if threat_model(task.threat_model).uses_purifier:
            followed = {"twin": self.twin} if task.threat_model == Twin.name else {"purifier": self.purifier}
            facts |= {"threat_model": task.threat_model, **followed}
        if task.threat_model == Surrogate.name:
            facts["surrogate_share"] = self.settings.surrogate_share
        if task.threat_model == AuxiliaryAware.name:
            facts["auxiliary_weight"] = self.settings.auxiliary_weight
        draws = self._draws_averaged(task.threat_model)
        if draws is not None:
            facts["draws"] = draws
            if task.threat_model == BlackBox.name:  # before, the logits' mean was asked for its margin
                facts["loss"] = "mean margin"
            if self.settings.draws_at_once > 1:  # sums of another order: the last bits may differ
                facts["draws_at_once"] = self.settings.draws_at_once
        if (decision_draws := self.decision_draws(task.threat_model)) > 1:
            facts["decision_draws"] = decision_draws
        return facts | SurrogateSettings.of(self.settings).facts()

    def decision_draws(self, threat: str) -> int:
        """How often an attacker's model is asked whether an image has fallen: once, if it draws nothing."""
        is_random = self.is_random and (threat_model(threat).uses_purifier or self.is_undefended)
        return self.settings.decision_draws if is_random else 1

    def _draws_averaged(self, threat: str) -> int | None:
        """Over how many draws an attacker averages; None if it does not, as none did without gradients at first."""
        if threat == AdaptiveEot.name:
            return self.settings.draws
        asks_often = threat == BlackBox.name and self.is_random and self.settings.blackbox_draws > 1
        return self.settings.blackbox_draws if asks_often else None

    def record_facts(self, task: Task) -> Mapping[str, object]:
        """All that a record depends on."""
        record = {"record": CONTENT, "purifier": self.purifier, "task": asdict(task)}
        draws = {"draws": self.settings.draws} if self.is_random else {}
        return {**self.attack_facts(self.attack_task(task)), **draws, **record}

    def record(self, task: Task) -> str:
        """The identity of a task's record: digest of `record_facts`."""
        return digest(self.record_facts(task))
