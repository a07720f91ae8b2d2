"""Runs in a guarded child, or not: FFmpeg with no switch of ours at all, so that only the kernel's walls stand between a file and another."""

from __future__ import annotations

import io
from typing import Any

import av


def frames(args: dict[str, Any], file: Any) -> tuple[dict[str, Any], bytes]:
    """How many frames each text of `texts` gives: as bytes, with every protocol and format that FFmpeg has."""
    out = {}
    for name, text in args["texts"].items():
        try:
            options = {
                "protocol_whitelist": "file,crypto,data,http,tcp,concat,subfile",
                "safe": "0",
                "allowed_extensions": "ALL",
                "extension_picky": "0",
            }
            with av.open(io.BytesIO(text.encode("latin-1")), container_options=options, timeout=3) as container:
                out[name] = sum(1 for _ in container.decode(video=0))
        except (av.FFmpegError, OSError, IndexError):
            out[name] = 0
    return out, b""
