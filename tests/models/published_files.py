"""Published denoisers written out: names and shapes of their files by the layouts' tables, and what they compute.

By names alone, without the project's networks: convolution after convolution, as the authors describe them.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def drawn(shapes: Shapes, scale: float = 0.15) -> Weights:
    """Random tensors of these shapes, in float64; norms near 1."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith(".resample_filter"):
            weights[name] = torch.full(shape, 0.25, dtype=torch.float64)
            continue
        is_scale = len(shape) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.1 * values if is_scale else scale * values / math.sqrt(math.prod(shape[1:]) / 9 or 1)
    return weights


def linear(name: str, before: int, after: int) -> Shapes:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def conv(name: str, before: int, after: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (after, before, *(kernel or (3, 3))), f"{name}.bias": (after,)}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def waves(steps: Tensor, width: int, last: int) -> tuple[Tensor, Tensor]:
    rates = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2 - last))
    angles = steps[:, None] * rates
    return angles.sin(), angles.cos()


class WrittenOut:
    """Layers by name."""

    def __init__(self, weights: Weights, groups: Callable[[int], int], epsilon: float) -> None:
        self.weights, self.groups, self.epsilon = weights, groups, epsilon

    def conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        options.setdefault("padding", weight.shape[-1] // 2)
        return F.conv2d(
            x, weight.reshape(*weight.shape[:2], weight.shape[2], -1), self.weights[f"{name}.bias"], **options
        )

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.group_norm(x, self.groups(len(weight)), weight, self.weights[f"{name}.bias"], self.epsilon)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, C, T] each; place i's answer is Σ_j softmax_j(q_i·k_j/√C)·v_j."""
    weights = torch.einsum("nci,ncj->nij", q, k).div(math.sqrt(q.shape[1])).softmax(2)
    return torch.einsum("nij,ncj->nci", weights, v)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x: Tensor) -> Tensor:
    return x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))


def widths_up(width: int, multipliers: Sequence[int], blocks: int) -> tuple[list[int], list[int]]:
    """Channels of what goes around, in the order in which it is taken; and of the levels."""
    levels, kept = [width * each for each in multipliers], [width]
    for level, channels in enumerate(levels):
        kept += [channels] * blocks + ([channels] if level + 1 < len(levels) else [])
    return kept[::-1], levels


# DDPM, pesser's names


def ddpm_shapes(width: int, multipliers: Sequence[int], blocks: int, attending: Sequence[int]) -> Shapes:
    timed, (around, levels) = 4 * width, widths_up(width, multipliers, blocks)
    shapes = linear("temb.dense.0", width, timed) | linear("temb.dense.1", timed, timed) | conv("conv_in", 3, width)

    def residual(name: str, before: int, after: int) -> Shapes:
        shapes = norm(f"{name}.norm1", before) | conv(f"{name}.conv1", before, after)
        shapes |= linear(f"{name}.temb_proj", timed, after) | norm(f"{name}.norm2", after)
        shapes |= conv(f"{name}.conv2", after, after)
        return shapes | (conv(f"{name}.nin_shortcut", before, after, 1, 1) if before != after else {})

    def attends(name: str, channels: int) -> Shapes:
        shapes = norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            shapes |= conv(f"{name}.{part}", channels, channels, 1, 1)
        return shapes

    now = width
    for level, after in enumerate(levels):
        for block in range(blocks):
            shapes |= residual(f"down.{level}.block.{block}", now, after)
            shapes |= attends(f"down.{level}.attn.{block}", after) if level in attending else {}
            now = after
        shapes |= conv(f"down.{level}.downsample.conv", now, now) if level + 1 < len(levels) else {}
    shapes |= residual("mid.block_1", now, now) | attends("mid.attn_1", now) | residual("mid.block_2", now, now)
    taken = iter(around)
    for level in reversed(range(len(levels))):
        for block in range(blocks + 1):
            shapes |= residual(f"up.{level}.block.{block}", now + next(taken), levels[level])
            shapes |= attends(f"up.{level}.attn.{block}", levels[level]) if level in attending else {}
            now = levels[level]
        shapes |= conv(f"up.{level}.upsample.conv", now, now) if level else {}
    return shapes | norm("norm_out", now) | conv("conv_out", now, 3)


