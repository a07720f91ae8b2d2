"""What code taken over by a hostile file can reach from inside the guarded child: nothing, and the same for every decoder's child."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.media import child
from pipelines.media.backends import BACKENDS, installed
from pipelines.media.child import Child, close_children
from tests.pipelines import hostile, hostile_deeds, hostile_naked
from tests.pipelines.clips import clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")
HERE = Path(hostile_deeds.__file__)
HELD_BY_LANDLOCK = ("read", "list")  # without it nothing stands against reading; all else is refused by number


@pytest.fixture
def deeds(tmp_path, monkeypatch) -> str:
    (tmp_path / "deeds_op.py").write_bytes(HERE.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    close_children()
    yield "deeds_op:try_all"
    close_children()


@pytest.mark.parametrize("name", ["pyav", "decord", "torchcodec"])
def test_no_deed_of_code_taken_over_succeeds_in_any_decoders_child(deeds, name, tmp_path, tmp_path_factory, monkeypatch):
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    victim, code = elsewhere / "victim", tmp_path / "deeds_op.py"
    victim.write_text("still here")
    (elsewhere / "secret.txt").write_text("secret")
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend("")  # as `python -m` does
    before = code.stat()
    with ExitStack() as stack:
        listening = {}
        for at, (family, kind, where) in {
            "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "tcp6": (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0headwater-{os.getpid()}"),
            "unix": (socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "s")),
        }.items():
            s = stack.enter_context(socket.socket(family, kind))
            try:
                s.bind(where)
            except OSError:
                continue  # no IPv6 here
            if kind == socket.SOCK_STREAM:
                s.listen(8)
            s.setblocking(False)
            listening[at] = s
        ports = {at: s.getsockname()[1] for at, s in listening.items() if at in ("tcp", "tcp6", "udp")}
        args = {"tcp6": 9, **ports, "abstract": f"\0headwater-{os.getpid()}", "unix": str(tmp_path / "s"), "parent": os.getpid()}
        args |= {"group": os.getpgrp(), "victim": str(victim), "code": str(code), "cwd": str(elsewhere)}
        one = Child(kind=BACKENDS[name].kind)
        try:
            (answer,) = one.call(deeds, args, wall_s=60)
        finally:
            one.close()
        for at, s in listening.items():
            with pytest.raises(BlockingIOError):
                s.recv(1) if at == "udp" else s.accept()
    found = answer.meta["deeds"]
    assert len(found) > 50
    wall = {d: "landlock" if d.startswith(HELD_BY_LANDLOCK) else "seccomp" for d in found}
    assert not [d for d in found if found[d] == "done" and wall[d] in one.walls], found
    after = code.stat()
    assert (after.st_mode, after.st_mtime, after.st_size) == (before.st_mode, before.st_mtime, before.st_size)
    assert victim.read_text() == "still here" and sorted(p.name for p in elsewhere.iterdir()) == ["secret.txt", "victim"]
    assert not {n for n in answer.meta["environment"] if "SECRET" in n or "proxy" in n.lower()}


@pytest.mark.parametrize("name", ["pyav", "decord", "torchcodec"])
def test_every_decoders_child_has_the_walls_that_this_kernel_can_put_up(name):
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    plain, theirs = Child(), Child(kind=BACKENDS[name].kind)
    try:
        assert theirs.walls == plain.walls
    finally:
        plain.close()
        theirs.close()


def test_a_filter_exists_for_both_architectures_and_names_no_call_twice():
    from pipelines.media import jail, jail_calls

    for machine, calls in jail_calls.REFUSED.items():
        judged = [*jail_calls.SIGNALS[machine], *jail_calls.SELF[machine], jail_calls.CLONE[machine]]
        judged += [n for n, _ in (*jail_calls.OPENS[machine], *jail_calls.COMMANDS[machine])]
        assert len(set(calls.values()) | set(judged)) == len(calls) + len(judged)
        assert len(jail._program(machine)) < 4096  # the kernel's limit
    assert child.Kind().first == ()


def test_the_walls_alone_hold_what_ffmpeg_without_our_switches_would_open(tmp_path, tmp_path_factory, monkeypatch):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.mp4"
    secret.write_bytes(clip(10))
    all_texts = hostile.texts(str(secret), "http://127.0.0.1:9/x")
    texts = {name: text.decode("latin-1") for name, text in all_texts.items() if "server" not in name}
    free, _ = hostile_naked.frames({"texts": texts}, None)
    assert free["ffconcat"] == 10, free  # the danger is real
    (tmp_path / "naked_op.py").write_bytes(Path(hostile_naked.__file__).read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    one = Child()
    try:
        (answer,) = one.call("naked_op:frames", {"texts": texts}, wall_s=60)
    finally:
        one.close()
    if "landlock" in one.walls:
        assert not any(answer.meta.values()), answer.meta
