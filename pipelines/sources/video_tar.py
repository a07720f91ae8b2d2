"""Raw video from WebDataset tars, as video2dataset writes them: members of one stem are one sample (`00012.mp4`, `00012.json`, `00012.txt`).

One tar (`.tar`, `.tar.gz`, `.tgz`, `.tar.zst`) is one part, read as a stream and never extracted (`tar_stream.py` says what is refused); each film
goes to scratch space for as long as its frames are taken. Text beside a film becomes fields of its clips. A tar that is cut gives the films before
the cut and one reject. Tars on the web: `listed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, ClassVar

from pipelines.bounded import opened
from pipelines.clips import About, ClipSource
from pipelines.file_source import FileSource
from pipelines.format.errors import Reject
from pipelines.format.record import Record
from pipelines.listing import Input
from pipelines.media.video import SUFFIXES
from pipelines.pictures import captions
from pipelines.sample_members import TARS, said, stem_of
from pipelines.stage import Rejected, SourcePart
from pipelines.tar_stream import MAX_MEMBER, large_members

_TEXTS = (".txt", ".caption", ".json")


class VideoTar(ClipSource, FileSource):
    """`caption_fields` maps names to members of the sample: `txt`, `caption`, or a key of its JSON (`json.caption`); they are kept as
    `fields.captions`. `url_field`, `licence_field` and `keep` name such places too. `scratch` is a folder with room for the largest film,
    times the workers of a machine. The other keys are those of `clips.py`."""

    suffixes: ClassVar[tuple[str, ...]] = TARS
    caption_fields: dict[str, str] = {}
    url_field: str | None = None
    licence_field: str | None = None
    keep: tuple[str, ...] = ()
    scratch: str | None = None

    def hashed(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in FileSource.hashed(self, fields).items() if k != "scratch"}

    def cut(self, item: Input, where: str) -> list[SourcePart]:
        return [SourcePart({"file": item.path}, [item.as_list()])]

    def read_file(self, where: str, spec: dict[str, Any], source: str) -> Iterator[Record | Rejected]:
        rel = spec["file"]
        for name, sample in _samples(where, self.scratch):
            origin = f"{rel}!{name}" if name else rel
            if isinstance(sample, Reject):
                yield Rejected(origin, sample.reason, sample.detail)
                continue
            try:
                about = self._about(sample.texts)
            except Reject as reject:
                yield Rejected(origin, reject.reason, reject.detail)
                continue
            yield from self.clips_of(sample.film, origin, source, {}, about)

    def _about(self, texts: dict[str, bytes]) -> About:
        named = captions({name: said(texts, where) for name, where in self.caption_fields.items()})
        fields = {where: said(texts, where) for where in self.keep} | ({"captions": dict(named)} if named else {})
        url, licence = (where and said(texts, where) for where in (self.url_field, self.licence_field))
        return About(url=url, licence=licence, fields=fields)


class _Sample:
    """The members of one stem: a film, open, and texts by ending."""

    def __init__(self, stem: str) -> None:
        self.stem, self.name, self.texts = stem, "", dict[str, bytes]()
        self.film: IO[bytes] | None = None

    def given(self) -> tuple[str, _Sample | Reject]:
        if self.film is None:
            return self.stem, Reject("unreadable", f"a sample without a film: {', '.join(self.texts)}"[:200])
        return self.name, self

    def close(self) -> None:
        if self.film is not None:
            self.film.close()


def _samples(path: str, folder: str | None) -> Iterator[tuple[str, _Sample | Reject]]:
    """(film's name, sample) of each run of members with one stem; a sample's film is open until the next is asked for."""
    sample: _Sample | None = None
    try:
        with opened(path) as stream:
            for member, content in large_members(stream, _TEXTS, SUFFIXES, folder):
                if isinstance(content, Reject):
                    yield member, content
                    continue
                film = None if isinstance(content, bytes) else content
                other = sample is not None and (stem_of(member) != sample.stem or (film is not None and sample.film is not None))
                if sample is None or other:  # two films of one stem are two samples
                    if sample is not None:
                        yield sample.given()
                        sample.close()
                    sample = _Sample(stem_of(member))
                if isinstance(content, bytes):
                    sample.texts[member.rpartition(".")[2].lower()] = content
                else:
                    sample.name, sample.film = member, content
                if sum(map(len, sample.texts.values())) > MAX_MEMBER:
                    raise Reject("too_large", f"a sample with more than {MAX_MEMBER} bytes of text")
    except Reject as reject:
        yield "", reject  # the sample at the cut may lack members: it is part of the loss
        return
    else:
        if sample is not None:
            yield sample.given()
    finally:
        if sample is not None:
            sample.close()
