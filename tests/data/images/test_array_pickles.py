"""CIFAR's pickles: arrays are made from a shape and as many bytes, and from nothing else."""

import pickle
import random

import numpy as np
import pytest

from maep.data.images.array_pickles import load_arrays
from maep.data.images.cifar import read_pickle
from maep.runtime.errors import UserError
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
