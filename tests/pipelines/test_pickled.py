"""Pickles are read and never run: plain values and arrays come out whatever the protocol, everything else is refused."""

from __future__ import annotations

import os
import pickle
import pickletools
import subprocess
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipelines import pickled
from pipelines.format.errors import Reject
from pipelines.pickled import arrays, unpickled

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4) | st.tuples(x, x),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(plain, st.sampled_from(list(PROTOCOLS)))
def test_plain_values_come_out_as_they_went_in(value, protocol):
    assert unpickled(pickle.dumps(value, protocol)) == value


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(st.sampled_from(["f4", "f8", ">f8", "i4", "u1", "i8", "?", "f2"]), hnp.array_shapes(max_dims=3, max_side=5)),
    st.sampled_from(list(PROTOCOLS)),
    st.booleans(),
)
def test_arrays_come_out_bit_for_bit_in_every_protocol(array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    found = arrays(pickle.dumps({"position": array, "yaw": array}, protocol))
    for name in ("position", "yaw"):
        assert found[name].dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_navigation_datasets_hold_reads(protocol):
    data = OrderedDict(position=[[0.0, 1.5], [2.0, 3.0]], yaw=[np.float32(0.5), 1], name="walk", note=None)
    found = arrays(pickle.dumps(data, protocol))
    assert found["position"].tolist() == [[0, 1.5], [2, 3]] and found["yaw"].tolist() == [0.5, 1] and set(found) == {"position", "yaw"}
    rows = {"position": [np.array([1.0, 2.0]), np.array([3.0, 4.0])], "yaw": np.zeros((2, 1))}
    assert arrays(pickle.dumps(rows, protocol))["position"].tolist() == [[1, 2], [3, 4]]


def test_pickles_of_the_older_numpy_read():
    data = pickle.dumps({"yaw": np.arange(3.0)}, 2)
    assert arrays(data.replace(b"numpy._core", b"numpy.core"))["yaw"].tolist() == [0, 1, 2]


class Call:
    """Pickles as a call of what it is given."""

    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


def hostile(canary: str) -> dict[str, bytes]:
    touch = f"touch {canary}"
    calls = {
        "system": Call(os.system, (touch,)),
        "popen": Call(subprocess.Popen, (["touch", canary],)),
        "open": Call(open, (canary, "w")),
        "eval": Call(eval, (f"open({canary!r}, 'w')",)),
        "exec": Call(exec, (f"open({canary!r}, 'w')",)),
        "getattr": Call(getattr, ("", "join")),
        "import": Call(__import__, ("os",)),
        "partial": Call(partial, (os.system, touch)),
        "state": Call(list, (), None, iter([Call(os.system, (touch,))])),
        "numpy_load": Call(np.load, (canary,)),
        "path": Path(canary),
        "object_array": np.array([Call(os.system, (touch,))], object),
        "structured": np.zeros(2, [("a", "f8"), ("b", "O")]),
        "text_array": np.array(["a"]),
        "complex": np.zeros(2, complex),
        "date": np.zeros(2, "M8[s]"),
        "set": {1, 2},
        "instance": Reject("a", "b"),
    }
    out = {f"{name}{p}": pickle.dumps({"position": value, "yaw": value}, p) for name, value in calls.items() for p in (0, 2, 4)}
    return out | {
        "inst": b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + touch.encode() + b"'\no.",
        "persistent": b"P1\n.",
        "binpersid": b"K\x01Q.",
        "extension": b"\x82\x01.",
        "newobj": b"\x80\x02cos\nsystem\n)\x81.",
        "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        "numpy_as_a_door": b"\x80\x04\x8c\x05numpy\x8c\x0fload.__globals__\x93.",
        "dotted": b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x15_reconstruct.__self__\x93.",
        "call_of_an_array": pickle.dumps({"a": np.zeros(2)}, 2).replace(b"_codecs\nencode", b"os\nsystem"),
        "build_of_a_dict": b"}}U\x01aK\x01sb.",
        "call_of_a_string": b"S'x'\n)R.",
        "unhashable_key": b"}]K\x01s.",
    }


def test_no_hostile_pickle_runs_anything(tmp_path):
    canary = tmp_path / "canary"
    cases = hostile(str(canary))
    for name, data in cases.items():
        with pytest.raises(Reject) as e:
            arrays(data)
            pytest.fail(f"{name} came through")
        assert e.value.reason in ("not_allowed", "unreadable"), name
    assert len(cases) > 60 and not canary.exists()


def test_bombs_end_early_and_say_so(monkeypatch):
    laughs = b"\x80\x04]\x94" + b"".join(b"]\x94(" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 99 + b"e" for i in range(40)) + b"."
    nested = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    huge_memo = b"\x80\x02Nr\xff\xff\xff\xff."
    long_number = b"\x80\x02\x8b" + (1 << 30).to_bytes(4, "little") + b"\x01."
    digits = b"L" + b"9" * 100_000 + b"L\n."
    claims = pickle.dumps({"yaw": np.zeros(2)}, 2).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85")
    many = b"\x80\x02" + b"N0" * 600_000 + b"N."
    for data in (laughs, nested, huge_memo, long_number, digits, claims, many, b"", b"\x80", b"garbage"):
        with pytest.raises(Reject) as e:
            arrays(data)
        assert e.value.reason in ("too_large", "unreadable", "truncated")
    lists = b"]\x94(" + b"K\x01" * 1000 + b"e0" + b"".join(b"]\x94(" + (b"h" + bytes([i])) * 1000 + b"e0" for i in range(3))
    with pytest.raises(Reject, match="unfolds"):  # 4 kB that would be 10^12 numbers
        arrays(b"\x80\x04" + lists + b"}\x8c\x03yawh\x03s.")
    monkeypatch.setattr(pickled, "MAX_BYTES", 10)
    with pytest.raises(Reject, match="allowed 10"):
        arrays(pickle.dumps({"yaw": np.zeros(20)}))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from([0, 2, 4, 5]))
def test_damaged_and_random_pickles_are_refused_or_read_and_nothing_else(noise, at, protocol):
    good = pickle.dumps({"position": np.zeros((3, 2)), "yaw": [1.0, 2.0, 3.0]}, protocol)
    for data in (noise, good[:at], good[:at] + noise + good[at:], good[:at] + noise + good[at + len(noise) :]):
        with suppress(Reject):
            assert all(isinstance(a, np.ndarray) for a in arrays(data).values())


def test_no_instruction_beyond_the_list_is_carried_out():
    known = {op.name for op in pickletools.opcodes}
    dangerous = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert dangerous <= known
    for name in dangerous | {"DUP", "FROZENSET", "EMPTY_SET", "ADDITEMS"}:
        with pytest.raises(Reject):
            pickled._Machine().step(name, None, 0)
