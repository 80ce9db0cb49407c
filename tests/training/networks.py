"""A small network for what each objective trains, and a small classifier for those that ask one."""

from torch import nn

from maep.config.implementations import OBJECTIVES
from maep.config.training_settings import ModelSettings
from maep.models.code_network import CodeNetwork
from maep.models.denoiser import Denoiser
from maep.models.energy_network import EnergyNetwork
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.models.pixel_cnn import PixelCnn

SMALL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip
CLASSES = 5


def denoiser() -> Denoiser:
    """One that does not predict 0, as it does at first."""
    network = Denoiser(width=8, multipliers=[1, 2], blocks=1, unshuffle=1, latest=0.2)
    nn.init.normal_(network.tail.weight, std=0.1)
    return network


def network_of(objective: str) -> nn.Module:
    """What the objective of this name trains, for images of 16 x 16. Raises KeyError for a kind that is not here."""
    return {
        "images": lambda: MaskedAutoencoder(SMALL),
        "denoiser": denoiser,
        "score": denoiser,
        "velocity": denoiser,
        "energy": lambda: EnergyNetwork(4, "leaky_relu", noise=0.02, chain_steps=2, data_noise=0.02),
        "code": lambda: CodeNetwork([4, 4], bits=2, noise=1.0),
        "likelihood": lambda: PixelCnn(features=4, layers=1, components=2),
    }[OBJECTIVES[objective].network]()


def classifier() -> nn.Module:
    """Frozen, with a map of features at a quarter of the images' resolution."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))
    return layers.eval().requires_grad_(False)
