"""Whether somebody is warned that a training would take days without accelerators."""

from dataclasses import replace

import pytest

from maep.config.load import load_settings
from maep.launch.cluster.jobs import KINDS, POINTS, RANKS, Job
from maep.launch.cluster.settings import ClusterSettings
from maep.launch.estimate.cpu_hours import CORE, cpu_hours, warning
from maep.launch.estimate.scaling_table import workload


def job(stage: str = "pretrain", cpus: int = 4, gpus: int = 0, nodes: int = 2, tasks: int = 1) -> Job:
    """A job of a stage on so many CPUs a process."""
    settings = ClusterSettings(cpus_per_task=cpus)
    return Job(stage, KINDS.get(stage, RANKS), settings, (nodes, nodes), tasks, gpus, 1, ())


def test_hours_are_those_of_the_arithmetic() -> None:
    """A step is three forward passes of its batch; twice the CPUs, half the hours; twice the steps, twice."""
    settings = load_settings("cifar10", ["pretrain.steps=1000"])
    work = workload(settings)
    expected = 1000 * settings.pretrain.batch_size * 3 * work.flops / CORE.value / 3600
    assert cpu_hours(settings, 1) == pytest.approx(expected)
    assert cpu_hours(settings, 8) == pytest.approx(expected / 8)
    assert cpu_hours(load_settings("cifar10", ["pretrain.steps=2000"]), 1) == pytest.approx(2 * expected)


def test_digits_take_what_was_measured() -> None:
    """350 images/s of cfg=digits's model as it was, of 64 tokens, on two cores, which the constant was made of."""
    settings = load_settings("digits", ["pretrain.steps=1000", "model.patch_size=4", "model.encoder_depth=4"])
    images = 1000 * settings.pretrain.batch_size
    assert images / (3600 * cpu_hours(settings, 2)) == pytest.approx(350, rel=0.25)


@pytest.mark.parametrize("stage", ["pretrain", POINTS])
def test_half_precision_without_gpus_is_warned_of(stage: str) -> None:
    """With the hours on the CPUs of all nodes."""
    settings = load_settings("imagenet", [])
    assert settings.compute.precision != "fp32"
    line = warning(settings, [job("shards"), job(stage)])
    assert line.startswith(f"{stage}: no GPUs are asked for, and compute.precision=")
    assert f"{cpu_hours(settings, 8):,.0f} hours on 8 CPUs" in line


def test_a_short_training_in_full_precision_is_not() -> None:
    """Nor one with GPUs, nor a stage that trains nothing; a long one is, in any precision."""
    settings = load_settings("digits", ["compute.precision=fp32"])
    assert warning(settings, [job()]) == ""
    half = replace(settings, compute=replace(settings.compute, precision="bf16"))
    assert warning(half, [job(gpus=1)]) == ""
    assert warning(half, [job("shards"), job("report")]) == ""
    long = load_settings("digits", ["compute.precision=fp32", "pretrain.steps=90000000"])
    assert "the training is long" in warning(long, [job()])


def test_a_data_set_of_unknown_size_is_said(tmp_path: object) -> None:
    """The hours are not, and only where the settings are meant for accelerators."""
    words = ["data.name=mine", f"run.cache={tmp_path}"]
    line = warning(load_settings("imagenet", words), [job()])
    assert "hours are not known (" in line
    assert warning(load_settings("imagenet", [*words, "compute.precision=fp32"]), [job()]) == ""
