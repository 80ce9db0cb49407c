"""A steady training step reads from its device once, after the backward pass was launched, and is one graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from maep.benchmarks.host_reads import host_reads
from maep.config.implementations import OBJECTIVES
from maep.config.load import load_settings
from maep.config.training_settings import FinetuneSettings, ObjectiveSettings
from maep.data.images.build import clean_split
from maep.data.pairs import pair_loader
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.storage.manifests import CheckpointManifest
from maep.training import inputs, loop
from maep.training.classifier import _Training
from maep.training.finetune import with_adapter
from maep.training.inputs import own_pairs
from maep.training.loop import Trainer, TrainingJob
from maep.training.module import TrainingModule
from maep.training.pretrain import seeded_purifier
from maep.training.signals import StopFlag
from tests.tiny import Problem
from tests.training.networks import SMALL, classifier, network_of

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(), lambda t: bool(t.any()), lambda t: t.tolist(), lambda t: t.nonzero(),
        lambda t: t[t > 1], lambda t: t.cpu(), lambda t: t.numpy(), lambda t: torch.equal(t, t), lambda t: float(t[0]),
    ],
)  # fmt: skip
def test_a_read_is_counted(read: Callable[[Tensor], object]) -> None:
    """Each way of reading counts once; of a tensor of the host's own, not at all."""
    values = torch.arange(4.0)
    with host_reads() as reads:
        values * 2
        read(values)
    assert len(reads.calls) == 1
    with host_reads([values]) as reads:
        values.tolist()
    assert reads.calls == []


class Steps:
    """Steps of a real training on the tiny problem's pairs, one by one. device: where its network already is."""

    def __init__(self, problem: Problem, run: Path, *more: str, device: torch.device | None = None) -> None:
        settings = load_settings("digits", problem.arguments(run, *more)[1:])
        pairs, train = own_pairs(settings, settings.pretrain), settings.pretrain
        manifest = CheckpointManifest(step=0, purifier="maep", model={}, purify={})
        job = TrainingJob(
            "pretrain", seeded_purifier(settings).model.to(device), pairs, train, settings.objective, settings.compute,
            run / "checkpoints", run / "metrics.jsonl", run / "samples", manifest,
            adversary=inputs.adversary(settings, train, 10),
        )  # fmt: skip
        self.trainer = Trainer(job)
        on_cuda = self.trainer.accelerator.device.type == "cuda"
        loader = pair_loader(pairs, train, first=0, last=30, rank=0, world=1, workers=0, pin=on_cuda)
        self.batches = list(loader)
        self._next = iter(self.batches)

    def do(self, count: int) -> None:
        with StopFlag() as stop:
            for _ in range(count):
                self.trainer._step(self._next, stop)

    def at_home(self) -> list[Tensor]:
        """What the loader delivered, and the counters that AdamW keeps on the host of a CPU."""
        delivered = [tensor for batch in self.batches for tensor in (batch.epochs, batch.indices)]
        return delivered + [state["step"] for state in self.trainer.optimizer.optimizer.state.values()]


WHOLE = (
    "attack.online=true", "pretrain.attacked=whole", "objective.name=robust", "pretrain.mask_ratio=0",
    "robust.check_images=8",
)  # fmt: skip


