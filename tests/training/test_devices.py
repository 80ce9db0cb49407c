"""Every tensor of training, attack and evaluation is on this rank's device, seen on a stand-in for one.

On it any operation with a tensor of the host raises, and so does reading a value: a step that comes as far as its one
read has all else where it belongs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from maep.attacks.attack_state import AttackState
from maep.config.data_settings import AttackSettings
from maep.config.load import load_settings
from maep.data.adversarial import ShardAttack
from maep.data.images.build import clean_split
from maep.data.shards import ShardSet
from maep.evaluation.scoring import metrics
from maep.evaluation.scoring.defense import Defense
from maep.evaluation.scoring.evaluation import Evaluation
from maep.evaluation.scoring.score import Chunk, _timed
from maep.training import classifier, inputs
from maep.training.classifier import _Training
from maep.training.distributed import world
from tests.evaluation.small_evaluation import directory_of, settings_for
from tests.small import Blur, train_small, write_shards
from tests.tiny import Problem
from tests.training.test_host_reads import WHOLE, Steps

READ = "Cannot copy out of meta tensor|Tensor.item"  # what torch says where a value is read, and nothing else


@contextmanager
def trained_on(device: torch.device) -> Iterator[None]:
    """Within it a training computes there, as far as accelerate and this library are asked."""
    with (
        mock.patch.object(Accelerator, "device", device),
        mock.patch.object(inputs, "prepare_device", return_value=device),
    ):
        yield


@pytest.mark.parametrize("more", [(), ("pretrain.mask_ratio=0",), ("attack.online=true",), WHOLE], ids=str)
def test_a_step_comes_to_its_read(
    problem: Problem, tmp_path: Path, elsewhere: torch.device, more: tuple[str, ...]
) -> None:
    """With masks, without, with the attack made as it goes, and with one on the whole of purifier and classifier."""
    with trained_on(elsewhere):
        # There from the start: torch moves a network to this device by making new parameters, to others in place.
        steps = Steps(problem, tmp_path, *more, device=elsewhere)
        with pytest.raises(NotImplementedError, match=READ):
            steps.do(1)
    parameters = steps.trainer.parameters
    unused = {name for name, parameter in parameters.items() if parameter.grad is None}
    assert unused <= {"mask_token"}, "which stands for hidden patches alone"
    assert {parameter.device for parameter in parameters.values()} == {elsewhere}
    assert {parameter.grad.device for parameter in parameters.values() if parameter.grad is not None} == {elsewhere}


@pytest.mark.parametrize("training", ["standard", "pgd_at"])
def test_a_step_of_the_classifier_comes_to_its_read(
    problem: Problem, tmp_path: Path, elsewhere: torch.device, training: str
) -> None:
    """Images, labels and draws are where its network is; adversarially trained, so is the attack."""
    settings = load_settings("digits", problem.arguments(tmp_path, f"classifier.training={training}")[1:])
    with mock.patch.object(classifier, "prepare_device", return_value=elsewhere):
        steps = _Training(settings, clean_split(settings, "train"), tmp_path / "training")
    with pytest.raises(NotImplementedError, match=READ):
        steps._one_step(*next(steps._batches()))
    parameters = list(steps.network.parameters())
    assert {parameter.device for parameter in parameters} == {elsewhere}
    assert all(parameter.grad is not None and parameter.grad.device == elsewhere for parameter in parameters)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Some digits."""
    return write_shards(tmp_path_factory.mktemp("shards") / "test", 8)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_attacked_batch_comes_to_its_copy(
    shards: ShardSet, tmp_path: Path, elsewhere: torch.device, norm: str, targeted: bool
) -> None:
    """Of adversarial shards: attacked, rounded within the budget, judged and counted; then it is brought back."""
    settings = AttackSettings(steps=2, norm=norm, targeted=targeted)
    work = ShardAttack(settings, 0, 60.0, shards, "small", train_small().to(elsewhere), elsewhere, tmp_path)
    with pytest.raises(NotImplementedError, match=READ):
        work._launch(work._decoded(range(4)))


def test_a_chunk_is_scored_on_the_defenses_device(shards: ShardSet, tmp_path: Path, elsewhere: torch.device) -> None:
    """Images are brought there once; purified, classified and measured there."""
    settings = settings_for(tmp_path, threat_models=["oblivious"])
    defense = Defense(Blur().to(elsewhere), train_small().to(elsewhere), "blur", "small")
    evaluation = Evaluation(settings, defense, shards, directory_of(settings))
    images, labels = evaluation.images(range(6))
    assert {images.device, labels.device} == {elsewhere}
    state = AttackState(images + 0.01, labels, labels == labels, {}, 0.0)
    chunk, model = Chunk(images, labels, state, images), _timed(evaluation)
    purified = model.timed("purify", model.purify, chunk.state.images)
    assert model.timed("classify", model.classify_purified, purified).argmax(1).device == elsewhere
    measured = [
        metrics.psnr(purified, images), metrics.ssim(purified, images), *metrics.distances(purified, images),
        *metrics.energies(images, chunk.state.images, purified),
    ]  # fmt: skip
    assert {values.device for values in measured} == {elsewhere}


def test_ranks_sum_up_beside_the_computation(elsewhere: torch.device) -> None:
    """NCCL is asked for a sum that nobody waits for but the stream on which it is read."""
    values, calls = torch.zeros(3, dtype=torch.float64, device=elsewhere), mock.Mock()
    stream = mock.MagicMock()
    with (
        mock.patch.object(world, "world", return_value=world.World(1, 2)),
        mock.patch.object(dist, "all_reduce", calls.all_reduce),
        mock.patch.object(world, "_side_stream", return_value=stream) as chosen,
        mock.patch.object(torch.cuda, "stream", calls.stream),
        mock.patch.object(world, "Readback", calls.read),
    ):
        calls.stream.return_value = mock.MagicMock()
        world.sum_over_ranks(values)
    chosen.assert_called_once_with(elsewhere)
    assert calls.mock_calls[:2] == [mock.call.all_reduce(values, async_op=True), mock.call.stream(stream)]
    assert calls.mock_calls[-1] == mock.call.read(values, stream)
    calls.all_reduce.return_value.wait.assert_called_once_with()
