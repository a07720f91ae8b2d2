"""Numbers out of a pickle, which is read and never run.

    traj_data.pkl ──opcodes──▶ dict of arrays, lists of numbers and strings            (navigation datasets keep positions and yaws so)

What comes in: the bytes of a pickle. What goes out: what it spells, if that is only dicts, lists, tuples, numbers, strings and numpy arrays of
numbers. A pickle is a program for a small machine whose instructions can import and call anything. Here the instructions are read one at a time
and a few dozen harmless ones are carried out on plain values; nothing is imported, looked up or called. The seven names by which numpy writes an
array or a number are recognised *as words*, and the array is built from the bytes beside them. Any other name or instruction is `not_allowed`.

Bounds: the file, the number of instructions (so that a bomb costs a second at most), and the numbers that one entry unfolds to, since a list may
hold another one a billion times over by reference.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.format.errors import Reject

MAX_BYTES = 64 << 20  # positions and yaw of 2.8M frames: eight days at 4 a second
MAX_STEPS = 1_000_000  # instructions; an array takes about thirty whatever its size, a list of numbers one each
MAX_NUMBERS = 20_000_000
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_KNOWN = {
    **{f"{room} {name}": name for room in _NUMPY[:2] for name in ("_reconstruct", "scalar")},
    **{f"{room} _frombuffer": "_frombuffer" for room in _NUMPY[2:]},
    **{"numpy ndarray": "ndarray", "numpy dtype": "dtype", "_codecs encode": "encode"},
    **{"__builtin__ bytes": "bytes", "builtins bytes": "bytes", "__builtin__ bytearray": "bytes", "builtins bytearray": "bytes"},
    "collections OrderedDict": "OrderedDict",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_LITERALS |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_LITERALS |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class _Word:
    """A name that numpy's pickles hold; only ever compared."""

    name: str


@dataclass(slots=True)
class _Dtype:
    code: str
    order: str = "="


@dataclass(slots=True)
class _Array:
    """An array whose bytes come with a later instruction."""

    value: Any = None


class _Mark:
    pass


def unpickled(data: bytes) -> Any:
    """The plain value that a pickle spells: numpy arrays as arrays, everything else as Python's own. Raises `Reject`: `not_allowed` for a name
    or an instruction that is not on the list, `too_large`, `unreadable`."""
    if len(data) > MAX_BYTES:
        raise Reject("too_large", f"a pickle of {len(data)} bytes, allowed {MAX_BYTES}")
    machine = _Machine()
    try:
        for step, (opcode, argument, at) in enumerate(pickletools.genops(data)):
            if step >= MAX_STEPS:
                raise Reject("too_large", f"more than {MAX_STEPS} instructions")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument, at or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, AssertionError, MemoryError, RecursionError) as e:
        raise Reject("unreadable", f"pickle: {type(e).__name__}: {e}"[:200]) from None
    raise Reject("truncated", "the pickle does not end")


def arrays(data: bytes) -> dict[str, np.ndarray]:
    """The entries of a pickled dict that are numbers: name → array with at least one axis."""
    whole = unpickled(data)
    if not isinstance(whole, dict):
        raise Reject("unreadable", f"the pickle holds a {type(whole).__name__}, not a dict of columns")
    found = {name: _numeric(value) for name, value in whole.items() if isinstance(name, str)}
    return {name: a for name, a in found.items() if a is not None and a.ndim}


class _Machine:
    """The stack and the memo of the pickle machine, without its power to import and call."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any, at: int) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument, at)

    def _build(self, name: str, argument: Any, at: int) -> None:
        stack = self.stack
        if name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append([] if name == "EMPTY_LIST" else self._marked())
        elif name in ("EMPTY_DICT", "DICT"):
            stack.append({} if name == "EMPTY_DICT" else _pairs(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            more = [stack.pop()] if name == "APPEND" else self._marked()
            _as(stack[-1], list).extend(more)
        elif name in ("SETITEM", "SETITEMS"):
            more = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._marked()
            _as(stack[-1], dict).update(_pairs(more))
        elif name == "GLOBAL":
            stack.append(_word(str(argument), at))
        elif name == "STACK_GLOBAL":
            attribute, room = stack.pop(), stack.pop()
            stack.append(_word(f"{room} {attribute}", at))
        elif name == "REDUCE":
            given = stack.pop()
            stack.append(_made(_as(stack.pop(), _Word).name, _as(given, tuple)))
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], _as(state, tuple))
        else:
            raise Reject("not_allowed", f"the pickle wants to {name} at byte {at}; only plain values and numpy arrays are read")

    def _marked(self) -> list[Any]:
        """What lies above the topmost mark; takes it and the mark away."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _Mark:
                found = self.stack[i + 1 :]
                del self.stack[i:]
                return found
        raise ValueError("no mark")


