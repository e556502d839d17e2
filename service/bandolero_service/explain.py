"""Explaining a decision: what was known, what was drawn, what came of it.

The id itself says where to look: the log near its time, then the lake. The decision is
drawn again from its record and must give the same variant.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bandolero.draws import draws
from bandolero.experiment import ExperimentRecord
from bandolero.fold import arms_of
from bandolero.lake.catalog import Lake
from bandolero.log import EVENTS_TABLE, before, log_id_at, read_block, read_blocks
from bandolero.policies import choose, cumulative
from bandolero.settle import closes_ms, settle
from bandolero.snapshot import Drawn, Snapshot, rederive, snapshot_from_bytes
from bandolero_service import keys
from bandolero_service.erasures import hidden
from bandolero_service.errors import ApiError
from bandolero_service.ids import DecisionId, ForgedIdError, Signer
from bandolero_service.store import Entry, Store, blocks_of, name_of

SLACK_MS = 5_000
LOG_SEARCH_MS = 600_000
SAME_WITHIN = 1e-9


def explain(
    store: Store, lake: Lake, signer: Signer, tenant: str, decision_id: str
) -> dict[str, Any]:
    """Everything about one decision of a tenant, JSON-able.

    Raises
    ------
    ApiError
        404 where the id is not the tenant's, or neither log nor lake holds it.
    """
    try:
        decoded = signer.read(decision_id)
    except ForgedIdError:
        raise _not_found(decision_id) from None
    found = _find(store, lake, decoded, decision_id)
    if found.num_rows == 0:
        raise _not_found(decision_id)
    row = hidden(store, decoded.shard, found.slice(0, 1)).to_pylist()[0]
    record = store.record(tenant, row["experiment_id"])
    if record is None:
        raise _not_found(decision_id)
    events = _events(store, lake, decoded, decision_id)
    snapshot = _snapshot(store, lake, record, decoded)
    sticky = _is_sticky(record, row, snapshot)
    drawn = row
    if sticky and row["draw"] is not None:
        drawn = {**row, "draw": signer.unmasked(decoded.nonce, row["draw"])}
    return {
        "decision_id": decision_id,
        "experiment": row["experiment_id"],
        "variant": row["variant_id"],
        "decided_at": _time(row["decided_at_ms"]),
        "unit": row["unit"],
        "context": None if row["context"] is None else json.loads(row["context"]),
        "snapshot_version": row["snapshot_version"],
        "spec_version": row["spec_version"],
        "engine_version": row["engine_version"],
        "mode": row["mode"],
        "serving": row["serving"],
        "draw": None if sticky else row["draw"],  # a sticky one tells of its unit
        "propensity": row["propensity"],
        "eligible": row["eligible"],
        "rule": row["rule"],
        "probabilities": _probabilities(row, snapshot),
        "rederived": _rederived(record, drawn, decoded, snapshot),
        "events": [_event(event) for event in events.to_pylist()],
        "outcome": _outcome(store, record, found.slice(0, 1), events, decoded.shard),
    }


def _find(store: Store, lake: Lake, decoded: DecisionId, decision_id: str) -> pa.Table:
    """The decision's row, from the log or else from the lake."""
    start = decoded.decided_at_ms - SLACK_MS
    end = decoded.decided_at_ms + LOG_SEARCH_MS
    stream = keys.decisions(decoded.shard)
    for log_id, block in blocks_of(store.read(stream, log_id_at(start), end)):
        rows = read_block(block, log_id)
        mine = rows.filter(pc.equal(rows["decision_id"], decision_id))
        if mine.num_rows:
            return mine
    rows, _ = lake.read_log("decisions", from_ms=start)
    return rows.filter(pc.equal(rows["decision_id"], decision_id))


def _events(
    store: Store,
    lake: Lake,
    decoded: DecisionId,
    decision_id: str,
) -> pa.Table:
    """The decision's events from lake and log, each delivery once, in log order."""
    start = decoded.decided_at_ms - SLACK_MS
    archived, _ = lake.read("events", from_ms=start)
    archived = archived.filter(pc.equal(archived["decision_id"], decision_id))
    after = log_id_at(max(start, lake.until_ms(f"s{decoded.shard}")))
    entries = blocks_of(store.read(keys.events(decoded.shard), after))
    logged = read_blocks(entries, EVENTS_TABLE)
    logged = logged.filter(pc.equal(logged["decision_id"], decision_id))
    return pa.concat_tables([archived, logged])


