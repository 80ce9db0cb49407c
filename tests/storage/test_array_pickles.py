"""CIFAR's pickles and NumPy's lists: arrays are made from a shape and as many bytes, and from nothing else."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from maep.data.images.cifar import read_pickle
from maep.runtime.errors import UserError
from maep.storage.array_pickles import NUMBERS, load_arrays, read_array_list
from tests.data.images.test_sources import python2_pickle

BATCH = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [0, 1, 255, 256, -1], "names": ["a", "é"]}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_batches(protocol: int) -> None:
    """As Python 2 and 3 wrote them, in C's order and in Fortran's."""
    orders = BATCH["data"], np.asfortranarray(BATCH["data"])
    for array in orders:
        content = python2_pickle({**BATCH, "names": ["a"], "data": array})
        assert np.array_equal(load_arrays(content)["data"], array)
    if protocol > 2:
        read = load_arrays(pickle.dumps(BATCH, protocol=protocol))
        assert read["labels"] == BATCH["labels"]
        assert read["names"] == BATCH["names"]
        assert np.array_equal(read["data"], BATCH["data"])


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\0K\1tR(K\3U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"


def array(shape: bytes = b"(K\4t", dtype: bytes = DTYPE, content: bytes = b"U\4abcd") -> bytes:
    return b"\x80\x02" + ARRAY + b"(K\1" + shape + dtype + b"\x89" + content + b"tb."


@pytest.mark.parametrize(
    "content",
    [
        array(content=b"U\3abc"),
        array(shape=b"(J\xff\xff\xff\xfft"),
        array(shape=b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft"),
        array(shape=b"(G\x40\x10\0\0\0\0\0\0t"),
        array(dtype=DTYPE.replace(b"K\0tb", b"K\x3ftb")),  # flags: the array owns Python objects
        array(dtype=DTYPE.replace(b"NNN", b"NN}")),
        array(dtype=DTYPE.replace(b"u1", b"O8")),
        array(dtype=DTYPE.replace(b"u1", b"f4")),
        array(dtype=DTYPE.replace(b"U\x01|", b"U\x01>")),
        array(dtype=DTYPE.partition(b"(K\3")[0]),
        array(dtype=b"N"),
        array(content=b"]"),
        b"\x80\x02" + ARRAY + b".",
        b"\x80\x02" + DTYPE + b"Nb.",
        b"\x80\x02cnumpy\nndarray\n(K\4tR.",
        b"\x80\x02]r\xff\xff\xff\xff" + b"j\0\0\0\0.",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02T\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02K\1K\2a.",
        b"\x80\x02}]]s.",
        b"\x80\x02a.",
        b"\x80\x02t.",
        b"\x80\x02(.",
        b"\x80\x02P1\n.",
        b"\x80\x02\x82\1.",
        b"\x80\x02cos\nsystem\n(U\x02idtR.",
        b"",
    ],
)
def test_forged_pickles_are_refused(content: bytes) -> None:
    """Flags, sizes, shapes, opcodes and stacks that CIFAR's files do not have."""
    with pytest.raises(UserError, match="there: refused: ."):
        read_pickle(content, "there")


def test_the_forged_ones_differ_from_a_good_one() -> None:
    """Else they would prove nothing."""
    assert np.array_equal(load_arrays(array()), np.frombuffer(b"abcd", np.uint8))


def numbers(dtype: str = "float32") -> list[np.ndarray]:
    """Arrays of different shapes, one in Fortran's order."""
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 2, 4), (4,), (2, 3))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return [*arrays, np.asfortranarray(arrays[2])]


def as_objects(arrays: list[np.ndarray]) -> np.ndarray:
    """As `numpy.save` makes of a list of arrays."""
    objects = np.empty(len(arrays), object)
    objects[:] = arrays
    return objects


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lists_of_arrays_of_numbers_are_read(dtype: str, tmp_path: Path) -> None:
    """As NumPy saves them today, and as Python 2 pickled them."""
    arrays = numbers(dtype)
    np.save(tmp_path / "list.npy", as_objects(arrays), allow_pickle=True)
    for content in ((tmp_path / "list.npy").read_bytes(), older_file(python2_pickle(as_objects(arrays)))):
        (tmp_path / "list.npy").write_bytes(content)
        read = read_array_list(tmp_path / "list.npy")
        assert [each.dtype for each in read] == [np.dtype(dtype)] * 4
        assert all(np.array_equal(each, array) for each, array in zip(read, arrays, strict=True))


def older_file(pickled: bytes) -> bytes:
    """A .npy file of version 1 around a pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled


@pytest.mark.parametrize(
    "content",
    [
        b"no file of NumPy's",
        older_file(pickle.dumps(as_objects(["text"]))),  # type: ignore[list-item]
        older_file(pickle.dumps([np.arange(3)])),  # integers
        older_file(pickle.dumps(as_objects(numbers()))[:-9]),
        older_file(pickle.dumps(print)),
        older_file(pickle.dumps(as_objects([]))),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    """What is damaged, calls something, or holds no such arrays; and of numbers alone, and none."""
    path = tmp_path / "list.npy"
    with pytest.raises(UserError, match=r"list\.npy: no such file"):
        read_array_list(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"list\.npy: (refused: .|expected a list of arrays)"):
        read_array_list(path)
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"list\.npy: expected a list of arrays"):
        read_array_list(path)


def test_an_array_of_numbers_is_refused_where_pixels_are_read() -> None:
    """CIFAR's files may not hold what a list of weights may."""
    content = pickle.dumps(as_objects(numbers()))
    assert len(load_arrays(content, NUMBERS)) == 4
    with pytest.raises(UserError, match="refused: .*only NumPy arrays of u1"):
        read_pickle(content, "there")


@pytest.mark.parametrize("number", [0, -7, 10**19 + 1, 2**64 + 1, -(10**30) - 9, 10**300 + 7])
def test_integers_in_digits_are_exact(number: int) -> None:
    """Of any length: those of more than 20 digits are not cut, nor what is put aside under such a number."""
    assert load_arrays(pickle.dumps([number, True, False], protocol=0)) == [number, True, False]
    assert load_arrays(b"I%d\n." % number) == number
    apart = b"(K\1p%d\nK\2p%d\n0g%d\nl." % (number, 10 * number + 5, number)
    assert load_arrays(apart) == [1, 1]


def test_what_is_no_integer_in_digits_is_refused() -> None:
    """A longer line than any file has, and letters behind the digits."""
    for line in (b"9" * 2000 + b"\n", b"12345678901234567890x\n", b"5LL\n"):
        with pytest.raises(UserError, match="there: refused: ."):
            read_pickle(b"I" + line + b".", "there")


def test_lists_of_lists_do_not_grow() -> None:
    """Thirty levels of ten references each are read in no time, and a list in itself ends."""
    level = b"\x80\x02]q\0K\1a"
    for number in range(1, 30):
        level += b"](" + b"h" + bytes([number - 1]) + (b"h" + bytes([number - 1])) * 9 + b"eq" + bytes([number])
    assert len(load_arrays(level + b".")) == 10
    load_arrays(b"\x80\x02]q\0h\0a.")


def test_flipped_bytes_end_well() -> None:
    """Whatever one or three bytes become, it is read or refused."""
    rng = random.Random(0)
    good = python2_pickle(BATCH)
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            read_pickle(bytes(content), "there")
        except UserError:
            continue