def _word(name: str, at: int) -> _Word:
    if name not in _KNOWN:
        raise Reject("not_allowed", f"the pickle names {name[:100]!r} at byte {at}; nothing is imported, only numpy arrays are known")
    return _Word(_KNOWN[name])


def _made(name: str, given: tuple[Any, ...]) -> Any:
    """What numpy's own constructors stand for, by name; nothing is called."""
    if name == "_reconstruct":
        return _Array()
    if name == "dtype":
        return _Dtype(_as(given[0], str))
    if name == "encode":
        return _as(given[0], str).encode("latin-1")
    if name == "bytes":
        return _as(given[0], bytes) if given else b""
    if name == "OrderedDict":
        return _pairs([x for pair in _as(given[0], list) for x in _as(pair, list)]) if given else {}
    if name == "scalar":
        return _array(given[0], (), given[1], "C").item()
    if name == "_frombuffer":
        return _Array(_array(given[1], given[2], given[0], given[3]))
    raise Reject("not_allowed", f"the pickle calls {name}")


def _fill(target: Any, state: tuple[Any, ...]) -> None:
    """BUILD: the byte order of a dtype, or the shape and bytes of an array."""
    if isinstance(target, _Dtype):
        target.order = _as(state[1], str)
        if target.order not in "<>=|" or any(x is not None for x in state[2:5]):
            raise Reject("not_allowed", f"a dtype with fields or byte order {target.order!r}")
    elif isinstance(target, _Array):
        _, shape, dtype, fortran, data = state
        target.value = _array(dtype, shape, data, "F" if fortran else "C")
    else:
        raise Reject("not_allowed", f"the pickle sets the state of a {type(target).__name__}")


def _array(dtype: Any, shape: Any, data: Any, order: Any) -> np.ndarray:
    """Numbers from their bytes, if there are exactly as many bytes as the shape says."""
    kind = _as(dtype, _Dtype)
    if kind.code[:1] not in "biuf" or kind.code[1:] not in ("1", "2", "4", "8"):
        raise Reject("not_allowed", f"an array of {kind.code!r}: only numbers are read")
    sides = _as(shape, tuple)
    if len(sides) > 8 or not all(type(n) is int and n >= 0 for n in sides):
        raise ValueError(f"shape {sides!r}"[:100])
    raw, real = _as(data, bytes), np.dtype(kind.order.replace("|", "=") + kind.code)
    wanted = real.itemsize
    for n in sides:
        wanted *= n
    if wanted != len(raw):
        raise Reject("truncated", f"the pickle speaks of {wanted} bytes, {len(raw)} are there"[:200])
    return np.frombuffer(raw, real).reshape(sides, order="F" if order == "F" else "C")


def _numeric(value: Any) -> np.ndarray | None:
    """An array of an entry: itself, or a list (of lists, of arrays) of numbers with one length; None for anything else."""
    if isinstance(value, _Array):
        return np.asarray(value.value) if value.value is not None else None
    flat: list[Any] = [value]
    shape: list[int] = []
    while flat and isinstance(flat[0], list | tuple | _Array) and len(shape) < 4:
        rows = [x.value if isinstance(x, _Array) else x for x in flat]
        wide = {-1 if not isinstance(x, list | tuple | np.ndarray) or (isinstance(x, np.ndarray) and not x.ndim) else len(x) for x in rows}
        if len(wide) != 1 or -1 in wide:
            return None
        shape.append(wide.pop())
        if len(flat) * shape[-1] > MAX_NUMBERS:
            raise Reject("too_large", f"a list unfolds to more than {MAX_NUMBERS} numbers")
        flat = [y for x in rows for y in (x.tolist() if isinstance(x, np.ndarray) else x)]
    if not all(isinstance(x, int | float) for x in flat):
        return None
    return np.array(flat, np.float64).reshape(shape)


def _pairs(flat: list[Any]) -> dict[Any, Any]:
    keys = flat[0::2]
    if len(flat) % 2 or not all(isinstance(k, str | int | float | bytes) for k in keys):
        raise ValueError("keys of a dict are strings or numbers")
    return dict(zip(keys, flat[1::2], strict=True))


def _as(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise Reject("not_allowed", f"the pickle has a {type(value).__name__} where only a {kind.__name__} is read")
    return value
