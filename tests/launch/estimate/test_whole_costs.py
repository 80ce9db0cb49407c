"""What all images of a configuration take together, for every kind of purifier."""

from argparse import Namespace
from collections.abc import Sequence

import pytest

from maep.config.load import config_names, load_settings
from maep.config.schema import Settings
from maep.launch.estimate.cost_model import Constant, Constants
from maep.launch.estimate.defense_count import Taken
from maep.launch.estimate.scaling_table import print_plan
from maep.launch.estimate.whole_costs import EvaluationCost, Part, count_trainings, training_parts
from maep.purifiers.registry import KINDS, purifier_class

SMALL = [
    "data.image_size=8", "model.image_size=8", "model.patch_size=4",
    "evaluation.attacks=[pgd-3]", "evaluation.blackbox_attacks=[square-5]", "evaluation.adaptive_attacks=[]",
]  # fmt: skip
STEPS = {kind: [f"{kind}.steps=2"] for kind in ("diffpure", "adbm", "gdmp", "flowpure", "scoreopt", "freqpure", "adp",
                                                 "ebm", "dram", "soap")}  # fmt: skip
ENERGY = ["ebm.chain_steps=2", "ebm.steps=3", "data.image_size=32", "model.image_size=32"]  # the least that it takes
FEW = {**STEPS, "ebm": ENERGY, "tvm": ["tvm.iterations=4"]}


def settings_of(kind: str, words: Sequence[str] = ()) -> Settings:
    """A configuration of the kind on images of 8 pixels."""
    names = [name for name in (f"{kind}/digits", f"{kind}/digits_joint") if name in config_names()]
    return load_settings(names[0] if names else "digits", [*SMALL, *FEW.get(kind, []), *words])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_costs(kind: str) -> None:
    """Trainings where there are weights, every threat model's attacks, records; all of them more than nothing."""
    settings = settings_of(kind)
    trainings = count_trainings(settings)
    assert ("pretrain" in trainings) == purifier_class(kind).is_trained()
    names = [part.name for part in training_parts(settings, trainings)]
    assert ("pretrain" in names) == ("pretrain" in trainings)
    parts = list(EvaluationCost(settings).parts())
    assert {"records", "oblivious: pgd-3"} < {part.name for part in parts}
    assert all(part.flops > 0 and part.taken.launches > 0 and part.hours(Constants()) > 0 for part in parts)


def parts_of(words: Sequence[str]) -> dict[str, Part]:
    """What an evaluation of cfg=digits is made of, by name."""
    return {part.name: part for part in EvaluationCost(settings_of("maep", words)).parts()}


def test_images_are_those_of_the_plan() -> None:
    """40 of two purifiers that know it, at two budgets; 100 of the oblivious attacker's, which both are judged on."""
    words = ["evaluation.images=100", "evaluation.adaptive_images=40", "evaluation.eps=[0.1,0.2]",
             "evaluation.threat_models=[oblivious,adaptive,adaptive-eot]"]  # fmt: skip
    parts = parts_of(words)
    assert parts["oblivious: pgd-3"].images == 2 * 100
    assert parts["adaptive: pgd-3"].images == 2 * 2 * 40
    assert "adaptive-eot: pgd-3" not in parts  # it draws nothing, so that is the adaptive attacker
    assert parts["records"].images == 2 * 2 * (100 + 40 + 40)
    assert parts_of([*words, "evaluation.purifiers=pretrained"])["adaptive: pgd-3"].images == 2 * 40


def test_an_attack_costs_its_questions() -> None:
    """PGD-6 takes three gradients more than PGD-3: of the classifier alone, two passes each."""
    three, six = (parts_of([f"evaluation.attacks=[pgd-{steps}]"])[f"oblivious: pgd-{steps}"] for steps in (3, 6))
    defense = EvaluationCost(settings_of("maep")).defense
    assert six.taken.flops - three.taken.flops == pytest.approx(3 * 2 * defense.undefended.flops, rel=0.02)


def test_hours_are_of_arithmetic_or_of_launches() -> None:
    """A PFLOP at a TFLOP/s is 1000 s; where a batch has few operations its launches take longer."""
    machine = Constants(
        peak_fp32=Constant(2e12, "", ""), peak_bf16=Constant(4e12, "", ""), mfu=Constant(0.5, "", ""),
        launch=Constant(0.1, "", ""),
    )  # fmt: skip
    part = Part("", 1000, 100, Taken(flops=1e12, launches=7))
    assert part.hours(machine) == pytest.approx(1000 / 3600)
    assert part.hours(machine, bf16=True) == pytest.approx(500 / 3600)
    assert Part("", 1001, 100, Taken(flops=1, launches=7)).hours(machine) == pytest.approx(11 * 7 * 0.1 / 3600)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("jpeg", "purifier.kind=jpeg has no weights to train"),
        ("jpeg", "has no matrix products and no convolutions"),
        ("disco", "million parameters"),
        ("maep", "as if none were ever fooled"),
    ],
)
def test_the_plan_says_what_it_is_of(kind: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not trained, what is not counted, and that it is the most that is needed."""
    print_plan(settings_of(kind), Namespace(nodes="1", bench=None))
    assert said in capsys.readouterr().out.replace("\n", " ")
