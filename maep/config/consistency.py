"""What settings must fulfil together, beyond the range of each."""

from maep.config.implementations import OBJECTIVES
from maep.config.schema import Settings
from maep.runtime.errors import fail


def check_consistency(settings: Settings) -> None:
    """Raise UserError, naming the settings, where values that are valid one by one do not fit together."""
    model, data = settings.model, settings.data
    if model.image_size % model.patch_size:
        fail(f"model.patch_size={model.patch_size}: does not divide model.image_size={model.image_size}")
    if model.image_size > data.image_size:
        fail(f"model.image_size={model.image_size}: larger than data.image_size={data.image_size}")
    for part in ("encoder", "decoder"):
        width, heads = getattr(model, f"{part}_width"), getattr(model, f"{part}_heads")
        if width % heads or width % 4:
            fail(f"model.{part}_width={width}: must be a multiple of 4 and of model.{part}_heads={heads}")
    if model.image_size % model.refine_scale:
        fail(f"model.refine_scale={model.refine_scale}: does not divide model.image_size={model.image_size}")
    if bool(model.stem_width) != bool(model.stem_depth):
        fail("model.stem_width and model.stem_depth: set both or neither")
    if data.cache_bytes and data.cache_bytes < 2 * data.cache_block:
        fail(f"data.cache_bytes={data.cache_bytes}: must hold two blocks of {data.cache_block}, or be 0")
    if settings.purify.overlap >= model.image_size:
        fail(f"purify.overlap={settings.purify.overlap}: must be below model.image_size={model.image_size}")
    if len(settings.classifier.mean) != 3 or len(settings.classifier.std) != 3:
        fail("classifier.mean and classifier.std: three numbers each, one a channel")
    if bool(settings.finetune.clean_shards) != bool(settings.finetune.adversarial_shards):
        fail("finetune.clean_shards and finetune.adversarial_shards: set both or neither")
    if settings.finetune.clean_shards and settings.finetune.source:
        fail("finetune.source and finetune.clean_shards: both name other images; set one")
    _check_masks(settings)


def _check_masks(settings: Settings) -> None:
    """Masking ratios must fit the objective: some are defined on hidden patches, some on whole images."""
    name, trainings = settings.objective.name, {"pretrain": settings.pretrain}
    if settings.finetune.method != "none":
        trainings["finetune"] = settings.finetune
    for section, train in trainings.items():
        hides = train.mask_ratio > 0 and train.mask_until > 0
        if OBJECTIVES[name].whole_images and hides:
            fail(f"objective.name={name}: is defined on whole images; set {section}.mask_ratio=0")
        if name == "mae" and not (hides and train.mask_until == 1):
            also = " (or finetune.method=none)" if section == "finetune" else ""
            remedy = f"set {section}.mask_ratio above 0 and {section}.mask_until=1{also}"
            fail(f"objective.name=mae: learns from hidden patches alone; {remedy}")
    if name == "mlm" and not (settings.pretrain.mask_ratio > 0 and 0 < settings.pretrain.mask_until < 1):
        fail(
            "objective.name=mlm: has two stages; set pretrain.mask_ratio above 0 and pretrain.mask_until within (0, 1)"
        )