def ddpm(weights: Weights, levels: int, blocks: int, u: Tensor, steps: Tensor) -> Tensor:
    of = WrittenOut(weights, lambda channels: 32, 1e-6)
    time = torch.cat(waves(steps, weights["conv_in.bias"].numel(), 1), 1)
    time = of.linear("temb.dense.1", F.silu(of.linear("temb.dense.0", time)))

    def residual(name: str, x: Tensor) -> Tensor:
        h = of.conv(f"{name}.conv1", F.silu(of.norm(f"{name}.norm1", x)))
        h = h + of.linear(f"{name}.temb_proj", F.silu(time))[..., None, None]
        h = of.conv(f"{name}.conv2", F.silu(of.norm(f"{name}.norm2", h)))
        return h + (of.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def attends(name: str, x: Tensor) -> Tensor:
        if f"{name}.norm.weight" not in weights:
            return x
        normed = of.norm(f"{name}.norm", x)
        told = attention(*(of.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv"))
        return x + of.conv(f"{name}.proj_out", told.view(x.shape))

    x = of.conv("conv_in", u)
    kept = [x]
    for level in range(levels):
        for block in range(blocks):
            x = attends(f"down.{level}.attn.{block}", residual(f"down.{level}.block.{block}", x))
            kept.append(x)
        if level + 1 < levels:
            x = of.conv(f"down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
            kept.append(x)
    x = residual("mid.block_2", attends("mid.attn_1", residual("mid.block_1", x)))
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            x = residual(f"up.{level}.block.{block}", torch.cat([x, kept.pop()], 1))
            x = attends(f"up.{level}.attn.{block}", x)
        x = of.conv(f"up.{level}.upsample.conv", doubled(x)) if level else x
    return of.conv("conv_out", F.silu(of.norm("norm_out", x)))


# score_sde's DDPM++


def score_sde_shapes(width: int, multipliers: Sequence[int], blocks: int, attending: Sequence[int]) -> Shapes:
    timed, (around, levels) = 4 * width, widths_up(width, multipliers, blocks)
    parts: list[Shapes] = [linear("", width, timed), linear("", timed, timed), conv("", 3, width)]

    def residual(before: int, after: int, change: bool = False) -> Shapes:
        shapes = norm(".GroupNorm_0", before) | conv(".Conv_0", before, after) | linear(".Dense_0", timed, after)
        shapes |= norm(".GroupNorm_1", after) | conv(".Conv_1", after, after)
        return shapes | (conv(".Conv_2", before, after, 1, 1) if change or before != after else {})

    def attends(channels: int) -> Shapes:
        shapes = norm(".GroupNorm_0", channels)
        for number in range(4):
            shapes |= {f".NIN_{number}.W": (channels, channels), f".NIN_{number}.b": (channels,)}
        return shapes

    now = width
    for level, after in enumerate(levels):
        for _ in range(blocks):
            parts.append(residual(now, after))
            parts += [attends(after)] if level in attending else []
            now = after
        parts += [residual(now, now, True)] if level + 1 < len(levels) else []
    parts += [residual(now, now), attends(now), residual(now, now)]
    taken = iter(around)
    for level in reversed(range(len(levels))):
        for _ in range(blocks + 1):
            parts.append(residual(now + next(taken), levels[level]))
            now = levels[level]
        parts += [attends(now)] if level in attending else []
        parts += [residual(now, now, True)] if level else []
    parts += [norm("", now), conv("", now, 3)]
    return {f"all_modules.{number}{name}": shape for number, part in enumerate(parts) for name, shape in part.items()}


def score_sde(weights: Weights, levels: int, blocks: int, u: Tensor, times: Tensor) -> Tensor:
    of = WrittenOut(weights, lambda channels: min(channels // 4, 32), 1e-6)
    numbers = iter(range(3, 1000))
    time = torch.cat(waves(999 * times, weights["all_modules.0.weight"].shape[1], 1), 1)
    time = of.linear("all_modules.1", F.silu(of.linear("all_modules.0", time)))

    def residual(x: Tensor, resize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        name = f"all_modules.{next(numbers)}"
        h = of.conv(f"{name}.Conv_0", resize(F.silu(of.norm(f"{name}.GroupNorm_0", x))))
        h = h + of.linear(f"{name}.Dense_0", F.silu(time))[..., None, None]
        h = of.conv(f"{name}.Conv_1", F.silu(of.norm(f"{name}.GroupNorm_1", h)))
        x = resize(x)
        return (h + (of.conv(f"{name}.Conv_2", x) if f"{name}.Conv_2.weight" in weights else x)) / math.sqrt(2)

    def attends(x: Tensor, position: int) -> Tensor:
        name = f"all_modules.{position}"

        def mixed(number: int, values: Tensor) -> Tensor:
            product = torch.einsum("nit,io->not", values, weights[f"{name}.NIN_{number}.W"])
            return product + weights[f"{name}.NIN_{number}.b"][:, None]

        normed = of.norm(f"{name}.GroupNorm_0", x).flatten(2)
        told = mixed(3, attention(*(mixed(number, normed) for number in range(3))))
        return (x + told.view(x.shape)) / math.sqrt(2)

    def has_attention(position: int) -> bool:
        return f"all_modules.{position}.NIN_0.W" in weights

    x = of.conv("all_modules.2", u)
    kept, position = [x], 3

    def attended(x: Tensor) -> Tensor:
        nonlocal numbers, position
        position = next(numbers)
        if has_attention(position):
            return attends(x, position)
        numbers = iter(range(position, 1000))
        return x

    for level in range(levels):
        for _ in range(blocks):
            x = attended(residual(x))
            kept.append(x)
        if level + 1 < levels:
            x = residual(x, halved)
            kept.append(x)
    x = residual(attended(residual(x)))
    for level in reversed(range(levels)):
        for _ in range(blocks + 1):
            x = residual(torch.cat([x, kept.pop()], 1))
        x = attended(x)
        x = residual(x, doubled) if level else x
    last = next(numbers)
    return of.conv(f"all_modules.{last + 1}", F.silu(of.norm(f"all_modules.{last}", x)))


# improved and guided diffusion


def guided_shapes(
    width: int, multipliers: Sequence[int], blocks: int, attending: Sequence[int], resizes: bool
) -> Shapes:
    timed, (around, levels) = 4 * width, widths_up(width, multipliers, blocks)
    shapes = linear("time_embed.0", width, timed) | linear("time_embed.2", timed, timed)
    shapes |= conv("input_blocks.0.0", 3, width)

    def residual(name: str, before: int, after: int) -> Shapes:
        shapes = norm(f"{name}.in_layers.0", before) | conv(f"{name}.in_layers.2", before, after)
        shapes |= linear(f"{name}.emb_layers.1", timed, 2 * after) | norm(f"{name}.out_layers.0", after)
        shapes |= conv(f"{name}.out_layers.3", after, after)
        return shapes | (conv(f"{name}.skip_connection", before, after, 1, 1) if before != after else {})

    def attends(name: str, channels: int) -> Shapes:
        shapes = norm(f"{name}.norm", channels) | conv(f"{name}.qkv", channels, 3 * channels, 1)
        return shapes | conv(f"{name}.proj_out", channels, channels, 1)

    now, number = width, 1
    for level, after in enumerate(levels):
        for _ in range(blocks):
            shapes |= residual(f"input_blocks.{number}.0", now, after)
            shapes |= attends(f"input_blocks.{number}.1", after) if level in attending else {}
            now, number = after, number + 1
        if level + 1 < len(levels):
            name = f"input_blocks.{number}.0"
            shapes |= residual(name, now, now) if resizes else conv(f"{name}.op", now, now)
            number += 1
    shapes |= residual("middle_block.0", now, now) | attends("middle_block.1", now)
    shapes |= residual("middle_block.2", now, now)
    taken, number = iter(around), 0
    for level in reversed(range(len(levels))):
        for block in range(blocks + 1):
            name, after = f"output_blocks.{number}", levels[level]
            shapes |= residual(f"{name}.0", now + next(taken), after)
            shapes |= attends(f"{name}.1", after) if level in attending else {}
            now, number = after, number + 1
            if level and block == blocks:
                name = f"{name}.{1 + (level in attending)}"
                shapes |= residual(name, now, now) if resizes else conv(f"{name}.conv", now, now)
    return shapes | norm("out.0", now) | conv("out.2", now, 6)


def guided(weights: Weights, heads: Callable[[int], int], u: Tensor, steps: Tensor) -> Tensor:
    of = WrittenOut(weights, lambda channels: 32, 1e-5)
    sines, cosines = waves(steps, weights["time_embed.0.weight"].shape[1], 0)
    time = of.linear("time_embed.2", F.silu(of.linear("time_embed.0", torch.cat([cosines, sines], 1))))

    def residual(name: str, x: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        h = of.conv(f"{name}.in_layers.2", resize(F.silu(of.norm(f"{name}.in_layers.0", x))))
        scale, shift = of.linear(f"{name}.emb_layers.1", F.silu(time))[..., None, None].chunk(2, 1)
        h = of.conv(f"{name}.out_layers.3", F.silu(of.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift))
        x = resize(x)
        return h + (of.conv(f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in weights else x)

    def attends(name: str, x: Tensor) -> Tensor:
        flat = of.norm(f"{name}.norm", x).flatten(2)[..., None]
        told = []
        for part in of.conv(f"{name}.qkv", flat, padding=0)[..., 0].chunk(heads(x.shape[1]), 1):
            told.append(attention(*part.chunk(3, 1)))
        return x + of.conv(f"{name}.proj_out", torch.cat(told, 1)[..., None], padding=0).view(x.shape)

    def stage(name: str, x: Tensor, resize: Callable[[Tensor], Tensor]) -> Tensor:
        """Blocks of residuals that are not the first of a stage resize, and those whose stage holds nothing else."""
        for number in range(3):
            layer = f"{name}.{number}"
            if f"{layer}.weight" in weights:
                x = of.conv(layer, x)
            elif f"{layer}.op.weight" in weights:
                x = of.conv(f"{layer}.op", x, stride=2)
            elif f"{layer}.conv.weight" in weights:
                x = of.conv(f"{layer}.conv", doubled(x))
            elif f"{layer}.qkv.weight" in weights:
                x = attends(layer, x)
            elif f"{layer}.in_layers.0.weight" in weights:
                x = residual(layer, x, resize if number or resize is halved else lambda x: x)
        return x

    inputs = len({name.split(".")[1] for name in weights if name.startswith("input_blocks.")})
    x, kept = u, []
    for number in range(inputs):  # of two blocks a level; every third changes the size
        x = stage(f"input_blocks.{number}", x, halved if number and number % 3 == 0 else lambda x: x)
        kept.append(x)
    x = stage("middle_block", x, lambda x: x)
    for number in range(inputs):
        x = stage(f"output_blocks.{number}", torch.cat([x, kept.pop()], 1), doubled)
    return of.conv("out.2", F.silu(of.norm("out.0", x)))[:, :3]


# EDM, its architecture ddpmpp


def edm_levels(multipliers: Sequence[int]) -> list[str]:
    return [f"{32 // 2**level}x{32 // 2**level}" for level in range(len(multipliers))]


def edm_shapes(width: int, multipliers: Sequence[int], blocks: int, attending: Sequence[int]) -> Shapes:
    timed, (around, levels), sides = 4 * width, widths_up(width, multipliers, blocks), edm_levels(multipliers)
    shapes = linear("map_layer0", width, timed) | linear("map_layer1", timed, timed)

    def block(name: str, before: int, after: int, attends: bool = False, resizes: bool = False) -> Shapes:
        shapes = norm(f"{name}.norm0", before) | conv(f"{name}.conv0", before, after)
        shapes |= linear(f"{name}.affine", timed, after)
        shapes |= norm(f"{name}.norm1", after) | conv(f"{name}.conv1", after, after)
        if before != after or resizes:
            shapes |= conv(f"{name}.skip", before, after, 1, 1)
        if resizes:
            shapes |= {f"{name}.{part}.resample_filter": (1, 1, 2, 2) for part in ("conv0", "skip")}
        if attends:
            shapes |= norm(f"{name}.norm2", after) | conv(f"{name}.qkv", after, 3 * after, 1, 1)
            shapes |= conv(f"{name}.proj", after, after, 1, 1)
        return shapes

    shapes |= conv(f"enc.{sides[0]}_conv", 3, width)
    now = width
    for level, after in enumerate(levels):
        shapes |= block(f"enc.{sides[level]}_down", now, now, resizes=True) if level else {}
        for number in range(blocks):
            shapes |= block(f"enc.{sides[level]}_block{number}", now, after, level in attending)
            now = after
    shapes |= block(f"dec.{sides[-1]}_in0", now, now, True) | block(f"dec.{sides[-1]}_in1", now, now)
    taken = iter(around)
    for level in reversed(range(len(levels))):
        shapes |= block(f"dec.{sides[level]}_up", now, now, resizes=True) if level + 1 < len(levels) else {}
        for number in range(blocks + 1):
            attends = level in attending and number == blocks
            shapes |= block(f"dec.{sides[level]}_block{number}", now + next(taken), levels[level], attends)
            now = levels[level]
    return shapes | norm(f"dec.{sides[0]}_aux_norm", now) | conv(f"dec.{sides[0]}_aux_conv", now, 3)


def edm(weights: Weights, levels: int, blocks: int, v: Tensor, sigma: Tensor) -> Tensor:
    """D(v, σ) within EDM's preconditioning; sigma: [N]."""
    of, sides = WrittenOut(weights, lambda channels: min(channels // 4, 32), 1e-6), edm_levels(range(levels))
    time = torch.cat(waves(sigma.log() / 4, weights["map_layer0.weight"].shape[1], 1), 1)
    time = F.silu(of.linear("map_layer1", F.silu(of.linear("map_layer0", time))))

    def block(name: str, x: Tensor, resize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        h = of.conv(f"{name}.conv0", resize(F.silu(of.norm(f"{name}.norm0", x))))
        h = of.conv(
            f"{name}.conv1", F.silu(of.norm(f"{name}.norm1", h + of.linear(f"{name}.affine", time)[..., None, None]))
        )
        x = resize(x)
        x = (h + (of.conv(f"{name}.skip", x) if f"{name}.skip.weight" in weights else x)) / math.sqrt(2)
        if f"{name}.qkv.weight" not in weights:
            return x
        three = of.conv(f"{name}.qkv", of.norm(f"{name}.norm2", x)).flatten(2)
        told = attention(three[:, 0::3], three[:, 1::3], three[:, 2::3])
        return (x + of.conv(f"{name}.proj", told.view(x.shape))) / math.sqrt(2)

    c_skip = 0.25 / (sigma**2 + 0.25)
    c_out, c_in = sigma * 0.5 / (sigma**2 + 0.25).sqrt(), 1 / (sigma**2 + 0.25).sqrt()
    c_skip, c_out, c_in = (each.view(-1, 1, 1, 1) for each in (c_skip, c_out, c_in))
    x = of.conv(f"enc.{sides[0]}_conv", c_in * v)
    kept = [x]
    for level in range(levels):
        if level:
            x = block(f"enc.{sides[level]}_down", x, halved)
            kept.append(x)
        for number in range(blocks):
            x = block(f"enc.{sides[level]}_block{number}", x)
            kept.append(x)
    x = block(f"dec.{sides[-1]}_in1", block(f"dec.{sides[-1]}_in0", x))
    for level in reversed(range(levels)):
        if level + 1 < levels:
            x = block(f"dec.{sides[level]}_up", x, doubled)
        for number in range(blocks + 1):
            x = block(f"dec.{sides[level]}_block{number}", torch.cat([x, kept.pop()], 1))
    x = of.conv(f"dec.{sides[0]}_aux_conv", F.silu(of.norm(f"dec.{sides[0]}_aux_norm", x)))
    return c_skip * v + c_out * x


# diffusers' names of DDPM's network


def as_diffusers(weights: Weights, levels: int, old: bool = False) -> Weights:
    """The tensors of a DDPM under diffusers' names, written down by hand; old: those of attentions before 2023."""
    to = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    mixing = dict(zip(("q", "k", "v", "proj_out"), to, strict=True))
    inner = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
    result = {}
    for name, tensor in weights.items():
        part, *rest, kind = name.split(".")
        if part == "temb":
            new = f"time_embedding.linear_{int(rest[1]) + 1}"
        elif part in ("norm_out", "conv_out"):
            new = {"norm_out": "conv_norm_out", "conv_out": "conv_out"}[part]
        elif part == "conv_in":
            new = part
        else:
            block = "mid_block" if part == "mid" else f"{part}_blocks.{_place(part, int(rest[0]), levels)}"
            new = f"{block}.{_inside(part, rest if part == 'mid' else rest[1:], mixing, inner)}"
        is_linear = any(f".attentions.{number}.{word}" in new for number in range(9) for word in to)
        result[f"{new}.{kind}"] = tensor.flatten(1) if is_linear and kind == "weight" else tensor
    return result


def _place(part: str, level: int, levels: int) -> int:
    return level if part == "down" else levels - 1 - level


def _inside(part: str, words: Sequence[str], mixing: dict[str, str], inner: dict[str, str]) -> str:
    if words[0] in ("downsample", "upsample"):
        return f"{words[0]}rs.0.conv"
    kind, number = words[0], words[1] if part != "mid" else str(int(words[0].split("_")[1]) - 1)
    last = words[-1]
    if kind.startswith("attn"):
        return f"attentions.{number}.{'group_norm' if last == 'norm' else mixing[last]}"
    return f"resnets.{number}.{inner.get(last, last)}"
