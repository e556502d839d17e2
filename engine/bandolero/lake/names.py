"""How files and manifest entries of the lake are named, and what their names say."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_FILE = re.compile(
    r"(?P<folder>.+/)\.?(?P<stem>(?P<shard>[^/]+?)-"
    r"((?P<after>\d{13})-(?P<until>\d{13})|p\d{6}))"
    r"(-[0-9a-f]{8})?\.parquet(\.[0-9a-f]+)?"
)
"""The path of a file or its draft: by its commit or, of an ingested file, its part; and
by the file or files it was made from."""
_ENTRY = re.compile(r"(?P<folder>.+)/(?P<after>\d{13})(-(?P<until>\d{13}))?\.json")
"""The path of an entry, as `entry_of` makes it."""


class Span(NamedTuple):
    """What a shard's log says in (after_ms, until_ms]."""

    after_ms: int
    until_ms: int

    def holds(self, after_ms: int) -> bool:
        """Whether what is logged just after that time is in it."""
        return self.after_ms <= after_ms < self.until_ms


class Place(NamedTuple):
    """Where a file lies: `<folder><stem>…`; its span, unless it is an ingested file's."""

    folder: str
    stem: str
    shard: str
    span: Span | None

    @property
    def day(self) -> str:
        """The day in the folder's name."""
        return self.folder.rstrip("/").rpartition("date=")[2]


def place_of(path: str) -> Place | None:
    """The place of a file, or of a draft of it; None where neither is named so."""
    named = _FILE.fullmatch(path)
    if named is None:
        return None
    is_live = named["after"] is not None
    span = Span(int(named["after"]), int(named["until"])) if is_live else None
    return Place(named["folder"], named["stem"], named["shard"], span)


def stem_of(shard: str, span: Span) -> str:
    """How the name of a file begins that holds a span of a shard's log."""
    return f"{shard}-{span.after_ms:013d}-{span.until_ms:013d}"


def entry_of(shard: str, after_ms: int, merged_to_ms: int | None = None) -> str:
    """The path of a commit's entry in the manifest; a merged one's says where it ends."""
    end = "" if merged_to_ms is None else f"-{merged_to_ms:013d}"
    return f"manifest/{shard}/{after_ms:013d}{end}.json"


def counted_and_covered(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Paths of the entries that count, by shard and position, and of those covered.

    A merged commit covers all that begin within it; its entry comes before theirs.
    """
    counted: list[str] = []
    covered: list[str] = []
    reached: dict[str, int] = {}
    for path in sorted(paths):
        named = _ENTRY.fullmatch(path)
        if named and int(named["after"]) < reached.get(named["folder"], 0):
            covered.append(path)
            continue
        counted.append(path)
        if named and named["until"]:
            reached[named["folder"]] = int(named["until"])
    return counted, covered
