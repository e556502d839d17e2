"""What the commands of back-up and restore do, and of what is lost all the same."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bandolero_service.commands import CommandError, Place, _say, _steps
from bandolero_service.secret import read_secrets, root_fingerprint
from bandolero_service.store import ApiKey, name_of

_API_KEY = TypeAdapter(ApiKey)


def restore(place: Place) -> None:
    """Rebuild a new store from the lake; fails where the lake has holes."""
    from bandolero_service.new_store import NewStore
    from bandolero_service.restore import restore as run

    lake = place.lake()
    if not (shards := lake.shards()):
        raise CommandError(f"lake == {lake.root!r}, must hold a lake.")
    with place.url() as url, closing(NewStore(url)) as store, _steps() as step:
        store.open(shards)
        restored, bad_files = run(store, lake, place.author(store), step)
    for one in restored:
        _say(_restored_line(one))
    _say(f"{len(restored)} experiments restored; API keys are not in the lake")
    if bad_files:
        told = "; ".join(f"{bad.path}: {bad.reason}" for bad in bad_files)
        raise CommandError(f"what these held is missing: {told}")


def _restored_line(one: Any) -> str:
    record = one.record
    shown = one.snapshot_version
    return (
        f"{name_of(record.tenant, record.experiment_id):40} {record.status:8} version {record.spec_version},"
        f" {one.decisions:,} decisions settled, {one.open_decisions:,} open,"
        f" {'no snapshot' if shown is None else f'snapshot {shown}'}"
        f"{', corrected' if one.is_corrected else ''}"
    )


def give_up(place: Place, paths: list[str]) -> None:
    """List empty files of the lake in the place of lost ones, a line each."""
    from bandolero.lake.give_up import give_up as run
    from bandolero.lake.give_up import holder_of
    from bandolero_service.erasures import alone

    lake = place.lake()
    with place.store() as store:
        for path in paths:
            held = holder_of(lake, path)
            shard = 0 if held.is_ingested else int(held.shard.removeprefix("s"))
            with alone(store, shard) as mine:
                if mine is None:
                    busy = "files are being compacted, erased from or ingested"
                    raise CommandError(f"{busy}: try again in a minute.")
                try:
                    lost = run(lake, holder_of(lake, path), path)
                except ValueError as error:
                    raise CommandError(str(error)) from None
            _say(f"given up: {path} with {lost.rows:,} rows: {lost.reason}")


def export_keys(place: Place, tenant: str | None) -> None:
    """A line of JSON a key, or a tenant's: the hash of its secret, and of the root that hash needs."""
    with place.store() as store:
        root = root_fingerprint(place.root(store))
        for key in store.api_keys():
            if tenant in (None, key.tenant):
                _say(json.dumps({**key._asdict(), "root": root}))


def import_keys(place: Place, file: Path, tenant: str | None) -> None:
    """Write exported keys, or a tenant's; one that is there stays as it is."""
    root = root_fingerprint(read_secrets(place.settings).root)
    read = [
        _read_key(f"{file}, line {number}", line, root)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.strip()
    ]
    kept = [key for key in read if tenant in (None, key.tenant)]
    with place.store() as store:
        author = place.author(store)
        known = {key.key_id for key in store.api_keys()}
        fresh = [key for key in kept if key.key_id not in known]
        for key in fresh:
            store.put_api_key(key, author)
    _say(f"{len(fresh)} keys imported, {len(kept) - len(fresh)} were there already")


def _read_key(where: str, line: str, root: str) -> ApiKey:
    try:
        fields = json.loads(line)
        of_root = fields.pop("root", root)
        key = _API_KEY.validate_python(fields)
    except (ValueError, AttributeError, TypeError):
        rule = "must be a key as `bandolero keys export` writes it."
        raise CommandError(f"{where}, {rule}") from None
    if of_root != root:
        rule = "is good with another root secret only: give that one as"
        raise CommandError(f"{where}, {rule} BANDOLERO_SECRET_ROOT.")
    return key
