"""The training loop: learning rate -> micro-steps -> agree -> clip -> step -> average -> log -> save.

The same function on one process, on several, and under DeepSpeed. Killed anywhere and started again, it goes on
from the newest whole checkpoint and ends with the same weights.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from maep.attacks.attack_spec import AttackSpec
from maep.config.implementations import OBJECTIVES
from maep.config.schema import ComputeSettings
from maep.config.training_settings import ObjectiveSettings, TrainSettings
from maep.data.loader_processes import LOADER_LOST, is_loader_loss
from maep.data.pairs import PairBatch, PairDataset, mask_ratio_at, pair_loader
from maep.data.shards import to_float
from maep.models.discriminator import PREFIX as DISCRIMINATOR
from maep.runtime.compiling import compile_in_place
from maep.runtime.console import progress_bar, say
from maep.runtime.device import upload
from maep.runtime.errors import NonFiniteLoss, Paused, PeerLost, Stopped, fail
from maep.runtime.keyed_noise import sample_seeds
from maep.storage.manifests import CheckpointManifest, Retreat, RobustProgress
from maep.training.chains import Chains
from maep.training.checkpointing.async_saver import Saver
from maep.training.checkpointing.directory import (
    Retention,
    checkpoint_path,
    last_robust_whole,
    load_checkpoint,
    most_robust_whole,
    newest_whole,
    remove_after,
    step_of,
)
from maep.training.checkpointing.partition import local_part, whole
from maep.training.checkpointing.training_state import TrainingState
from maep.training.distributed.accelerator import make_accelerator
from maep.training.distributed.heartbeat import Heartbeat, Phase, is_peer_loss
from maep.training.distributed.world import DTYPES, agree, gather_objects, sum_over_ranks
from maep.training.ema import Average
from maep.training.metrics_log import UNCOMPILED, MetricsLog, SampleLog
from maep.training.module import TrainingModule, compile_options
from maep.training.robust import Adversary, RobustTraining, accuracies, describe
from maep.training.schedule import learning_rate, total_steps
from maep.training.signals import StopFlag
from maep.training.tally import Tally

LEAVING = 0.9  # of the grace time may be spent on the last save; the rest is for ending loaders, logs and the process


@dataclass
class TrainingJob:
    """All that one training needs.

    model: called with (images, visible); its parameters with requires_grad are trained.
    adversary: who makes the adversarial images when there are no adversarial shards.
    on_stall: called with the reason before the watchdog ends this process.
    manifest: what its checkpoints say of the model; a checkpoint of another model is not resumed. The step and what
    else changes as it goes on is filled in.
    directory, metrics, samples: the checkpoints' folder, the log's file, the folder of the consumed samples' logs.
    workers: loader processes of each rank.
    """

    label: str
    model: nn.Module
    dataset: PairDataset
    settings: TrainSettings
    objective: ObjectiveSettings
    compute: ComputeSettings
    directory: Path
    metrics: Path
    samples: Path
    manifest: CheckpointManifest
    workers: int = 0
    adversary: Adversary = Adversary()
    on_stall: Callable[[str], object] | None = None


class Trainer:
    """Runs one `TrainingJob`; see `train`."""

    def __init__(self, job: TrainingJob) -> None:
        self.job, self.settings = job, job.settings
        self.steps = total_steps(job.settings, job.dataset.count)
        self.last = min(self.steps, job.settings.pause_at or self.steps)
        self.shipped = {name: p for name, p in job.model.named_parameters() if p.requires_grad}
        self.accelerator = make_accelerator(job.compute, job.settings, self.shipped)
        module = TrainingModule(job.model, job.objective, job.compute.precision, job.adversary.classifiers)
        self.parameters = dict(self.shipped)
        if module.discriminator is not None:
            named = module.discriminator.named_parameters()
            self.parameters.update({f"{DISCRIMINATOR}{name}": parameter for name, parameter in named})
        self.draws = OBJECTIVES[job.objective.name].draws
        self.robust = None
        if job.adversary.against:
            self.robust = RobustTraining(
                job.adversary.against, job.model, self.accelerator.device, DTYPES[job.compute.precision],
                compiled=job.compute.compile,
            )  # fmt: skip
        self.compiled = [self.robust.compiled] if self.robust and self.robust.compiled else []
        if job.compute.compile:
            options = compile_options(job.compute, self.accelerator.device, self.accelerator.num_processes)
            self.compiled.append(compile_in_place(module, "compute.compile", **options))
        # DeepSpeed steps parts of its own, whose counters stay on the host.
        fused = self.accelerator.device.type == "cuda" and job.compute.zero_stage is None
        optimizer = _optimizer(self.parameters, job.settings, fused=fused)
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        average = Average(self.parameters, self.settings.ema) if self.settings.ema else None
        self.engine = self.module if job.compute.zero_stage is not None else None
        self.chains = None
        if OBJECTIVES[job.objective.name].chains:
            shape = (3, job.dataset.size, job.dataset.size)
            self.chains = Chains(job.model, len(job.dataset.clean), shape, job.dataset.seed, self.accelerator.device)
        extra = {"chains": self.chains.states} if self.chains else {}
        self.state = TrainingState(self.parameters, self.optimizer.optimizer, average, extra)
        self.saver = Saver(job.directory, self.state, Retention.of(job.settings), job.compute.stall_timeout)
        self.pulse = Heartbeat(job.metrics.parent, job.compute.stall_timeout, job.on_stall)
        self.step = 0
        self.collapse = RobustProgress()
        self.losses: list[float] = []
        self.samples: SampleLog | None = None

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, chosen by rank 0, if there is one."""
        newest = newest_whole(self.job.directory) if self.accelerator.is_main_process else None
        newest = gather_objects(newest)[0]
        if newest is None:
            return
        self._restore(newest)
        if self.accelerator.is_main_process:
            say(f"{self.job.label}: goes on from step {self.step} of {self.steps} ({newest})")

    def _restore(self, checkpoint: Path) -> None:
        """Take over all that a checkpoint remembers, in a new process or back from a later step.

        The rest (learning rate, masks, order of the samples, noise) is a function of the step.
        """
        saved = load_checkpoint(checkpoint, self.state, self.job.manifest)
        self.saver.good, self.step, self.losses = checkpoint, saved.step, []
        if self.robust:
            self.robust.progress = replace(saved.robust or RobustProgress(), checked=False)
        if self.accelerator.scaler is not None and saved.scaler:
            self.accelerator.scaler.load_state_dict(dict(saved.scaler))

    def run(self) -> None:
        """Train to the last step.

        Raises Paused at settings.pause_at and Stopped after a signal (state saved), NonFiniteLoss, PeerLost when
        another rank or a loader's process dies or stalls, and UserError when a checkpoint cannot be written.
        """
        with self.pulse:
            try:
                self._run()
            except RuntimeError as error:
                if is_loader_loss(error):
                    raise PeerLost(f"{self.job.label}: {LOADER_LOST}") from error
                if is_peer_loss(error):
                    raise self.pulse.lost() from error
                raise

    def _run(self) -> None:
        self.resume()
        while not self._reaches_the_end():
            pass
        self.saver.finish()
        if self.step < self.steps:
            raise Paused(self.job.label, self.step)

    def _reaches_the_end(self) -> bool:
        """Train from this step on; False where it went back to an earlier one, from which to go on."""
        job, main = self.job, self.accelerator.is_main_process
        log = MetricsLog(job.metrics, job.metrics.parent / "tensorboard" / job.label, self.step) if main else None
        self.samples = SampleLog(job.samples, self.step) if job.compute.log_samples else None
        loader = pair_loader(
            job.dataset, self.settings, first=self.step, last=self.steps, workers=job.workers,
            rank=self.accelerator.process_index, world=self.accelerator.num_processes,
            pin=self.accelerator.device.type == "cuda",
        )  # fmt: skip
        batches = iter(loader)
        try:
            with StopFlag() as stop, progress_bar(enabled=main) as bar:
                if any(agree([bool(stop.signum)], self.accelerator.device)):
                    raise Stopped(stop.signum or signal.SIGTERM, self.step)
                task = bar.add_task(job.label, total=self.steps, completed=self.step, note="")
                while self.step < self.last:
                    values, stopping = self._step(batches, stop)
                    bar.update(task, completed=self.step, note=_note(values))
                    checked = self._check()
                    if checked is None:
                        self._retreat()
                        if stopping:
                            raise Stopped(stop.signum or signal.SIGTERM, self.step)
                        return False
                    if log and (checked or self.step % self.settings.log_every == 0 or self.step in (1, self.steps)):
                        log.write(_on_host(values) | checked | self.saver.metrics())
                    if stopping and self.step < self.last:
                        self._stop(stop)
                    if checked or self.step % self.settings.save_every == 0 or self.step == self.last:
                        self._save()
                self.pulse.at(Phase.SAVE, self.step)
                self.saver.finish()
                return True
        finally:
            batches.close()
            if log:
                log.close()
            if self.samples:
                self.samples.close()

    def _check(self) -> dict[str, float] | None:
        """Attack held-out images where that is due, and log how they stood; None where robustness was lost since."""
        if not self.robust:
            return {}
        if not self.robust.is_due(self.step, self.steps):
            self.robust.progress = replace(self.robust.progress, checked=False)
            return {}
        weights: dict[str, Tensor] = dict(self.parameters)
        averaged = self.state.average.parts if self.state.average else weights
        share = max(1, self.settings.batch_size // self.accelerator.num_processes // self.settings.accumulation)
        now = self.robust.check(
            self.job.dataset, weights, averaged, share, lambda: self.pulse.at(Phase.COMPUTE, self.step)
        )
        if self.robust.has_collapsed(now, self.robust.at(self.step / self.steps)):
            self.collapse = now
            return None
        self.robust.progress = now
        if self.accelerator.is_main_process:
            say(f"{self.job.label}: step {self.step}: held-out images {describe(now)}")
        return {f"held_out_{name}": value for name, value in accuracies(now).items()}

    def _retreat(self) -> None:
        """Go back to the last checkpoint whose purifier was robust, from where the attack is longer.

        Killed in it, the training notices the same again at the same step, from whichever checkpoints are left.
        """
        assert self.robust is not None
        self.saver.finish()
        at, main, accuracy = self.step, self.accelerator.is_main_process, self.collapse.accuracy or 0.0
        fell = (
            f"step {at}: robust accuracy on held-out images fell to {accuracy:.1f} % (FGSM {self.collapse.fgsm:.1f} %: "
            "catastrophic overfitting)"
        )
        good = gather_objects(last_robust_whole(self.job.directory) if main else None)[0]
        if good is None:
            fail(
                f"{self.job.directory}: {fell}, and no checkpoint up to the check before is there and whole; all are "
                "kept: put that one back, or remove the folder to train from the start"
            )
        retreats = self.robust.with_retreat(Retreat(at, step_of(good), accuracy))
        self._restore(good)
        self.robust.progress = replace(self.robust.progress, retreats=retreats)
        if main:
            remove_after(self.job.directory, good)
            say(f"{self.job.label}: {fell}: goes back to step {self.step}, with {self.robust.at(1.0).name}")

    def _save(self, within: float | None = None) -> bool:
        """Begin to save this step unless that is done or under way; False if the save before did not end in time."""
        if checkpoint_path(self.job.directory, self.step) == self.saver.latest:
            return True
        self.pulse.at(Phase.SAVE, self.step)
        scaler = self.accelerator.scaler
        manifest = replace(
            self.job.manifest, step=self.step, samples=self.step * self.settings.batch_size,
            loss=sum(self.losses) / len(self.losses) if self.losses else None,
            world=self.accelerator.num_processes, zero_stage=self.job.compute.zero_stage,
            scaler=scaler.state_dict() if scaler is not None else None,
            robust=self.robust.progress if self.robust else None,
        )  # fmt: skip
        started = self.saver.save(manifest, within=within)
        if started:
            self.losses = []
        return started

    def _stop(self, stop: StopFlag) -> NoReturn:
        """Save what can be saved in the time that is left, and leave."""
        grace = LEAVING * self.job.compute.grace
        if self._save(stop.remaining(grace)) and self.saver.finish(stop.remaining(grace)):
            raise Stopped(stop.signum or signal.SIGTERM, self.step)
        good = self.saver.good
        say(
            f"warning: step {self.step} was not saved within compute.grace={self.job.compute.grace:g} s; "
            f"last complete checkpoint: {good or 'none'}"
        )
        raise Stopped(stop.signum or signal.SIGTERM, step_of(good) if good else 0)

    def _step(self, batches: Iterator[PairBatch], stop: StopFlag) -> tuple[dict[str, int | float | Tensor], bool]:
        """One optimizer step; returns the values to log and whether any rank was asked to stop.

        The losses are the only numbers that are read from the device, and not before the backward pass was launched:
        a device that waits for its host between launches does nothing.
        """
        started = time.perf_counter()
        ratio = mask_ratio_at(self.step, self.steps, self.settings)
        lr = learning_rate(self.step, self.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        spec = self.robust.at((self.step + 1) / self.steps) if self.robust else None
        self.module.train()
        tally = Tally()
        for micro in range(self.settings.accumulation):
            self.pulse.at(Phase.DATA, self.step)
            waiting = time.perf_counter()
            batch = next(batches)
            tally.waited += time.perf_counter() - waiting
            self.pulse.at(Phase.COMPUTE, self.step)
            if self.compiled:  # else it would import the whole compiler
                torch.compiler.cudagraph_mark_step_begin()  # what a CUDA graph gave in the step before is read no more
            with self.accelerator.accumulate(self.module):
                total, parts = self.module(*self._inputs(batch, ratio, spec))
                tally.add(batch, total, parts)
                if micro + 1 == self.settings.accumulation:
                    self.pulse.at(Phase.REDUCE, self.step)
                    numbers = sum_over_ranks(tally.numbers([bool(stop.signum), self.saver.has_failed]))
                self.saver.before_update()
                self.pulse.at(Phase.COMPUTE, self.step)
                norm = self._backward(total)
                if micro + 1 == self.settings.accumulation:
                    self.pulse.at(Phase.REDUCE, self.step)
                    bad, stopping, failed, *sums = numbers.tolist()
                    self.pulse.at(Phase.COMPUTE, self.step)
                    if failed:
                        self.saver.finish()
                    if bad:
                        self._refuse(tally.bad())
                self._update()
        if self.chains:
            self.chains.commit()
        if self.state.average:
            self.state.average.update(self.step)
        self.step += 1
        if self.samples:
            self.samples.write(self.step, tally.keys)
        seconds, samples = time.perf_counter() - started, self.step * self.settings.batch_size
        losses = {name: value / self.settings.batch_size for name, value in zip(tally.sums, sums, strict=True)}
        self.losses.append(losses["loss"])
        values = {
            "step": self.step, "epoch": (samples - 1) // self.job.dataset.count, "samples": samples, **losses,
            "lr": lr, "mask_ratio": ratio, "gradient_norm": norm,
            "images_per_second": self.settings.batch_size / seconds, "data_seconds": tally.waited,
            "step_seconds": seconds,
            **({"attack_eps": spec.eps, "attack_steps": spec.steps} if spec else {}),
            **({"classifier": self.robust.drawn(self.step - 1)} if self.robust and self.robust.is_of_several else {}),
            **({UNCOMPILED: 1} if any(each.has_failed for each in self.compiled) else {}),
        }  # fmt: skip
        return values, bool(stopping)

    def advance(self, batches: Iterator[PairBatch]) -> dict[str, int | float | Tensor]:
        """One optimizer step outside of `run`, for whoever measures it; returns what a log has of it."""
        return self._step(batches, StopFlag())[0]

    def graph_breaks(self, batch: PairBatch) -> int:
        """How often torch.compile would leave its graph for Python in the forward pass of a batch, for measuring."""
        ratio = mask_ratio_at(self.step, self.steps, self.settings)
        spec = self.robust.at((self.step + 1) / self.steps) if self.robust else None
        report = torch._dynamo.explain(self.module)(*self._inputs(batch, ratio, spec))
        torch._dynamo.reset()
        breaks: int = report.graph_break_count
        return breaks

    def _inputs(
        self, batch: PairBatch, ratio: float, spec: AttackSpec | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, int, Tensor | None]:
        """Images in [0, 1], mask, its index, labels, seeds on the device; adversarial ones made here in online mode.

        spec: of the attack on the whole. There are labels and seeds where the objective wants them. Last, which of the
        classifiers this step asks, and the probabilities of a teacher.
        """
        device = self.accelerator.device
        clean, labels = to_float(batch.clean.to(device, non_blocking=True)), batch.labels.to(device, non_blocking=True)
        visible = batch.visible.to(device, non_blocking=True) if ratio else None
        shown = batch.shown.to(device, non_blocking=True) if ratio else None
        count = len(self.job.dataset.clean)
        samples = list(zip(batch.epochs.tolist(), batch.indices.tolist(), strict=True))
        keys = [epoch * count + index for epoch, index in samples]
        which = self.robust.drawn(self.step) if self.robust else 0
        seeds = sample_seeds("objective", self.job.dataset.seed, keys, device) if self.draws else None
        if batch.adversarial is not None:
            adversarial = to_float(batch.adversarial.to(device, non_blocking=True))
        elif self.chains:
            adversarial = self.chains.advance([index for _, index in samples], keys, clean)
        elif self.robust and spec:
            weights: dict[str, Tensor] = dict(self.parameters)
            adversarial = self.robust.attack(weights, clean, labels, visible, spec, keys, shown, which, seeds)
        else:
            assert self.job.adversary.online is not None
            adversarial = self.job.adversary.online(clean, labels, keys)
        soft = self.job.adversary.soft
        taught = None if soft is None else upload(soft.rows(batch.indices.tolist()), device)
        asked = labels if self.job.adversary.classifiers else None
        return clean, adversarial, visible, shown, asked, seeds, which, taught

    def _backward(self, total: Tensor) -> Tensor | float:
        """Backward of this rank's share of the global mean; returns the gradient norm when all is accumulated.

        DeepSpeed steps in it. A loss that is not finite is seen only afterwards, and then nothing more is saved.
        """
        scale = self.accelerator.num_processes * self.settings.accumulation / self.settings.batch_size
        self.accelerator.backward(total.sum() * scale)
        norm: Tensor | float | None = None
        if self.engine is not None:
            norm = self.engine.get_global_grad_norm()
        elif self.accelerator.sync_gradients:
            clip = self.settings.clip or float("inf")
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), clip)
        return 0.0 if norm is None else norm

    def _update(self) -> None:
        """The optimizer step when all is accumulated; before that, and under DeepSpeed, nothing."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _refuse(self, bad: list[tuple[int, int]]) -> NoReturn:
        keys = [key for part in gather_objects(bad) for key in part]
        self.saver.finish()
        samples = ", ".join(f"{index:09d} (epoch {epoch})" for epoch, index in keys[:8])
        raise NonFiniteLoss(
            f"{self.job.label}: loss is not finite at step {self.step + 1}; samples {samples}; "
            f"last good checkpoint: {self.saver.good or 'none'}"
        )

    def _choose(self) -> None:
        """Take the weights of the most robust checkpoint, where held-out images were attacked."""
        chosen = None
        if self.robust and self.accelerator.is_main_process:
            chosen = most_robust_whole(self.job.directory)
        chosen = gather_objects(chosen)[0]
        if chosen is None:
            return
        saved = load_checkpoint(chosen, self.state, self.job.manifest)
        if self.accelerator.is_main_process and saved.robust:
            say(f"{self.job.label}: the weights of step {saved.step} are kept: {describe(saved.robust)}")

    def averaged(self) -> dict[str, Tensor]:
        """The weights to ship: averaged if there is an average. Whole, on the CPU. Collective under ZeRO-3.

        Of a training against the whole those of the step that did best on the held-out images.
        """
        self._choose()
        parts = self.state.average.parts if self.state.average else {}
        return {
            name: whole(p, parts[name] if parts else local_part(p)).detach().cpu().clone()
            for name, p in self.shipped.items()
        }


def _optimizer(parameters: dict[str, nn.Parameter], settings: TrainSettings, *, fused: bool) -> torch.optim.AdamW:
    """AdamW; no decay on biases, norms and tokens (MAE's recipe).

    fused: one kernel for many parameters and no counters on the host; on a CPU other last bits, and no gain.
    """
    decayed = [p for name, p in parameters.items() if p.ndim >= 2 and "token" not in name]
    plain = [p for name, p in parameters.items() if p.ndim < 2 or "token" in name]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=betas, fused=fused or None)


def _on_host(values: dict[str, int | float | Tensor]) -> dict[str, int | float]:
    """Values to log; those that are still on the device are read."""
    return {name: float(value) if isinstance(value, Tensor) else value for name, value in values.items()}


def _note(values: dict[str, int | float | Tensor]) -> str:
    return f"loss {values['loss']:.4f}  {values['images_per_second']:.0f} images/s"


def train(job: TrainingJob) -> tuple[dict[str, Tensor], Accelerator]:
    """Run a training to its end, going on from its checkpoints.

    Returns the weights to ship by parameter name, whole on every rank, and the accelerator. Raises Stopped, Paused,
    NonFiniteLoss, UserError.
    """
    trainer = Trainer(job)
    trainer.run()
    return trainer.averaged(), trainer.accelerator
