"""The spool: blocks on local disk, in order, whole, and owned by one writer at a time."""

import fcntl
import os
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero_service.spool import Spool, SpoolFullError, orphans
from bandolero_service.store import Block
from service_helpers import linux, short_folder

MAX_BYTES = 1_000_000


def block(number: int, size: int = 10) -> Block:
    """A block with a payload of its own."""
    counts = {"acme/hats": {"v0": number}}
    return Block("decisions", 3, number, bytes([number % 256]) * size, counts)


def read(spool: Spool) -> list[Block]:
    """The blocks not drained yet."""
    return [found for _, found in spool.blocks()]


def test_blocks_come_back_in_order_as_they_were(tmp_path: Path) -> None:
    """Every field of every block survives the disk, in the order of appending."""
    spool = Spool(tmp_path, "w", MAX_BYTES)
    spool.append([block(1), block(2, size=0)])
    spool.append([block(3, size=100_000)])
    assert read(spool) == [block(1), block(2, size=0), block(3, size=100_000)]
    spool.close()


def test_what_is_drained_does_not_come_again(tmp_path: Path) -> None:
    """Reading goes on after the last block noted as drained."""
    spool = Spool(tmp_path, "w", MAX_BYTES)
    spool.append([block(n) for n in range(4)])
    ends = [end for end, _ in spool.blocks()]
    spool.drained(ends[1])
    assert read(spool) == [block(2), block(3)]
    spool.append([block(4)])
    assert read(spool) == [block(2), block(3), block(4)]
    spool.close()


def test_a_drained_spool_gives_its_disk_back(tmp_path: Path) -> None:
    """After the last block the file is empty, takes new ones, and goes when closed."""
    spool = Spool(tmp_path, "w", MAX_BYTES)
    spool.append([block(1)])
    ((end, _),) = spool.blocks()
    spool.drained(end)
    assert spool.path.stat().st_size == 0
    spool.append([block(2)])
    assert read(spool) == [block(2)]
    spool.drained(spool.size)
    spool.close()
    assert list(tmp_path.iterdir()) == []


def of(shard: int, number: int) -> Block:
    """A block of a shard."""
    return block(number)._replace(shard=shard)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=30))
def test_a_shard_that_is_behind_holds_up_no_other(steps: list[tuple[int, int]]) -> None:
    """However shards fall behind and catch up, each one's blocks come once, in order."""
    with short_folder() as folder:
        spool = Spool(folder, "w", MAX_BYTES)
        sent: list[Block] = []
        got: dict[int, list[Block]] = {0: [], 1: [], 2: []}

        def drain(n: int) -> None:
            batch = list(islice(spool.blocks(), n))
            for end, found in batch:
                got[found.shard].append(found)
                spool.drained(end, 1)

        def catch_up(shard: int, n: int) -> None:
            batch = list(islice(spool.blocks_of(shard), n))
            got[shard] += [found for _, found in batch]
            end = batch[-1][0] if batch else spool.behind[shard]
            spool.catch_up(shard, end, len(batch))

        for shard, act in steps:
            if act == 0:
                spool.fall_behind(shard)
            elif act == 1 and shard in spool.behind:
                catch_up(shard, 2)
            elif act == 2:
                drain(2)
            sent.append(of(shard, len(sent)))
            spool.append(sent[-1:])
        drain(100)
        assert spool.is_through()
        for shard in list(spool.behind):
            while shard in spool.behind:
                catch_up(shard, 2)
        drain(100)
        for shard, found in got.items():
            assert found == [one for one in sent if one.shard == shard]
        assert spool.size == 0
        spool.close()


@given(st.integers(1, 200))
def test_a_record_cut_short_ends_the_file(cut: int) -> None:
    """Whatever a crash leaves of the last record, the ones before it are read whole."""
    with short_folder() as folder:
        spool = Spool(folder, "w", MAX_BYTES)
        spool.append([block(1), block(2)])
        kept = spool.size
        spool.append([block(3, size=200)])
        os.truncate(spool.path, spool.size - cut)
        assert spool.size >= kept
        assert read(spool) == [block(1), block(2)]
        spool.drained(kept)
        spool.set_rest_aside()
        spool.close()
        assert not spool.path.exists()


