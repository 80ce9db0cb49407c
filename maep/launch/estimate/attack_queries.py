"""How often an attack asks its model about an image that withstands it: no image takes more."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from maep.attacks.catalog import gradient_spec, suite_of

EPS = 8 / 255  # changes no number


@dataclass(frozen=True)
class Queries:
    """For an image. plain: without a gradient; graphs: that gradients are taken of, so many as `backward`."""

    plain: float = 0
    graphs: float = 0
    backward: float = 0

    def __add__(self, other: "Queries") -> "Queries":
        return Queries(self.plain + other.plain, self.graphs + other.graphs, self.backward + other.backward)

    @classmethod
    def of_gradients(cls, number: float, plain: float = 0) -> "Queries":
        """So many gradients, and answers beside them."""
        return cls(plain, number, number)


def attack_queries(name: str, norm: str, classes: int) -> Queries:
    """What one of `evaluation.attacks` asks, its first and its last answer included."""
    suite, both = suite_of(name), Queries(plain=2)
    if suite is None:
        spec = gradient_spec(name, norm, EPS)
        assert spec is not None, "names are checked before they are asked about"
        return both + Queries.of_gradients(spec.steps)
    attacker = suite.attacker(nn.Identity(), norm=norm, eps=EPS, seed=0, device="cpu")
    parts = [_part(attacker, part, classes) for part in attacker.attacks_to_run]
    return sum(parts, Queries(plain=1 + len(parts)))  # whatever is left of one goes into the next


def _part(attacker: Any, name: str, classes: int) -> Queries:
    """One of pyautoattack's attacks, by the numbers of its object, after the one that said which images withstood."""
    targets = classes - 1
    if name in ("apgd-ce", "apgd-dlr"):
        apgd = attacker.apgd
        return Queries.of_gradients(apgd.n_restarts * (apgd.n_iter + 1) * apgd.eot_iter, plain=1)
    if name == "apgd-t":
        apgd = attacker.apgd_targeted
        runs = apgd.n_restarts * min(apgd.n_target_classes, targets)
        return Queries.of_gradients(runs * (apgd.n_iter + 1) * apgd.eot_iter, plain=1 + runs)
    if name == "fab-t":
        fab = attacker.fab  # of which it takes one start a target
        runs = min(fab.n_target_classes, targets)
        return Queries.of_gradients(runs * fab.n_iter, plain=1 + runs * (fab.n_iter + 3))
    if name == "fab":
        fab = attacker.fab
        graphs = fab.n_restarts * fab.n_iter
        return Queries(1 + graphs + 2 * fab.n_restarts, graphs, classes * graphs)  # a gradient of every logit
    square = attacker.square
    return Queries(plain=1 + square.n_restarts * (square.n_queries + 2))
