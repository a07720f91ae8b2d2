"""A folder of downloads that outlive their part, for recipes that read the same files again. Off unless a recipe names one.

What comes in: URLs. What goes out: files whose bytes have been hashed again on the way out, against what was noted when they came and against the
list's own hash where it gives one; a file that differs is dropped, and fetched as if it had never been there. Names follow from URLs, so nothing
in the folder says where a file is from. What is kept is not asked for again: neither whether it has changed nor whether its owner has changed
his mind.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from pipelines.fetch.digests import hasher, same
from pipelines.format import storage
from pipelines.format.document import canon
from pipelines.format.errors import HeadwaterError, told

_PIECE = 4 << 20


class Kept:
    """The folder. Several processes may use it at once: files appear whole and are replaced whole."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def find(self, url: str, digest: str | None) -> Path | None:
        """The file of this URL, verified, or None."""
        note = self._note(url)
        if not note.is_file():
            return None
        try:
            noted = storage.read_json(str(note))
            path = self._folder / f"{note.stem}{noted['end']}"
        except (HeadwaterError, KeyError, TypeError):
            return None
        ours, theirs = sha256(), hasher(digest or "")
        if path.is_file():
            with told(str(path)), open(path, "rb") as f:
                while piece := f.read(_PIECE):
                    ours.update(piece)
                    theirs.update(piece)
        if noted.get("sha256") == ours.hexdigest() and (not digest or same(digest, theirs) or noted.get("verified") == digest):
            return path
        storage.delete(str(note))
        storage.delete(str(path))
        return None

    def keep(self, scratch: Path, url: str, digest: str | None, found: str, end: str) -> Path:
        """Take a scratch file of this very folder in, under a name that ends in `end`. `found` is its sha256; it has the list's `digest`, if any."""
        note = self._note(url)
        path = self._folder / f"{note.stem}{end}"
        with told(str(path)):
            os.replace(scratch, path)
        storage.publish(str(note), canon({"sha256": found, "verified": digest, "end": end}))
        return path

    def _note(self, url: str) -> Path:
        return self._folder / f"{sha256(url.encode()).hexdigest()[:32]}.json"
