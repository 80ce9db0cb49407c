"""Bit depth: both roundings against their formulas, and none of it visible to autograd."""

import pytest
import torch

from maep.config.load import load_settings
from maep.purifiers.bit_depth import BitDepthPurifier, BitDepthSettings
from maep.runtime.errors import UserError

RAMP = (torch.arange(256) / 255).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)


def test_floor_cuts_bits_off() -> None:
    """The upper four bits of 256 levels, over 16; white stays white."""
    result = BitDepthPurifier(BitDepthSettings(bits=4))(RAMP)
    expected = [min(16 * level // 255, 16) / 16 for level in range(256)]
    assert result[0, 0].flatten().tolist() == expected
    assert result.max() == 1


def test_nearest_has_equal_steps() -> None:
    """Of two bits four levels from 0 to 1, none farther than half a step."""
    result = BitDepthPurifier(BitDepthSettings(bits=2, rounding="nearest"))(RAMP)
    torch.testing.assert_close(result.unique(), torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert (result - RAMP).abs().max() <= 1 / 6


def test_has_no_gradient() -> None:
    """The class says so, and autograd sees a constant."""
    images = RAMP.clone().requires_grad_()
    assert not BitDepthPurifier.is_differentiable
    assert not BitDepthPurifier(BitDepthSettings())(images).requires_grad


def test_all_bits_are_refused() -> None:
    """8 bits are what images have; an unknown rounding names the known ones."""
    with pytest.raises(UserError, match=r"bit_depth\.bits=8.*must be at most 7"):
        load_settings(None, ["purifier.kind=bit_depth", "bit_depth.bits=8"])
    with pytest.raises(UserError, match=r"bit_depth\.rounding=up.*choose one of floor, nearest"):
        load_settings(None, ["purifier.kind=bit_depth", "bit_depth.rounding=up"])
