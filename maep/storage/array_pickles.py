"""A reader of the few pickles that are read: containers, numbers, text, and arrays of bytes or floating-point numbers.

CIFAR consists of such, and so do NumPy's files of a list of arrays.

It runs no pickle machinery and imports nothing: what a pickle calls is compared with the three names that an array
needs, and an array is made only here, from a shape and exactly as many bytes.
"""

import io
import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maep.runtime.errors import fail
from maep.runtime.plain_files import read_bytes

MAX_STEPS = 5_000_000  # opcodes: CIFAR-100's largest batch has 300,000
PIXELS = ("u1",)
NUMBERS = ("f4", "f8", "O8")  # what a list of arrays of numbers consists of
SIZES = {"u1": 1, "f4": 4, "f8": 8}  # bytes of a number; little-endian, as every machine's that writes such files
# What follows byte order in the state of a dtype without fields: no subarray, names, fields, size or alignment; flags.
PLAIN_DTYPE = (None, None, None, -1, -1)
FLAGS = {"O8": 63}  # it holds Python objects: here values that were read, and nothing else
MOST_HEADER, MOST_BYTES = 2**14, 2**28  # of NumPy's files, which are a hundredth as large
GLOBALS = {
    (module, name): name
    for module, name in (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
}


class _Mark:
    """Where the items of a container begin on the stack."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Dtype:
    name: str
    checked: bool = False


@dataclass
class _Array:
    values: Any = None  # an array, or the list of values of one of objects


@dataclass
class _Machine:
    """The stack of a pickle being read, and what it has put aside. dtypes: of arrays that it may make."""

    file: io.BytesIO
    dtypes: tuple[str, ...] = PIXELS
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, count: int) -> bytes:
        """The next bytes. Raises UnpicklingError if there are fewer."""
        content = self.file.read(count) if count >= 0 else b""
        if len(content) != count:
            raise pickle.UnpicklingError("it ends early, or a length in it is wrong")
        return content

    def number(self, form: str) -> int:
        """The next bytes as a little-endian number of one of struct's forms."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def line(self) -> bytes:
        """The bytes up to the end of the line."""
        line = self.file.readline(1024)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("a line in it has no end")
        return line[:-1]

    def pop(self) -> Any:
        """The uppermost value."""
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise pickle.UnpicklingError("it takes what is not on its stack")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """The values above the last mark, which goes with them."""
        at = next((at for at in reversed(range(len(self.stack))) if isinstance(self.stack[at], _Mark)), -1)
        if at < 0:
            raise pickle.UnpicklingError("a mark is missing")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def top(self, kind: type) -> Any:
        """The uppermost value, which must be of this kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError(f"it adds to what is no {kind.__name__}")
        return self.stack[-1]

    def put(self, key: int) -> None:
        """Remember the uppermost value."""
        self.memo[key] = self.top(object)

    def get(self, key: int) -> None:
        """Put a remembered value on the stack."""
        if key not in self.memo:
            raise pickle.UnpicklingError("it asks for what it has not put aside")
        self.stack.append(self.memo[key])


def _integer(machine: _Machine) -> Any:
    """All digits of the line, of which there are at most as many as `line` takes."""
    line = machine.line()
    return {b"00": False, b"01": True}.get(line, int(line.removesuffix(b"L")))


def _quoted(machine: _Machine) -> bytes:
    line = machine.line().strip()
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1] or b"\\" in line:
        raise pickle.UnpicklingError("text in it that is not plainly quoted")
    return line[1:-1]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _allowed(module: str, name: str) -> _Global:
    if (module, name) not in GLOBALS:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; only NumPy arrays are allowed")
    return _Global(GLOBALS[module, name])


def _stack_global(machine: _Machine) -> _Global:
    name, module = machine.pop(), machine.pop()
    return _allowed(str(module), str(name))


# Opcodes that put a new value on the stack.
VALUES: dict[bytes, Callable[[_Machine], Any]] = {
    b"N": lambda _: None,
    b"\x88": lambda _: True,
    b"\x89": lambda _: False,
    b"I": _integer,
    b"L": _integer,
    b"J": lambda m: m.number("i"),
    b"K": lambda m: m.number("B"),
    b"M": lambda m: m.number("H"),
    b"\x8a": lambda m: int.from_bytes(m.take(m.number("B")), "little", signed=True),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],
    b"S": _quoted,
    b"T": lambda m: m.take(m.number("i")),
    b"U": lambda m: m.take(m.number("B")),
    b"B": lambda m: m.take(m.number("I")),
    b"C": lambda m: m.take(m.number("B")),
    b"\x8e": lambda m: m.take(m.number("Q")),
    b"V": lambda m: _text(m.line()),
    b"X": lambda m: _text(m.take(m.number("I"))),
    b"\x8c": lambda m: _text(m.take(m.number("B"))),
    b"\x8d": lambda m: _text(m.take(m.number("Q"))),
    b"]": lambda _: [],
    b"}": lambda _: {},
    b")": lambda _: (),
    b"(": lambda _: _Mark(),
    b"l": lambda m: m.since_mark(),
    b"t": lambda m: tuple(m.since_mark()),
    b"d": lambda m: _pairs(m.since_mark()),
    b"\x85": lambda m: (m.pop(),),
    b"\x86": lambda m: (m.pop(), m.pop())[::-1],
    b"\x87": lambda m: (m.pop(), m.pop(), m.pop())[::-1],
    b"c": lambda m: _allowed(_text(m.line()), _text(m.line())),
    b"\x93": _stack_global,
    b"R": lambda m: _reduce(m.pop(), m.pop(), m.dtypes),
}
# Opcodes that change what is there.
CHANGES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # the protocol
    b"\x95": lambda m: m.take(8),  # the length of a frame
    b"0": lambda m: m.pop(),
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.since_mark()),
    b"s": lambda m: _set(m, [m.pop(), m.pop()][::-1]),
    b"u": lambda m: _set(m, m.since_mark()),
    b"b": lambda m: _build(m.pop(), m.top(object)),
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number("B")),
    b"r": lambda m: m.put(m.number("I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(m.line())),
    b"h": lambda m: m.get(m.number("B")),
    b"j": lambda m: m.get(m.number("I")),
}


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _set(machine: _Machine, values: list[Any]) -> None:
    machine.top(dict).update(_pairs(values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    if len(values) % 2 or not all(isinstance(key, str | bytes | int) for key in keys):
        raise pickle.UnpicklingError("a dictionary in it has keys that are no text")
    return dict(zip(keys, values[1::2], strict=True))


def _reduce(arguments: Any, function: Any, dtypes: tuple[str, ...]) -> Any:
    """The only two calls that there are: an empty array, and one of the dtypes."""
    if function == _Global("_reconstruct") and isinstance(arguments, tuple) and arguments[:1] == (_Global("ndarray"),):
        return _Array()
    if function == _Global("dtype") and isinstance(arguments, tuple) and arguments[:1]:
        name = _text(arguments[0]) if isinstance(arguments[0], bytes) else str(arguments[0])
        if name.lstrip("|<") in dtypes:
            return _Dtype(name.lstrip("|<"))
    raise pickle.UnpicklingError(f"it calls what makes no array; only NumPy arrays of {', '.join(dtypes)} are allowed")


def _build(state: Any, target: Any) -> None:
    if isinstance(target, _Dtype):
        order = "<" if target.name.startswith("f") else "|"
        plain = (*PLAIN_DTYPE, FLAGS.get(target.name, 0))
        if not isinstance(state, tuple) or state[1:2] not in ((order,), (order.encode(),)) or state[2:] != plain:
            raise pickle.UnpicklingError(f"its dtype is not plain {target.name}")
        target.checked = True
    elif isinstance(target, _Array):
        target.values = _array(state)
    else:
        raise pickle.UnpicklingError("it sets the state of what is no array")


def _array(state: Any) -> Any:
    """Of the state (version, shape, dtype, whether in Fortran's order, bytes) of a pickled array; of one of objects
    their list.
    """
    if not isinstance(state, tuple) or len(state) != 5:
        raise pickle.UnpicklingError("the state of an array has another form")
    _, shape, dtype, fortran, content = state
    sizes = isinstance(shape, tuple) and all(type(side) is int and 0 <= side < 2**40 for side in shape)
    if not sizes or len(shape) > 4 or not (isinstance(dtype, _Dtype) and dtype.checked):
        raise pickle.UnpicklingError("the shape or the dtype of an array is not one that is read")
    if dtype.name == "O8":
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} has other than as many values")
        return list(content)
    if not isinstance(content, bytes) or len(content) != math.prod(shape) * SIZES[dtype.name]:
        raise pickle.UnpicklingError(f"an array of shape {shape} has other than as many bytes")
    numbers = np.frombuffer(content, np.dtype(dtype.name).newbyteorder("<"))
    return numbers.reshape(shape, order="F" if fortran else "C")


def load_arrays(content: bytes, dtypes: tuple[str, ...] = PIXELS) -> Any:
    """The plain value of a pickle: Python 2's byte strings as text, arrays as arrays, those of objects as lists.

    dtypes: of arrays that it may hold.

    Raises UnpicklingError (or what struct and int raise) for a damaged one, and for one that wants more than arrays.
    """
    machine = _Machine(io.BytesIO(content), dtypes)
    for _ in range(MAX_STEPS):
        code = machine.take(1)
        if code == b".":
            return _plain(machine.pop(), {})
        if code in VALUES:
            machine.stack.append(VALUES[code](machine))
        elif code in CHANGES:
            CHANGES[code](machine)
        else:
            raise pickle.UnpicklingError(f"opcode 0x{code[0]:02x}; only containers, text and arrays are allowed")
    raise pickle.UnpicklingError(f"more than {MAX_STEPS} opcodes")


def _plain(value: Any, converted: dict[int, Any]) -> Any:
    """With bytes as text and arrays as arrays; each container once, however often it is referred to."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, _Array):
        if value.values is None:
            raise pickle.UnpicklingError("an array in it is empty")
        return _plain(value.values, converted)
    if not isinstance(value, list | dict | tuple):
        return value
    if id(value) not in converted:
        converted[id(value)] = None  # a container in itself
        if isinstance(value, dict):
            plain: Any = {_plain(key, converted): _plain(item, converted) for key, item in value.items()}
        else:
            plain = [_plain(item, converted) for item in value]
        converted[id(value)] = plain
    return converted[id(value)]


def read_array_list(path: Path) -> list[np.ndarray]:
    """The arrays of a .npy file that holds a list of them, of floating-point numbers.

    Raises UserError, naming the file, for one that is missing, damaged, or holds anything else.
    """
    file = io.BytesIO(read_bytes(path, MOST_BYTES))
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = header(file, max_header_size=MOST_HEADER)
        arrays = load_arrays(file.read(), NUMBERS) if dtype.hasobject else None
    except Exception as error:  # noqa: BLE001  (a damaged pickle raises anything)
        fail(f"{path}: refused: {error or type(error).__name__}")
    if not isinstance(arrays, list) or not arrays or not all(isinstance(each, np.ndarray) for each in arrays):
        fail(f"{path}: expected a list of arrays, as numpy.save writes it")
    return arrays
