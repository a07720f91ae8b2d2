"""Images with captions from WebDataset tars, such as img2dataset writes: members of one stem are one sample (`00012.jpg`, `00012.txt`, `00012.json`).

One tar (`.tar`, `.tar.gz`, `.tgz`, `.tar.zst`) is one part, read as a stream and never extracted; see `tar_stream.py` for what is refused. A tar that
is cut gives its whole samples and one reject.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pipelines.bounded import opened
from pipelines.format.document import Size
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listing import list_files, place
from pipelines.media.images import MAX_PIXELS
from pipelines.pictures import SUFFIXES, captions, pair
from pipelines.sample_members import TARS, said, stem_of
from pipelines.stage import Rejected, Source, SourcePart
from pipelines.tar_stream import MAX_MEMBER, members

MAX_SAMPLE = MAX_MEMBER + (16 << 20)  # bytes of all members of one stem: the largest picture and what is said of it
_TEXTS = (".txt", ".caption", ".json")


class ImageTar(Source):
    """`caption_fields` maps the captions' names to members of the sample: `txt`, `caption`, or a key of its JSON (`json.caption`). `url_field`,
    `licence_field` and `keep` name such places too."""

    data: ClassVar[str] = "image-text"
    path: str
    caption_fields: dict[str, str] = {"original": "txt"}
    url_field: str | None = None
    licence_field: str | None = None
    licence: str | None = None
    keep: tuple[str, ...] = ()
    max_pixels: Size = MAX_PIXELS

    def parts(self) -> list[SourcePart]:
        return [SourcePart({"file": f.path}, [f.as_list()]) for f in list_files(self.path, TARS)]

    def read(self, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        rel = spec["file"]
        for stem, sample in _samples(place(self.path, rel)):
            try:
                if isinstance(sample, Reject):
                    raise sample
                image = next((n for n in sample if n.lower().endswith(SUFFIXES)), None)
                if image is None:
                    raise Reject("unreadable", f"a sample without an image: {', '.join(sample)}"[:200])
                stem = image
                yield self._pair(source, f"{rel}!{image}", sample[image], {n[n.rindex(".") + 1 :].lower(): v for n, v in sample.items()})
            except Reject as reject:
                yield Rejected(f"{rel}!{stem}" if stem else rel, reject.reason, reject.detail)

    def _pair(self, source: str, origin: str, image: bytes, sample: dict[str, bytes]) -> Record:
        texts = captions({name: said(sample, where) for name, where in self.caption_fields.items()})
        url, licence = (w and said(sample, w) for w in (self.url_field, self.licence_field))
        fields = {w: said(sample, w) for w in self.keep}
        return pair(source, origin, image, texts, self.max_pixels, url=url, licence=licence or self.licence, fields=fields)


def _samples(path: str) -> Iterator[tuple[str, dict[str, bytes] | Reject]]:
    """(stem, members) of each run of members with one stem; what is refused, and a bad end of the archive, come as (name, Reject)."""
    stem, sample, held = "", dict[str, bytes](), 0
    try:
        with opened(path) as stream:
            for name, content in members(stream, SUFFIXES + _TEXTS):
                if isinstance(content, Reject):
                    yield name, content
                    continue
                now = stem_of(name)
                if now != stem and sample:
                    yield stem, sample
                    sample, held = {}, 0
                stem = now
                sample[name] = content
                held += len(content)
                if held > MAX_SAMPLE:  # any number of members may share a stem
                    yield name, Reject("too_large", f"a sample of more than {MAX_SAMPLE} bytes")
                    sample, held = {}, 0
    except Reject as reject:
        yield "", reject  # the sample at the cut may lack members: it is part of the loss
        return
    if sample:
        yield stem, sample