def _snapshot(
    store: Store, lake: Lake, record: ExperimentRecord, decoded: DecisionId
) -> Snapshot | None:
    """The snapshot a decision was made from, if it was ever published."""
    version = decoded.snapshot_version
    name = name_of(record.tenant, record.experiment_id)
    current = store.snapshots(decoded.shard, [name]).get(name)
    if current is not None:
        snapshot = snapshot_from_bytes(current)
        if snapshot.version == version:
            return snapshot
    for entry in _history(store, decoded.shard):
        mine = entry.fields[b"name"] == name.encode()
        if mine and int(entry.fields[b"version"]) == version:
            return snapshot_from_bytes(entry.fields[b"snapshot"])
    rows, _ = lake.read("snapshots", to_ms=decoded.decided_at_ms + SLACK_MS)
    mine = pc.and_(
        pc.and_(
            pc.equal(rows["tenant_id"], record.tenant),
            pc.equal(rows["experiment_id"], record.experiment_id),
        ),
        pc.equal(rows["version"], version),
    )
    found = rows.filter(mine)["snapshot"].to_pylist()
    return snapshot_from_bytes(found[0]) if found else None


def _history(store: Store, shard: int) -> Iterator[Entry]:
    return store.read(keys.history(shard), before("1-0"))


def _probabilities(
    row: dict[str, Any], snapshot: Snapshot | None
) -> dict[str, float] | None:
    """The probability of each variant that could have been drawn."""
    if row["probabilities"] is not None:
        return dict(zip(row["eligible"], row["probabilities"], strict=True))
    if snapshot is None:
        return None
    ids = snapshot.experiment.variant_ids
    return dict(zip(ids, snapshot.probabilities.tolist(), strict=True))


def _rederived(
    record: ExperimentRecord,
    row: dict[str, Any],
    decoded: DecisionId,
    snapshot: Snapshot | None,
) -> dict[str, Any]:
    """The decision drawn again, and whether it comes out the same."""
    if row["draw"] is None:
        return {"same": None, "reason": "the unit was erased, and its draw with it"}
    again = _drawn_again(record, row, snapshot)
    if again is None:
        return {
            "same": None,
            "reason": "the snapshot is neither in the log nor the lake",
        }
    variant_id = record.spec.variant_ids[again.arm]
    from_nonce = None
    if not _is_sticky(record, row, snapshot) and row["mode"] != "fallback":
        from_nonce = draws(decoded.key, decoded.nonce).arm == row["draw"]
    close = abs(again.propensity - row["propensity"]) <= SAME_WITHIN
    same = variant_id == row["variant_id"] and close and from_nonce is not False
    return {
        "same": same,
        "variant": variant_id,
        "propensity": again.propensity,
        "draw_from_nonce": from_nonce,
    }


def _is_sticky(
    record: ExperimentRecord, row: dict[str, Any], snapshot: Snapshot | None
) -> bool:
    """Whether the draw came from the unit."""
    spec = record.spec if snapshot is None else snapshot.experiment
    return spec.allocation.sticky == "unit" and row["unit"] is not None


def _drawn_again(
    record: ExperimentRecord, row: dict[str, Any], snapshot: Snapshot | None
) -> Drawn | None:
    eligible = None
    if row["eligible"] is not None:
        arms = arms_of(record.spec, pa.chunked_array([pa.array(row["eligible"])]))
        eligible = tuple(int(arm) for arm in arms)
    if row["mode"] == "fallback" and eligible is not None:
        return Drawn(eligible[0], 1.0, row["draw"], "fallback")
    if snapshot is not None:
        context = json.loads(row["context"] or "{}")
        return rederive(
            snapshot, row["draw"], row["mode"], eligible, row["rule"], context
        )
    if eligible is None:
        return None
    return _from_recorded(row, eligible)


def _from_recorded(row: dict[str, Any], eligible: tuple[int, ...]) -> Drawn:
    """A cold decision: its snapshot was never published, its record says it all."""
    shares = row["probabilities"]
    place = choose(cumulative(pa.array(shares).to_numpy()), row["draw"])
    return Drawn(eligible[place], row["propensity"], row["draw"], row["mode"])


def _outcome(
    store: Store,
    record: ExperimentRecord,
    decision: pa.Table,
    events: pa.Table,
    shard: int,
) -> dict[str, Any]:
    """What the decision has earned so far, and whether that is final."""
    now_ms = int(store.last_id(keys.events(shard)).partition("-")[0])
    closes = int(closes_ms(decision, record.spec.objective)[0])
    settled = settle(decision, events, record.spec.objective, max(closes, now_ms))
    return {
        "trial": bool(settled.trial[0]),
        "reward": int(settled.reward_micros[0]) / 1e6,
        "settled": closes <= now_ms,
        "settles_at": _time(closes),
    }


def _event(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "event_id": event["event_id"],
        "type": event["type"],
        "value": event["value_micros"] / 1e6,
        "at": _time(event["at_ms"]),
        "received_at": _time(event["received_at_ms"]),
        "retracts": event["retracts"],
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _not_found(decision_id: str) -> ApiError:
    message = f"decision_id == {decision_id[:80]!r}, must be one of your decisions."
    return ApiError(404, "unknown_decision", message, "decision_id")
