"""Every setting of the system, one section a concern: name, type, default, unit, range and one line of help.

Sections of data, training and evaluation are in the files of these names beside this one, those of a kind of purifier
in the kind's own. `maep.config.load` merges YAML and the command line onto these classes; nothing else defines a
setting.
"""

from dataclasses import dataclass, field

from maep.config.data_settings import AttackSettings, ClassifierSettings, DataSettings
from maep.config.evaluation_settings import CertifySettings, EvaluationSettings, PurifySettings
from maep.config.setting import setting
from maep.config.training_settings import (
    FinetuneSettings,
    ModelSettings,
    ObjectiveSettings,
    RobustSettings,
    TrainSettings,
)


@dataclass
class RunSettings:
    name: str = setting("default", "name of the run", affects_result=("report",))
    dir: str = setting("runs/${run.name}", "run directory", unit="path", affects_result=False)
    cache: str = setting("runs/cache", "where artefacts shared between runs live", unit="path", affects_result=False)
    seed: int = setting(0, "seed of order, masks, augmentation, attacks and initialisation", low=0)


@dataclass
class ComputeSettings:
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"), affects_result=False)
    precision: str = setting("fp32", "arithmetic of training", choices=("fp32", "bf16", "fp16"))
    compile: bool = setting(False, "torch.compile the training step")
    cuda_graphs: bool = setting(
        False,
        "replay the compiled training step as CUDA graphs, so that a fast device waits less for its host; takes more "
        "memory; for one process, without DeepSpeed or accumulation",
        added=True,
    )
    tf32: str = setting(
        "convolutions",  # what torch itself does
        "what trainings in fp32 compute on CUDA devices in TF32, which has 10 bits of mantissa instead of 23",
        choices=("none", "convolutions", "all"),
        added=True,
    )
    cudnn_benchmark: bool = setting(
        False,
        "cuDNN times its convolutions for each new shape and takes the fastest; last bits may then differ between runs",
        affects_result=False,
        added=True,
    )
    threads: int = setting(0, "CPU threads a process; 0: torch's choice", low=0, affects_result=False)
    image_memory: int = setting(
        4 * 10**9,  # half of a laptop's: DISCO, the hungriest, then takes 790 x 790 pixels whole
        "what `maep purify` may take for one image beside its pixels, about; an image that takes more is refused",
        unit="bytes",
        low=10**6,
        affects_result=False,
        added=True,
    )
    claim_timeout: float = setting(
        60.0,
        "silence after which a worker's shards or chunks are taken over by others",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )
    zero_stage: int | None = setting(
        None, "DeepSpeed ZeRO stage; unset: no DeepSpeed", choices=(None, 0, 1, 2, 3), affects_result=False
    )
    log_samples: bool = setting(
        False, "write down which samples each process consumed, under run.dir/samples", affects_result=False
    )
    join_timeout: float = setting(
        300.0, "time in which all processes of a job must have joined", unit="seconds", above=0.0, affects_result=False
    )
    stall_timeout: float = setting(
        600.0,
        "time without progress after which a job ends, naming who stalled",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )
    grace: float = setting(
        60.0,
        "time between a signal and the kill; bounds the last save",
        unit="seconds",
        above=0.0,
        affects_result=False,
    )


@dataclass
class PurifierSettings:
    kind: str = setting(
        "maep", "which defense; its settings are the section of that name (maep: model, objective and purify)",
        choices="maep.purifiers.registry:KINDS", added=True,
    )  # fmt: skip


@dataclass
class Settings:
    """The whole configuration, one section a concern; `maep.config.load` adds the section of the purifier's kind."""

    run: RunSettings = field(default_factory=RunSettings)
    data: DataSettings = field(default_factory=DataSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    pretrain: TrainSettings = field(default_factory=TrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    robust: RobustSettings = field(default_factory=RobustSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    purifier: PurifierSettings = field(default_factory=PurifierSettings)
    purify: PurifySettings = field(default_factory=PurifySettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    certify: CertifySettings = field(default_factory=CertifySettings)
