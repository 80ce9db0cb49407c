"""Numbers that authors publish, in the configurations and defaults that claim them: an edit of a shared base shows."""

from collections.abc import Mapping
from functools import reduce

import pytest

from maep.config.load import load_settings
from maep.config.published_classifiers import CIFAR10, CIFAR100, NONE, PUBLISHED, TEST_IMAGES, WU_CIFAR100
from maep.config.schema import Settings

CIFAR_IMAGES = 50_000  # of CIFAR-10's training set
LEVEL = 1 / 255
ADAM = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "clip": 0, "ema": 0, "warmup": 0}
SGD = {"momentum": 0.9, "nesterov": False, "batch_size": 128}

DEFENSES: dict[str, dict[str, object]] = {
    # Ho and Vasconcelos 2022: PGD-100, Adam at one rate, 40 epochs of 20 passes
    "disco/cifar10": {
        "disco": {"blocks": 16, "features": 64, "hidden": [256] * 4},
        "attack": {"method": "pgd", "eps": 8 * LEVEL, "step": 2 * LEVEL, "steps": 100, "random_start": True},
        "objective": {"name": "purification", "distance": "l1"},
        "pretrain": {**ADAM, "lr": 1e-4, "min_lr": 1e-4, "batch_size": 128, "steps": 800 * CIFAR_IMAGES // 128,
                     "flip": True, "transpose": True, "mask_ratio": 0},
    },
    # Alfarra et al. 2022
    "anti_adversary/cifar10": {"anti_adversary": {"steps": 2, "step": 0.15, "scale": "normalized", "clamp": False}},
    # Shi et al. 2021
    "soap/cifar10_joint": {
        "soap": {"radii": 10, "unit": 4 * LEVEL, "step": 4 * LEVEL, "steps": 5, "loss": "label_consistency",
                 "mirror": True},
        "classifier": {**SGD, "training": "soap", "soap_weight": 1, "lr": 0.1, "weight_decay": 1e-4, "epochs": 200,
                       "milestones": [100], "warmup": 0, "crop_padding": 0, "std": [0.2023, 0.1994, 0.2010]},
    },
    # Tsai et al. 2023 (eps, step and steps are ours)
    "dram/cifar10": {
        "model": {"prediction": "normalized"},
        "dram": {"mask_ratio": 0.75, "fresh_masks": False, "detection": "ks", "detection_masks": 4,
                 "false_alarms": 0.05},
        "objective": {"name": "mae", "distance": "mse"},
        "pretrain": {"mask_ratio": 0.75, "mask_until": 1},
    },
    # You et al. 2023: 1.5e-4 for each 256 images of a step, 40 of 800 epochs warm up
    "nim_mae/cifar10": {
        "model": {"prediction": "normalized"},
        "objective": {"name": "nim", "distance": "mse", "noise": "gamma", "noise_mean": 75 * LEVEL},
        "pretrain": {"lr": 1.5e-4 * 4096 / 256, "min_lr": 0, "batch_size": 4096, "epochs": 800, "warmup": 40 / 800,
                     "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.05, "mask_ratio": 0, "flip": True},
        "purify": {"noise": 70 * LEVEL},
    },
    # Naseer et al. 2020, for as many steps as DISCO
    "nrp/cifar10": {
        "nrp": {"network": "plain", "blocks": 23, "features": 64, "growth": 32},
        "attack": {"method": "ssp", "eps": 16 * LEVEL, "step": 0.01, "steps": 100},
        "objective": {"name": "feature", "pixel_weight": 0.01, "gan_weight": 5e-3},
        "pretrain": {**ADAM, "lr": 1e-4},
        "evaluation": {"eps": [8 * LEVEL]},
    },
    # Jia et al. 2019
    "comdefend/cifar10": {
        "comdefend": {"widths": [16, 32, 64, 128, 256, 128, 64, 32], "bits": 12, "noise": 20, "test_noise": 20,
                      "offset": 0},
        "objective": {"name": "code", "distance": "mse", "code_weight": 1e-4},
        "pretrain": {**ADAM, "beta1": 0.5, "lr": 1e-2, "min_lr": 1e-2, "epochs": 10, "batch_size": 128, "flip": False},
    },
    # Song et al. 2018: twice the attack's budget
    "pixeldefend/cifar10": {"pixeldefend": {"eps": 16 * LEVEL}, "evaluation": {"eps": [8 * LEVEL]}},
    # of Huang et al. 2023, as we reconstruct them: half of the budget
    "frequency_prompts/cifar10": {
        "frequency_prompts": {"clusters": 10, "cutoff": 0.25, "side": 32},
        "attack": {"eps": 4 * LEVEL}, "evaluation": {"eps": [8 * LEVEL]}, "pretrain": {"lr": 1e-2, "epochs": 10},
    },
    # Zhang et al. 2019; Wu, Xia and Wang 2020; Cui et al. 2024
    "trades/cifar10": {
        "classifier": {**SGD, "arch": "wrn34_10", "mean": [0] * 3, "std": [1] * 3, "training": "trades", "lr": 0.1,
                       "train_eps": 0.031, "train_step": 0.007, "train_steps": 10, "trades_weight": 6, "epochs": 76,
                       "milestones": [74], "weight_decay": 2e-4, "crop_padding": 4, "flip": True,
                       "attack_mode": "eval"},
    },
    "trades/cifar10_awp": {
        "classifier": {**SGD, "training": "trades_awp", "lr": 0.1, "train_eps": 8 * LEVEL, "train_step": 2 * LEVEL,
                       "trades_weight": 6, "awp_gamma": 0.005, "awp_warmup": 10, "epochs": 200,
                       "milestones": [100, 150], "weight_decay": 5e-4},
    },
    "trades/cifar10_dkl": {
        "classifier": {**SGD, "training": "dkl", "lr": 0.2, "train_eps": 8 * LEVEL, "dkl_alpha": 4, "dkl_beta": 20,
                       "dkl_temperature": 4, "awp_gamma": 0.005, "awp_warmup": 10, "epochs": 200, "milestones": [],
                       "weight_decay": 5e-4, "averaging": "epochs", "averaging_decay": 0.9},
    },
    # Xie et al. 2018: 331 of 299 pixels
    "enlarge_pad/digits": {"enlarge_pad": {"enlarge": 32 / 299, "padding": 0.5}},
    # the simple ones: DISCO's comparison; Guo et al. 2018
    "digits": {
        "jpeg": {"quality": 75, "codec": "pillow"},
        "bit_depth": {"bits": 4, "rounding": "floor"},
        "median": {"window": 3},
        "resize_pad": {"probability": 0.8, "shrink": [0.1, 0.08, 0.06, 0.04, 0.02]},
        "tvm": {"keep": 0.5, "weight": 2 / 0.03, "iterations": 100},
    },
}  # fmt: skip


def value(settings: Settings, key: str) -> object:
    """Of a setting by its dotted name, in the section of whatever kind."""
    return reduce(getattr, key.split("."), settings)


@pytest.mark.parametrize("cfg", DEFENSES)
def test_what_is_said_to_be_published_is(cfg: str) -> None:
    """Each number, within rounding."""
    for section, entries in DEFENSES[cfg].items():
        words = [f"purifier.kind={section}"] if cfg == "digits" else ["data.root=PATH"]
        settings = load_settings(cfg, words)
        assert isinstance(entries, Mapping)
        found = {name: value(settings, f"{section}.{name}") for name in entries}
        for name, expected in entries.items():
            is_number = isinstance(expected, (int, float, list)) and not isinstance(expected, bool)
            wanted = pytest.approx(expected, rel=1e-6) if is_number else expected
            assert found[name] == wanted, f"{cfg}: {section}.{name}"


def test_models_of_robustbench_are_its_tables() -> None:
    """Which architecture, which normalisation, clean accuracy and that under AutoAttack at 8/255."""
    wide, dm = "wrn28_10", "dm_wrn28_10"
    rows = [
        ("cifar10/Standard", wide, NONE, 94.78, 0.0),
        ("cifar10/Wu2020Adversarial_extra", wide, NONE, 88.25, 60.04),
        ("cifar10/Wu2020Adversarial", "wrn34_10", NONE, 85.36, 56.17),
        ("cifar10/Zhang2019Theoretically", "wrn34_10", NONE, 84.92, 53.08),
        ("cifar10/Rebuffi2021Fixing_28_10_cutmix_ddpm", dm, CIFAR10, 87.33, 60.75),
        ("cifar10/Rebuffi2021Fixing_70_16_cutmix_extra", "dm_wrn70_16", CIFAR10, 92.23, 66.58),
        ("cifar10/Rebuffi2021Fixing_R18_ddpm", "dm_preact18", CIFAR10, 83.53, 56.66),
        ("cifar10/Wang2023Better_WRN-28-10", dm, CIFAR10, 92.44, 67.31),
        ("cifar10/Cui2023Decoupled_WRN-28-10", dm, CIFAR10, 92.16, 67.73),
        ("cifar10/Cui2023Decoupled_WRN-34-10", "wrn34_10", NONE, 85.31, 57.09),
        ("cifar100/Rebuffi2021Fixing_28_10_cutmix_ddpm", dm, CIFAR100, 62.41, 32.06),
        ("cifar100/Wang2023Better_WRN-28-10", dm, CIFAR100, 72.58, 38.83),
        ("cifar100/Cui2023Decoupled_WRN-28-10", dm, CIFAR100, 73.85, 39.18),
        ("cifar100/Wu2020Adversarial", "wrn34_10", WU_CIFAR100, 60.38, 28.86),
    ]
    found = [(name, each.arch, each.normalization, each.clean, each.robust) for name, each in PUBLISHED.items()]
    assert found == rows
    assert CIFAR10 == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    assert CIFAR100 == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert TEST_IMAGES == 10_000
