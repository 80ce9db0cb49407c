"""The version of maep: in reports, checkpoints and manifests, and what `maep --version` prints."""

__version__ = "0.2.0"
