"""An address with a password or a token in it: refused by every call of the library, shown and written by none."""

import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from maep import load_purifier
from maep.config.load import load_settings, to_yaml
from maep.config.schema import Settings
from maep.data.adversarial import make_adversarial_shards
from maep.data.images.build import build_shards, clean_shards, clean_split
from maep.data.shards import ShardSet, read_manifest
from maep.evaluation import evaluate
from maep.models.weight_files import read_content
from maep.pipeline.execution import run_pipeline
from maep.runtime.errors import UserError, exit_code
from maep.storage.remote import Reading, Remote, location, open_storage

ADDRESSES = [
    "s3://user:hunter2@bucket/x",
    "https://host/x?token=hunter2",
    "https://hunter2@host/x",
    "http://h/x#hunter2",
]
READING = Reading.of(Settings().data)


def with_setting(section: str, name: str, value: str) -> Settings:
    """Settings made in Python, which nobody has checked."""
    settings = load_settings("digits", ["run.dir=run", "run.cache=cache"])
    setattr(getattr(settings, section), name, value)
    return settings


CALLS: dict[str, Callable[[str], object]] = {
    "load_purifier": load_purifier,
    "load_purifier a path": lambda address: load_purifier(Path(address)),
    "evaluate": lambda address: evaluate(nn.Flatten().eval(), address),
    "evaluate a path": lambda address: evaluate(nn.Flatten().eval(), Path(address)),
    "evaluate's run_dir": lambda address: evaluate(nn.Flatten().eval(), torch.zeros(2), run_dir=address),
    "evaluate's name": lambda address: evaluate(nn.Flatten().eval(), torch.zeros(2), name=address),
    "build_shards": lambda address: build_shards(with_setting("data", "shards", address)),
    "build_shards of a root": lambda address: build_shards(with_setting("data", "root", address)),
    "clean_shards": lambda address: clean_shards(with_setting("data", "shards", address)),
    "clean_split": lambda address: clean_split(with_setting("data", "shards", address), "train"),
    "make_adversarial_shards": lambda address: make_adversarial_shards(with_setting("data", "shards", address)),
    "run_pipeline": lambda address: run_pipeline(with_setting("data", "shards", address), "all", print),
    "run_pipeline's purifier": lambda address: run_pipeline(
        with_setting("evaluation", "purifier", address), "all", print
    ),
    "to_yaml": lambda address: to_yaml(with_setting("classifier", "weights", address)),
    "ShardSet": lambda address: ShardSet(address, READING),
    "ShardSet of a Remote": lambda address: ShardSet(Remote(address), READING),
    "ShardSet of a path": lambda address: ShardSet(Path(address)),
    "open_storage": lambda address: open_storage(Remote(address), READING),
    "location": location,
    "read_manifest": lambda address: read_manifest(Path(address)),
    "read_content": lambda address: read_content(Path(address)),
}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("call", CALLS)
def test_no_call_shows_or_writes_a_secret(
    call: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In one line that names the rest of the address, in no file or file name, and not further up the traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program.py"])
    with pytest.raises(UserError) as caught:
        CALLS[call](address)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "***" in str(caught.value)
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert "hunter2" not in out + err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in tmp_path.rglob("*") if "hunter2" in path.name]
    assert not [path for path in files if b"hunter2" in path.read_bytes()]
    shutil.rmtree(tmp_path)


def test_a_traceback_of_a_command_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of a library that quotes an address or a header, with what caused it; exit code 1, as Python's own."""

    def command() -> int:
        try:
            raise OSError("401, url='https://user:hunter2@host/x?sig=hunter2'\x1b[2J")
        except OSError as error:
            raise KeyError("Authorization: Bearer hunter2") from error

    assert exit_code(command) == 1
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert "\x1b" not in err
    assert "OSError: 401, url='https://***@host/x?***" in err
    assert err.rstrip().endswith("KeyError: 'Authorization: Bearer ***'")


def test_an_address_where_a_directory_belongs_is_named(tmp_path: Path) -> None:
    """Also one without secrets: not as a path that has lost a slash."""
    with pytest.raises(UserError, match="^https://host/x: is an address; copy the purifier here"):
        load_purifier("https://host/x")
    with pytest.raises(UserError, match="^https://host/x: expected a directory here, not an address"):
        evaluate(nn.Flatten().eval(), "https://host/x", run_dir=tmp_path)