@pytest.mark.parametrize("more", [(), ("pretrain.mask_ratio=0",), ("pretrain.accumulation=2",), WHOLE], ids=str)
@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on a CPU what a device would be waited for")
def test_a_step_reads_once(problem: Problem, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Losses, finiteness and stop flags in one read: with masks, without, with two micro-batches, and with an attack on
    the whole of purifier and classifier before it.
    """
    steps = Steps(problem, tmp_path, *more)
    steps.do(2)
    with host_reads(steps.at_home()) as reads:
        steps.do(1)
    assert reads.calls == ["tolist"]


def test_a_training_is_compiled_as_its_settings_say(problem: Problem, tmp_path: Path) -> None:
    """What `compile_options` says is what torch is asked for."""
    with (
        mock.patch.object(loop, "compile_options", return_value={"mode": "reduce-overhead"}) as options,
        mock.patch.object(TrainingModule, "compile", autospec=True, side_effect=nn.Module.compile) as compiled,
    ):
        steps = Steps(problem, tmp_path, "compute.compile=true", "compute.cuda_graphs=true")
    compiled.assert_called_once_with(mock.ANY, mode="reduce-overhead")
    options.assert_called_once_with(steps.trainer.job.compute, torch.device("cpu"), 1)


class Refused(Exception):
    """What stands in for NonFiniteLoss in the test below."""


def test_the_backward_pass_is_launched_before_the_read(problem: Problem, tmp_path: Path) -> None:
    """When a loss is found not to be finite all gradients are there, and the weights are still the old ones."""
    steps = Steps(problem, tmp_path)
    steps.do(1)
    weights = steps.trainer.parameters
    with torch.no_grad():
        weights["mask_token"].fill_(torch.nan)
    before = {name: parameter.detach().clone() for name, parameter in weights.items()}
    refused: list[tuple[int, int]] = []

    def refuse(bad: list[tuple[int, int]]) -> NoReturn:
        refused.extend(bad)
        raise Refused

    with mock.patch.object(steps.trainer, "_refuse", refuse), pytest.raises(Refused):
        steps.do(1)
    assert len(refused) == 16
    assert all(parameter.grad is not None for parameter in weights.values())
    assert all(torch.equal(before[name], each) for name, each in weights.items() if name != "mask_token")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within it CUDA raises where the host waits for the device; reading an event that was recorded is allowed."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("more", [(), ("compute.precision=bf16",), ("pretrain.mask_ratio=0",)], ids=str)
def test_a_step_on_cuda_waits_for_nothing_else(problem: Problem, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Under CUDA's own check, a steady step passes."""
    steps = Steps(problem, tmp_path, "compute.device=cuda", *more)
    steps.do(2)
    with no_waiting():
        steps.do(1)


def classifier_training(problem: Problem, directory: Path, *more: str) -> _Training:
    settings = load_settings("digits", problem.arguments(directory, *more)[1:])
    return _Training(settings, clean_split(settings, "train"), directory / "training")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts on a CPU what a device would be waited for")
def test_a_step_of_the_classifier_reads_once(problem: Problem, tmp_path: Path) -> None:
    """The loss."""
    training = classifier_training(problem, tmp_path)
    batches = training._batches()
    training._one_step(*next(batches))
    with host_reads() as reads:
        training._one_step(*next(batches))
    assert reads.calls == ["tolist"]


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_the_classifier_on_cuda_waits_for_nothing_else(
    problem: Problem, tmp_path: Path, precision: str
) -> None:
    """Under CUDA's own check; the network is in channels-last, and its products in the configured precision."""
    training = classifier_training(problem, tmp_path, "compute.device=cuda", f"compute.precision={precision}")
    batches = training._batches()
    training._one_step(*next(batches))
    with no_waiting():
        training._one_step(*next(batches))


def test_losses_and_gradients_are_on_the_device(elsewhere: torch.device) -> None:
    """Nothing is read, unless the model has to look for the visible patches itself."""
    module = TrainingModule(MaskedAutoencoder(SMALL), ObjectiveSettings(), "bf16").to(elsewhere)
    clean = torch.rand(3, 3, 16, 16, device=elsewhere)
    visible = torch.ones(3, 16, dtype=torch.bool, device=elsewhere)
    total, _parts = module(clean, clean + 0.1, visible, torch.zeros(3, 8, dtype=torch.int64, device=elsewhere))
    total.sum().backward()
    assert total.device == elsewhere
    assert all(parameter.grad is not None for parameter in module.parameters())
    with pytest.raises(NotImplementedError):
        module(clean, clean + 0.1, visible)


@pytest.mark.parametrize("name", ["nim", "mae"])
def test_normalized_patches_are_compared_on_the_device_in_one_graph(name: str, elsewhere: torch.device) -> None:
    """Nothing is read, and torch.compile meets no break."""
    module = TrainingModule(MaskedAutoencoder(replace(SMALL, prediction="normalized")), ObjectiveSettings(name), "fp32")
    clean, visible = torch.rand(3, 3, 16, 16), torch.rand(3, 16).argsort(1) < 8
    mask = (visible, visible.nonzero()[:, 1].reshape(3, 8)) if name == "mae" else (None, None)
    assert graphs_of(module, clean, *mask) == (1, 0)
    there = [None if part is None else part.to(elsewhere) for part in mask]
    total, _parts = module.to(elsewhere)(clean.to(elsewhere), clean.to(elsewhere), *there)
    total.sum().backward()
    assert total.device == elsewhere


def test_the_online_attacks_classifier_is_on_this_ranks_device(
    problem: Problem, tmp_path: Path, elsewhere: torch.device
) -> None:
    """`attack.online` begins before accelerate knows the device: it is where `prepare_device` says."""
    settings = load_settings("digits", problem.arguments(tmp_path, "attack.online=true")[1:])
    with mock.patch.object(inputs, "prepare_device", return_value=elsewhere) as prepared:
        online = inputs.adversary(settings, settings.pretrain, 10).online
    prepared.assert_called_once_with(settings.compute, trains=True)
    assert online is not None
    images, labels = torch.rand(2, 3, 32, 32, device=elsewhere), torch.zeros(2, dtype=torch.int64, device=elsewhere)
    assert online(images, labels, [3, 4]).device == elsewhere


CASES = [(name, False, 0.0) for name in OBJECTIVES] + [("maep", True, 0.0), ("feature", False, 0.1)]


@pytest.mark.parametrize(("name", "adapted", "gan_weight"), CASES)
def test_a_step_is_one_graph(name: str, adapted: bool, gan_weight: float) -> None:
    """torch.compile meets no break, with hidden patches and, where the objective allows it, without; nor with LoRA, nor
    with a discriminator beside the network.

    Where the model has to look for the visible patches itself, it does: so the count can fail.
    """
    torch.manual_seed(0)
    network = network_of(name)
    model: nn.Module = with_adapter(network, FinetuneSettings(), 0) if adapted else network
    judges = [classifier()] if OBJECTIVES[name].classifies else []
    module = TrainingModule(model, ObjectiveSettings(name=name, gan_weight=gan_weight), "fp32", judges)
    clean, visible = torch.rand(3, 3, 16, 16), torch.rand(3, 16).argsort(1) < 8
    shown = visible.nonzero()[:, 1].reshape(3, 8)
    if name == "feature":  # its first step looks which map of the classifier it is
        module(*batch_of(module, clean, visible, shown))
    masks = [] if OBJECTIVES[name].whole_images else [(visible, shown)]
    for mask in [*masks, *([] if name == "mae" else [(None, None)])]:
        assert graphs_of(module, clean, *mask) == (1, 0)
    if name == "maep":
        assert graphs_of(module, clean, visible, None)[1] > 0


def graphs_of(module: TrainingModule, clean: Tensor, visible: Tensor | None, shown: Tensor | None) -> tuple[int, int]:
    """(graphs, breaks) of torch.compile."""
    torch._dynamo.reset()
    report = torch._dynamo.explain(module)(*batch_of(module, clean, visible, shown))
    return report.graph_count, report.graph_break_count


def batch_of(
    module: TrainingModule, clean: Tensor, visible: Tensor | None, shown: Tensor | None
) -> tuple[Tensor | None, ...]:
    """What a training gives the module for three pairs."""
    labels = torch.tensor([0, 4, 2]) if module.frozen else None
    seeds = torch.tensor([3, 4, 5]) if OBJECTIVES[module.objective.name].draws else None
    return clean, (clean + 0.03).clamp(0, 1), visible, shown, labels, seeds
