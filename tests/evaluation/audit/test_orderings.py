"""What should be in order and is not is told, and nothing else is."""

from types import SimpleNamespace
from typing import Any

from maep.evaluation.audit.orderings import broken_orders

SCORES = [f"{what}_{score}" for what in ("clean", "robust") for score in ("worst", "average", "majority")]
STOOD = {"oblivious": 4, "bpda": 3, "surrogate": 2, "adaptive": 1}


def rows(**stood: int) -> list[Any]:
    """Of each attacker, against whom so many of four images stood."""
    return [
        SimpleNamespace(
            result=SimpleNamespace(
                eps=0.1, threat_model=name.replace("_", "-"), attack="pgd-20", draws=None,
                **dict.fromkeys(SCORES),
            ),
            correct={index: index < count for index in range(4)},
        )
        for name, count in stood.items()
    ]  # fmt: skip


def test_nothing_is_told_of_what_is_in_order() -> None:
    """Equal is in order; who was not run is passed over."""
    assert broken_orders(rows(**STOOD)) == []
    assert broken_orders(rows(oblivious=3, bpda=3)) == []
    assert broken_orders(rows(oblivious=4, adaptive=1)) == []


def test_who_knows_more_and_does_worse_is_named() -> None:
    """With the shares of the images that both had; the exact attacker is the better of the adaptive two."""
    (told,) = broken_orders(rows(**{**STOOD, "surrogate": 0}))
    assert "25.0 % stand against exact gradients and 0.0 % against those of a surrogate, of the same 4 images" in told
    (told,) = broken_orders(rows(**{**STOOD, "bpda": 1}))
    assert "50.0 % stand against those of a surrogate and 25.0 % against those of BPDA" in told
    assert broken_orders(rows(**{**STOOD, "surrogate": 1, "adaptive": 3, "adaptive_eot": 1})) == []


def test_draws_rise_from_worst_to_majority() -> None:
    """A defense that is right in fewer than half of its draws has a majority below its mean, of attacked images."""
    scores = {"robust_worst": 0.0, "robust_average": 30.0, "robust_majority": 20.0, "draws": 4}
    (row,) = rows(adaptive=1)
    row.result = SimpleNamespace(**{**vars(row.result), **scores})
    (told,) = broken_orders([row])
    assert (
        told == "adaptive, pgd-20: worst 0.0, average 30.0, majority 20.0 % of 4 draws: expected to rise in that order"
    )
    row.result = SimpleNamespace(**{**vars(row.result), "robust_majority": 30.0})
    assert broken_orders([row]) == []
