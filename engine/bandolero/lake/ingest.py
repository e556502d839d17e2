"""Other systems' files into the lake: checked row by row, nothing lost, each file once.

A file is committed whole or not at all, named by the hash of its bytes: handing it in
again, under any name, adds nothing, and a run that was killed is run again. Rows that
break a rule go to `quarantine/` with row, column, value and rule, and files that cannot be
read with the reason; the rest goes on. Rows refused because nobody had applied their
experiment or variant come in when the file is handed in once more. Equal-looking rows are
all kept: `settle` decides by event id. What is written, in quarantine too, has been
concealed before.

Parquet, CSV and JSON lines, from this machine or any Arrow filesystem, a bounded part at a
time. `lake.reader` reads and checks, in a process apart; here is what is made of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa

from bandolero.lake.again import commits_of, judged_again, later_shard
from bandolero.lake.catalog import INGESTED, Commit, Lake, OverlapError
from bandolero.lake.checking import REFUSAL, Request
from bandolero.lake.drafts import Drafts, quarantine_of, write_quarantine
from bandolero.lake.mapping import Mapping as FileMapping
from bandolero.lake.reader import Reader, UnreadableFileError
from bandolero.lake.rules import Checks, Known
from bandolero.lake.sources import Source, sources_of

Conceal = Callable[[pa.Table], pa.Table]
"""From decisions to what may be stored of them: pseudonyms for units, or nothing."""
Progress = Callable[[str, int, float], None]
"""Told the file at hand, its rows so far, and the share of it that is read; once more
before it is listed. What it raises, such as that another is at work, ends all."""


AS_OURS = FileMapping()
"""A mapping that says nothing: columns are named as ours are."""


class Terms(NamedTuple):
    """On what terms files are taken in.

    mapping
        What their columns are; by default they are named as ours.
    known
        Experiments (`tenant/experiment`) and their variants; others are refused. None
        where nobody can say.
    max_refused
        Share of a file's rows that may be refused, from 0 to 1; of one with more, none is
        taken in.
    now_ms
        The time; later rows are refused. Default: the clock's.
    """

    mapping: FileMapping = AS_OURS
    known: Known | None = None
    max_refused: float = 1.0
    now_ms: int | None = None


AS_THEY_ARE = Terms()


class IngestedFile(NamedTuple):
    """What became of one file.

    Rows that are in the lake now, in quarantine (by rule, each with the first value that
    broke it), and not meant by the mapping; `reason` is why none is in. One that was there
    before adds nothing but rows that were refused then and no longer are; `still_refused`
    are those that still are. One of a folder that has no known ending is passed over.
    """

    path: str
    accepted: int = 0
    refused: int = 0
    left_out: int = 0
    rules: Mapping[str, int] = MappingProxyType({})
    examples: Mapping[str, str] = MappingProxyType({})
    reason: str | None = None
    was_there: bool = False
    still_refused: int = 0
    is_over_limit: bool = False
    is_passed_over: bool = False


class Ingested(NamedTuple):
    """What became of all files."""

    files: list[IngestedFile]

    @property
    def accepted(self) -> int:
        """Rows that are in the lake now."""
        return sum(file.accepted for file in self.files)

    @property
    def refused(self) -> int:
        """Rows in quarantine."""
        return sum(file.refused for file in self.files)

    @property
    def left_out(self) -> int:
        """Rows that the mapping did not mean."""
        return sum(file.left_out for file in self.files)

    @property
    def passed_over(self) -> int:
        """Files of folders that were not opened."""
        return sum(file.is_passed_over for file in self.files)

    @property
    def bad_files(self) -> int:
        """Files refused whole."""
        return sum(file.reason is not None for file in self.files)


def ingest(
    lake: Lake,
    table: str,
    paths: Sequence[str | Path],
    terms: Terms = AS_THEY_ARE,
    progress: Progress = lambda *_: None,
    conceal: Conceal = lambda decisions: decisions,
) -> Ingested:
    """Load files, or the files of folders, into a table of the lake.

    Parameters
    ----------
    table
        `decisions` or `events`.
    paths
        Files and folders, or URIs of them such as `s3://bucket/exports`.
    conceal
        What is stored of decisions, refused ones too; all, where the files hold
        pseudonyms already.
    """
    with Reader() as reader:
        intake = Intake(lake, table, terms, reader, progress, conceal)
        return Ingested([intake.take_in(source) for source in sources_of(paths, lake)])


class Intake:
    """Takes files into a table of a lake, one after another, on the same terms."""

    def __init__(
        self,
        lake: Lake,
        table: str,
        terms: Terms,
        reader: Reader,
        progress: Progress = lambda *_: None,
        conceal: Conceal = lambda decisions: decisions,
    ) -> None:
        self._lake = lake
        self._table = table
        self._terms = terms
        self._reader = reader
        self._progress = progress
        self._conceal = conceal if table == "decisions" else lambda rows: rows

    def take_in(self, source: Source) -> IngestedFile:
        """Load one file."""
        if not source.format and source.fault is None:
            return IngestedFile(source.name, is_passed_over=True)
        try:
            if source.fault is not None:
                raise UnreadableFileError(source.fault)
            found = self._take_in(source)
            self._lake.delete(self._note_of(source))  # of a try that failed
            return found
        except (UnreadableFileError, OSError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            self._note(source, reason)
            return IngestedFile(source.name, reason=reason)

    def _take_in(self, source: Source) -> IngestedFile:
        version = source.version()
        if version.size == 0:
            raise UnreadableFileError("file is empty: 0 bytes.")
        shard = f"{INGESTED}{self._table}-{self._name(source.digest())}"
        if commits := commits_of(self._lake, shard):
            return self._take_in_rest(source, commits)
        left_out = 0
        with Drafts(self._lake, self._table, shard, source.name) as drafts:
            for part in self._reader.read(source, self._request()):
                left_out += part.left_out
                drafts.add(self._concealed(pa.Table.from_batches([part.rows])))
                self._progress(source.name, drafts.seen + left_out, part.share)
            if source.version() != version:
                raise UnreadableFileError("file was changed while it was being read.")
            drafts.finish()
            self._progress(source.name, drafts.seen + left_out, 1.0)
        return self._list(source, drafts, left_out)

    def _take_in_rest(self, source: Source, commits: list[Commit]) -> IngestedFile:
        """Take in what was refused of a file for want of what is known by now."""
        *before, last = (commit.shard for commit in commits)
        self._forget_refused(*before)  # again, if a try was killed meanwhile
        refused, known = commits[-1].refused, self._terms.known
        found = IngestedFile(source.name, was_there=True, still_refused=refused)
        if not refused or known is None:
            return found
        shard = later_shard(commits)
        with Drafts(self._lake, self._table, shard, source.name) as drafts:
            for rows in judged_again(self._lake, self._table, last, known):
                drafts.add(rows)
            drafts.finish()
            self._progress(source.name, drafts.seen, 1.0)
        if not drafts.accepted:
            self._forget_refused(shard)
            return found
        if not self._enlist(drafts):
            return found
        self._forget_refused(last)
        return found._replace(accepted=drafts.accepted, still_refused=drafts.refused)

    def _forget_refused(self, *shards: str) -> None:
        for shard in shards:
            self._lake.delete_folder(quarantine_of(self._table, shard))

    def _list(self, source: Source, drafts: Drafts, left_out: int) -> IngestedFile:
        """Commit what was drafted of a file, if not too much of it was refused."""
        counts = drafts.accepted, drafts.refused, left_out
        rules = dict(drafts.rules.most_common())
        found = IngestedFile(source.name, *counts, rules, drafts.examples)
        limit = self._terms.max_refused
        if drafts.refused > limit * drafts.seen:
            drafts.discard()
            n_refused = f"{drafts.refused:,} of {drafts.seen:,} rows are refused"
            reason = f"{n_refused}, must be <= {100 * limit:g} %."
            return found._replace(accepted=0, reason=reason, is_over_limit=True)
        if drafts.refused and not drafts.accepted:
            # Not listed, for what is wrong may be mended here: an experiment is unknown.
            n_refused = f"{drafts.refused:,} of {drafts.seen:,} rows are refused"
            return found._replace(reason=f"{n_refused}: none is in.")
        is_new = self._enlist(drafts)
        return found if is_new else IngestedFile(source.name, was_there=True)

    def _enlist(self, drafts: Drafts) -> bool:
        """List what was drafted; False where another has done so meanwhile."""
        try:
            self._lake.enlist(drafts.commit())
        except OverlapError:
            return False
        return True

    def _request(self) -> Request:
        now_ms = self._terms.now_ms or time.time_ns() // 1_000_000
        return Request(
            self._table, self._terms.mapping, Checks(now_ms, self._terms.known)
        )

    def _name(self, digest: str) -> str:
        """What a file's commit is called.

        Events of one file may be of several kinds, a mapping each, and count once by their
        ids. Of a decision the first row counts, so another mapping could not correct it:
        only whose they are, and which of them are meant, makes other decisions of a file.
        """
        mapping = self._terms.mapping
        if self._table == "decisions":
            whose = {k: v for k, v in mapping.columns.items() if k == "tenant_id"}
            mapping = mapping.model_copy(update={"columns": whose})
        if mapping == AS_OURS:
            return digest
        told = digest + mapping.model_dump_json(exclude_defaults=True)
        return blake2b(told.encode(), digest_size=12).hexdigest()

    def _concealed(self, rows: pa.Table) -> pa.Table:
        beside = rows.select(REFUSAL.names)
        ours = self._conceal(rows.drop_columns(REFUSAL.names))
        for name in REFUSAL.names:
            ours = ours.append_column(name, beside[name])
        return ours

    def _note(self, source: Source, reason: str) -> None:
        note = pa.table({"source": [source.name], "reason": [reason]})
        write_quarantine(self._lake, self._note_of(source), note)

    def _note_of(self, source: Source) -> str:
        name = blake2b(source.name.encode(), digest_size=12).hexdigest()
        return f"quarantine/{self._table}/{name}-file.parquet"