@given(st.data())
def test_an_altered_record_ends_the_file(data: st.DataObject) -> None:
    """A record with any byte changed is set aside, and so is what follows it."""
    with short_folder() as folder:
        spool = Spool(folder, "w", MAX_BYTES)
        spool.append([block(1)])
        start = spool.size
        spool.append([block(2), block(3)])
        length = (spool.size - start) // 2
        at = start + data.draw(st.integers(0, length - 1))
        raw = bytearray(spool.path.read_bytes())
        raw[at] ^= data.draw(st.integers(1, 255))
        spool.path.write_bytes(raw)
        assert read(spool) == [block(1)]
        spool.drained(start)
        spool.set_rest_aside()
        assert spool.path.with_suffix(".rest").read_bytes() == bytes(raw[start:])
        spool.close()


def test_a_full_spool_takes_nothing_of_what_does_not_fit(tmp_path: Path) -> None:
    """Blocks past the bound are refused together; what was there stays readable."""
    spool = Spool(tmp_path, "w", 1_000)
    spool.append([block(1)])
    with pytest.raises(SpoolFullError):
        spool.append([block(2), block(3, size=2_000)])
    assert read(spool) == [block(1)]
    spool.append([block(4)])
    assert read(spool) == [block(1), block(4)]
    spool.close()


def test_a_spool_of_the_dead_is_adopted_once(tmp_path: Path) -> None:
    """A file whose writer is gone goes to one adopter; one whose writer lives to none."""
    dead = Spool(tmp_path, "dead", MAX_BYTES)
    dead.append([block(1)])
    dead.close()
    living = Spool(tmp_path, "living", MAX_BYTES)
    living.append([block(2)])
    adopted = list(orphans(tmp_path, MAX_BYTES))
    assert [spool.writer_id for spool in adopted] == ["dead"]
    assert read(adopted[0]) == [block(1)]
    assert list(orphans(tmp_path, MAX_BYTES)) == []
    adopted[0].close()
    living.close()


@linux
def test_looking_for_orphans_leaves_no_file_open(tmp_path: Path) -> None:
    """However often a writer looks at the spools of the living, it opens no more files."""
    living = Spool(tmp_path, "living", MAX_BYTES)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        assert list(orphans(tmp_path, MAX_BYTES)) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    living.close()


def test_a_new_spool_is_never_seen_without_its_lock(tmp_path: Path) -> None:
    """A writer's own file has its name only once it is locked, so nobody adopts it."""
    (tmp_path / "half-made.new").touch()
    assert list(orphans(tmp_path, MAX_BYTES)) == []
    spool = Spool(tmp_path, "w", MAX_BYTES)
    assert spool.path.exists()
    assert list(orphans(tmp_path, MAX_BYTES)) == []
    spool.close()


def test_a_spool_that_another_has_just_adopted_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening a spool and locking it another may drain and remove it."""
    dead = Spool(tmp_path, "dead", MAX_BYTES)
    dead.append([block(1)])
    dead.close()
    lock = fcntl.flock

    def late(file: int, how: int) -> None:
        dead.path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert list(orphans(tmp_path, MAX_BYTES)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_spool_that_cannot_be_opened_hides_no_other(tmp_path: Path) -> None:
    """What the system does not let us open stays, and the spools after it are adopted."""
    (tmp_path / "a.spool").mkdir()
    dead = Spool(tmp_path, "b", MAX_BYTES)
    dead.append([block(1)])
    dead.close()
    (adopted,) = orphans(tmp_path, MAX_BYTES)
    assert read(adopted) == [block(1)]
    adopted.close()


def test_a_spool_is_emptied_only_once_its_rest_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy and its name are synced while the spool still holds it all."""
    spool = Spool(tmp_path, "w", MAX_BYTES)
    spool.append([block(1)])
    whole, synced = spool.path.read_bytes(), []

    def sync(file: int) -> None:
        assert spool.path.read_bytes() == whole
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    spool.set_rest_aside()
    aside = spool.path.with_suffix(".rest")
    assert aside.read_bytes() == whole
    assert aside.stat().st_mode & 0o777 == 0o600
    assert synced == [aside.stat().st_ino, tmp_path.stat().st_ino]
    assert spool.size == 0
    spool.close()
