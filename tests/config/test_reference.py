"""configs/README.md is what the settings say."""

from maep.config.load import CONFIGS
from maep.config.reference import reference


def test_the_page_is_up_to_date() -> None:
    """Written again, it would not change."""
    assert (CONFIGS / "README.md").read_text() == reference(), (
        "write it again: python -m maep.config.reference > configs/README.md"
    )
