"""`maep purify` on an image, a folder, a shard and a shard set; and what it refuses."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from maep import load_purifier
from maep.__main__ import run
from maep.config.evaluation_settings import PurifySettings
from maep.config.load import load_settings, to_yaml
from maep.config.training_settings import ModelSettings
from maep.data.shard_manifest import PurifiedManifest
from maep.data.shards import ShardSet, to_float, to_uint8
from maep.models.masked_autoencoder import MaskedAutoencoder
from maep.purifiers import MAEPurifier, save_purifier
from maep.purifiers.median import MedianPurifier, MedianSettings
from maep.runtime.errors import UserError
from tests.small import write_shards

MODEL = ModelSettings(
    image_size=16, patch_size=4, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=16,
    decoder_depth=1, decoder_heads=2,
)  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with a purifier of random weights."""
    torch.manual_seed(0)
    save_purifier(MAEPurifier(MaskedAutoencoder(MODEL), PurifySettings(batch_tiles=3)), tmp_path / "run/purifier")
    return tmp_path / "run"


def purify(source: Path, target: Path, run_dir: Path, *arguments: str) -> int:
    return run(["purify", str(source), str(target), f"run.dir={run_dir}", "purify.batch_tiles=3", *arguments])


def picture(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(run_dir: Path, image: np.ndarray, **settings: int) -> np.ndarray:
    """What the library gives for one image."""
    purifier = load_purifier(run_dir, settings=PurifySettings(**settings))
    with torch.no_grad():
        purified = purifier(to_float(torch.tensor(image).permute(2, 0, 1)[None]))
    return to_uint8(purified)[0].permute(1, 2, 0).numpy()


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def close(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal up to the rounding of another batch composition."""
    return bool(np.abs(first.astype(int) - second.astype(int)).max() <= 1)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_image_of_any_size(tmp_path: Path, run_dir: Path, suffix: str) -> None:
    """A 20 x 37 picture is purified by tiles and written without loss; command-line settings count."""
    Image.fromarray(picture(0, 20, 37)).save(tmp_path / "in.png")
    assert purify(tmp_path / "in.png", tmp_path / f"new/out{suffix}", run_dir, "purify.overlap=4") == 0
    assert close(read(tmp_path / f"new/out{suffix}"), expected(run_dir, picture(0, 20, 37), overlap=4))


def test_a_path_may_hold_an_equals_sign(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it begins as paths do; a bare `name=…` is a setting."""
    monkeypatch.chdir(tmp_path)
    folder = Path("split=test")
    folder.mkdir()
    Image.fromarray(picture(0)).save(folder / "in=0.png")
    assert run(["purify", f"./{folder}/in=0.png", str(tmp_path / "out=0.png"), f"run.dir={run_dir}"]) == 0
    assert close(read(tmp_path / "out=0.png"), expected(run_dir, picture(0)))
    with pytest.raises(UserError, match="split"):
        run(["purify", f"{folder}/in=0.png", "out.png", f"run.dir={run_dir}"])


@pytest.mark.parametrize("word", ["run.dir={}/run", "run.dir=~/run", 'run.dir="{}/run"', "run.dir={}/run/"])
def test_the_runs_own_configuration_counts(
    tmp_path: Path, run_dir: Path, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.dir/config.yaml is the base of the settings, however its path is written: its two passes are applied."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (run_dir / "config.yaml").write_text(to_yaml(load_settings(None, ["purify.passes=2"])))
    Image.fromarray(picture(0)).save(tmp_path / "in.png")
    assert run(["purify", str(tmp_path / "in.png"), str(tmp_path / "out.png"), word.format(tmp_path)]) == 0
    assert close(read(tmp_path / "out.png"), expected(run_dir, picture(0), passes=2))


def test_a_folder_of_images_of_different_sizes(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every image under its own name, sub-folders kept, in batches; other files are counted, grey becomes RGB."""
    source = tmp_path / "in"
    images = {f"a/{i}.png": picture(i, 16, 16 + 8 * (i // 4)) for i in range(7)}
    (source / "a").mkdir(parents=True)
    for name, image in images.items():
        Image.fromarray(image).save(source / name)
    Image.fromarray(picture(9)[:, :, 0]).save(source / "grey.webp", lossless=True)
    (source / "notes.txt").write_text("hello")
    Image.fromarray(picture(10)).save(source / "u\u0308.png")  # as macOS spells ü; a name of bytes that are no UTF-8
    os.rename(source / "a/6.png", os.fsencode(source) + b"/a/\xe9.png")
    images |= {"\u00fc.png": picture(10), "a/\\xe9.png": images.pop("a/6.png")}
    assert purify(source, tmp_path / "out", run_dir) == 0
    for name, image in images.items():
        assert close(read(tmp_path / "out" / name), expected(run_dir, image))
    assert read(tmp_path / "out/grey.png").shape == (16, 16, 3)
    assert "1 files that are not images" in capsys.readouterr().out


def test_a_shard(tmp_path: Path, run_dir: Path) -> None:
    """WebDataset reads the same keys and labels, with purified images; repeated, the bytes are the same."""
    shards = write_shards(tmp_path / "in", 8)
    for name in ("out.tar", "again.tar"):
        assert purify(tmp_path / "in/shard-00000.tar", tmp_path / name, run_dir) == 0
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    samples = list(webdataset.WebDataset(str(tmp_path / "out.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(8)]
    for i, sample in enumerate(samples):
        assert int(sample["cls"]) == shards.label(i)
        assert close(np.asarray(Image.open(io.BytesIO(sample["png"]))), expected(run_dir, shards.image(i)))


def test_a_shard_set(tmp_path: Path, run_dir: Path) -> None:
    """A sealed set of the same layout and labels, whole, that names the set it was made from."""
    shards = write_shards(tmp_path / "in", 10)
    assert purify(tmp_path / "in", tmp_path / "out", run_dir) == 0
    purified = ShardSet(tmp_path / "out")
    assert purified.verify() == []
    assert isinstance(purified.manifest, PurifiedManifest)
    assert purified.manifest.purified_from == shards.identity
    assert [purified.label(i) for i in range(10)] == [shards.label(i) for i in range(10)]
    assert all(close(purified.image(i), expected(run_dir, shards.image(i))) for i in range(10))


def test_a_purifier_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter's run directory purifies like any other; a kind that asks its classifier is refused by name."""
    purifier = MedianPurifier(MedianSettings())
    save_purifier(purifier, tmp_path / "run/purifier")
    Image.fromarray(picture(0, 20, 37)).save(tmp_path / "in.png")
    assert purify(tmp_path / "in.png", tmp_path / "out.png", tmp_path / "run") == 0
    assert np.array_equal(read(tmp_path / "out.png"), expected(tmp_path / "run", picture(0, 20, 37)))
    monkeypatch.setattr(MedianPurifier, "needs_classifier", True)
    with pytest.raises(UserError, match=r"its purifier \(kind median\) asks a classifier, which this command has not"):
        purify(tmp_path / "in.png", tmp_path / "other.png", tmp_path / "run")


def test_refuses_what_it_cannot_do(tmp_path: Path, run_dir: Path) -> None:
    """Each ends with one line naming the thing and the valid choice."""
    image, folder = tmp_path / "in.png", tmp_path / "empty"
    Image.fromarray(picture(0)).save(image)
    folder.mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 200)
    for source, target, message in (
        (tmp_path / "none.png", tmp_path / "out.png", r"none\.png: no such file"),
        (image, tmp_path / "out.jpg", r"out\.jpg: the output is lossless; name it with \.png or \.webp"),
        (image, image, r"in\.png: exists already"),
        (tmp_path / "text.txt", tmp_path / "out.png", r"text\.txt: not an image or a shard"),
        (folder, tmp_path / "out", r"empty: holds no image"),
        (tmp_path / "bad.tar", tmp_path / "out.tar", r"bad\.tar: cannot be read as tar"),
    ):
        with pytest.raises(UserError, match=message):
            purify(source, target, run_dir)
    with pytest.raises(UserError, match="no purifier"):
        purify(image, tmp_path / "out.png", folder)
    with pytest.raises(UserError, match="IN and OUT"):
        run(["purify", str(image), f"run.dir={run_dir}"])
    assert not (tmp_path / "out.png").exists()


def test_leaves_nothing_half_written(tmp_path: Path, run_dir: Path) -> None:
    """A corrupt last image, in a folder and in a shard, is named, and no output or temporary file remains."""
    source = tmp_path / "in"
    source.mkdir()
    for i in range(5):
        Image.fromarray(picture(i)).save(source / f"{i}.png")
    content = (source / "4.png").read_bytes()
    (source / "4.png").write_bytes(content[: len(content) // 2])
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        tar.add(source, arcname=".")
    before = sorted(tmp_path.rglob("*"))
    for origin, target in ((source, tmp_path / "out"), (tmp_path / "in.tar", tmp_path / "out.tar")):
        with pytest.raises(UserError, match=r"4\.png: corrupt image"):
            purify(origin, target, run_dir)
    assert sorted(tmp_path.rglob("*")) == before


def test_same_output_name_twice_is_refused(tmp_path: Path, run_dir: Path) -> None:
    """a.png and a.jpg would both become a.png."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(picture(0)).save(tmp_path / "in" / name)
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        purify(tmp_path / "in", tmp_path / "out", run_dir)


def folder(path: Path, count: int = 4) -> Path:
    path.mkdir()
    for i in range(count):
        Image.fromarray(picture(i)).save(path / f"{i}.png")
    return path


def test_bad_files_are_left_out_and_the_rest_is_made_once(
    tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named, exit code 5, in the manifest; once they are mended, the same command makes those alone."""
    source = folder(tmp_path / "in")
    whole = (source / "2.png").read_bytes()
    (source / "2.png").write_bytes(whole[:60])
    frames = [Image.fromarray(picture(i)) for i in range(2)]
    frames[0].save(source / "moving.gif", save_all=True, append_images=frames[1:])
    assert purify(source, tmp_path / "out", run_dir, "data.on_error=skip") == 5
    said = " ".join(capsys.readouterr().out.split())
    assert "2.png: corrupt image" in said
    assert "moving.gif: corrupt image: 2 frames" in said
    assert "2 images were" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "3.png", "manifest.json"]
    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in ("0.png", "1.png", "3.png")}
    (source / "2.png").write_bytes(whole)
    (source / "moving.gif").unlink()
    calls: list[int] = []
    purified = MAEPurifier.purify
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAEPurifier, "purify", lambda self, x: calls.append(len(x)) or purified(self, x))
        assert purify(source, tmp_path / "out", run_dir) == 0
    assert calls == [1]
    assert len(times) == 3
    assert close(read(tmp_path / "out/2.png"), expected(run_dir, picture(2)))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_bad_files_are_named_before_the_first_is_purified(
    kind: str, tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of thousands does not cost what was made of the others; how many there are is said, and what helps."""
    source = folder(tmp_path / "in")
    for name in ("2.png", "3.png"):
        (source / name).write_bytes((source / name).read_bytes()[:60])
    if kind == "tar":
        with tarfile.open(tmp_path / "in.tar", "w") as tar:
            tar.add(source, arcname="")
    monkeypatch.setattr(MAEPurifier, "purify", lambda self, images: pytest.fail("an image was purified"))
    suffix = ".tar" if kind == "tar" else ""
    message = r"2\.png: corrupt image: .* \(and 1 more\); data\.on_error=skip leaves such images out"
    with pytest.raises(UserError, match=message):
        purify(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", run_dir)
    assert not (tmp_path / f"out{suffix}").exists()


def test_endings_in_capitals_and_none_at_all(tmp_path: Path, run_dir: Path) -> None:
    """What an image is, its content says; of a shard its ending does, in any case of letters."""
    source = folder(tmp_path / "in", count=2)
    with tarfile.open(tmp_path / "IN.TAR", "w") as tar:
        tar.add(source, arcname="")
    (source / "0.png").rename(tmp_path / "photo")
    assert purify(tmp_path / "photo", tmp_path / "OUT.PNG", run_dir) == 0
    assert purify(tmp_path / "photo", tmp_path / "OUT.WebP", run_dir) == 0
    assert close(read(tmp_path / "OUT.PNG"), expected(run_dir, picture(0)))
    assert (read(tmp_path / "OUT.PNG") == read(tmp_path / "OUT.WebP")).all()
    assert purify(tmp_path / "IN.TAR", tmp_path / "OUT.TAR", run_dir) == 0
    with tarfile.open(tmp_path / "OUT.TAR") as tar:
        assert [member.name for member in tar] == ["0.png", "1.png"]


def test_an_interrupted_command_goes_on(tmp_path: Path, run_dir: Path) -> None:
    """What was finished is not made again; the hidden directory goes."""
    source, calls = folder(tmp_path / "in", 5), []
    purified = MAEPurifier.purify

    def interrupted(self: MAEPurifier, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return purified(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAEPurifier, "purify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            purify(source, tmp_path / "out", run_dir)
        assert not (tmp_path / "out").exists()
        assert purify(source, tmp_path / "out", run_dir) == 0
    assert calls == [3, 2, 2]
    assert all(close(read(tmp_path / f"out/{i}.png"), expected(run_dir, picture(i))) for i in range(5))
    assert not list(tmp_path.glob(".purify-*"))


def test_photographs_are_upright_and_keep_their_transparency(tmp_path: Path, run_dir: Path) -> None:
    """EXIF turns; alpha comes back bit for bit, and what it hides does not come out."""
    (tmp_path / "in").mkdir()
    upright, alpha = picture(0, 24, 16), np.full((16, 16), 255, np.uint8)
    alpha[:8] = 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    turned.save(tmp_path / "in/turned.tiff", exif=exif)
    Image.fromarray(np.dstack([picture(1), alpha])).save(tmp_path / "in/alpha.png")
    Image.fromarray(picture(2)[:, :, 0]).convert("P").save(tmp_path / "in/palette.gif")
    assert purify(tmp_path / "in", tmp_path / "out", run_dir) == 0
    assert close(read(tmp_path / "out/turned.png"), expected(run_dir, upright))
    result, visible = read(tmp_path / "out/alpha.png"), picture(1)
    visible[:8] = 255
    assert np.array_equal(result[..., 3], alpha)
    assert close(result[..., :3], expected(run_dir, visible))
    assert read(tmp_path / "out/palette.png").shape == (16, 16, 3)


def profile(space: bytes) -> bytes:
    """The head of an ICC profile of a colour space, which is all that is looked at."""
    return (128).to_bytes(4, "big") + bytes(12) + space + bytes(108)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_colour_profile_is_kept(tmp_path: Path, run_dir: Path, suffix: str) -> None:
    """Else other colours would be shown; not that of grey pixels, which are RGB in the output."""
    Image.fromarray(picture(0)).save(tmp_path / "rgb.png", icc_profile=profile(b"RGB "))
    Image.fromarray(picture(0)[..., 0]).save(tmp_path / "grey.png", icc_profile=profile(b"GRAY"))
    for name, kept in (("rgb", profile(b"RGB ")), ("grey", None)):
        assert purify(tmp_path / f"{name}.png", tmp_path / f"{name}-out{suffix}", run_dir) == 0
        assert Image.open(tmp_path / f"{name}-out{suffix}").info.get("icc_profile") == kept


def test_bits_that_are_lost_are_said(tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of images of 16 bits a channel, in grey and in colours; nothing is said of those of 8."""
    (tmp_path / "in").mkdir()
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "in/a.png")
    Image.fromarray(picture(0)).save(tmp_path / "in/b.png")
    (tmp_path / "in/c.png").write_bytes(png_of_16_bits(np.dstack([deep, deep, deep.T])))
    assert purify(tmp_path / "in", tmp_path / "out", run_dir) == 0
    assert "of 2 images only 8 bits a channel are kept, they have more: a.png, c.png" in capsys.readouterr().out
    colours = np.dstack([deep, deep, deep.T]) // 257
    assert close(read(tmp_path / "out/c.png"), expected(run_dir, colours.astype(np.uint8)))
    assert purify(tmp_path / "in/b.png", tmp_path / "b.png", run_dir) == 0
    assert "8 bits" not in capsys.readouterr().out


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """uint16 [H, W, 3], which Pillow reads but does not write."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
             for kind, body in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_an_output_that_cannot_be_is_refused_before_any_work(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No purifier is loaded for it, nor image read."""
    Image.fromarray(picture(0)).save(tmp_path / "in.png")
    monkeypatch.setattr("maep.purifiers.load_purifier", lambda *_, **__: pytest.fail("it was loaded"))
    for parent in ("/proc/there", tmp_path / "in.png" / "there"):
        with pytest.raises(UserError, match=r"OUT=.*there: cannot be written: in .* nothing can be made: ."):
            purify(tmp_path / "in.png", Path(parent) / "out.png", run_dir)


def test_no_input_is_overwritten(tmp_path: Path, run_dir: Path) -> None:
    """OUT that is IN, lies in it, holds it, or is a link; outputs that differ in case or in the form of Unicode."""
    source = folder(tmp_path / "in", 1)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for target in ("in", "in/out", "link", "dangling", "link/out", "."):
        with pytest.raises(UserError, match="exists already|lies inside the other"):
            purify(source, tmp_path / target, run_dir)
    for first, second in (("A.png", "a.jpg"), ("é.png", "e\u0301.webp")):
        other = tmp_path / f"clash{len(first.encode())}"
        other.mkdir()
        Image.fromarray(picture(0)).save(other / first)
        Image.fromarray(picture(0)).save(other / second)
        with pytest.raises(UserError, match="would have the same output"):
            purify(other, tmp_path / "out", run_dir)
    assert np.array_equal(read(source / "0.png"), picture(0))


def test_a_strangers_set_writes_nothing_outside(tmp_path: Path, run_dir: Path) -> None:
    """A shard called ../x.tar is refused by name, also with a manifest that lists it."""
    write_shards(tmp_path / "in", 4)
    manifest = json.loads((tmp_path / "in/manifest.json").read_text())
    manifest.pop("content_sha256", None)
    manifest["shards"][0]["name"] = "../x.tar"
    for name in ("shard-00000.tar", "shard-00000.index.json"):
        manifest["files"][f"../{name.replace('shard-00000', 'x')}"] = manifest["files"][name]
        (tmp_path / name.replace("shard-00000", "x")).write_bytes((tmp_path / "in" / name).read_bytes())
    (tmp_path / "in/manifest.json").write_text(json.dumps(manifest))
    before = (tmp_path / "x.tar").read_bytes()
    with pytest.raises(UserError, match=r"'\.\./x\.tar' leaves the directory"):
        purify(tmp_path / "in", tmp_path / "out", run_dir)
    assert (tmp_path / "x.tar").read_bytes() == before


def test_a_tar_leaves_out_whole_samples(tmp_path: Path, run_dir: Path) -> None:
    """The label of an image that cannot be read goes with it; two members of one output are refused."""
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for key, content in (("a", b"no image"), ("b", (folder(tmp_path / "in", 1) / "0.png").read_bytes())):
            for suffix, data in (("cls", b"3"), ("png", content)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert purify(tmp_path / "in.tar", tmp_path / "out.tar", run_dir, "data.on_error=skip") == 5
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["b.cls", "b.png"]


def test_command_ends_with_2_for_an_unknown_verb_or_setting(tmp_path: Path) -> None:
    """As a process: exit code 2, one line on stderr, the nearest choice."""
    for words, message in (
        (["purfy"], "did you mean purify?"),
        (["purify", "a", "b", "purify.overlp=1"], "purify.overlap"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "maep", *words], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
