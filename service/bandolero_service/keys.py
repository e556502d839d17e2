"""Every key of the store, what it holds and how long it lives.

Keys of a shard share one hash tag, so that scripts over them work on a cluster.
"""

LAYOUT = "bandolero:layout"
"""Hash: `shards`, and `root`, a hash of the root secret, fixed at first use; `RESTORING`
while it is; `REFRESHED_MS`, when the nightly job last published."""
RESTORING = "restoring"
REFRESHED_MS = "refreshed_ms"
ARCHIVED_MS = "archived_ms"
"""Field of `meta`: how far the lake is, for information; its own manifest counts."""
KEYS_TAG = "{keys}"
"""The hash tag of all that is about API keys."""
API_KEYS = f"{KEYS_TAG}:records"
"""Hash of API keys by key id: JSON, with a keyed hash of the secret."""
API_KEYS_GENERATION = f"{KEYS_TAG}:generation"
"""Counter, raised at every change of a key."""
REFRESH_LEASE = "bandolero:refresh"
"""Who runs the refresh; one at a time."""
INGEST_LEASE = "bandolero:ingest"
"""Who writes ingested files of the lake: takes one in, or erases from them."""

WRITER_TTL_MS = 7 * 86_400_000
"""How long a writer's last sequence number is remembered after its last block."""
LEASE_MS = 4_000
"""How long a lease lives unless renewed; safety is the fence's, not the lease's."""
WORK_LEASE_MS = 60_000
"""Of a refresh or an ingest, which renews it; after a kill, the next waits as long at most."""
REWRITE_LEASE_MS = 120_000
"""So long one commit, or one merge of some, may take; after a kill, the next waits."""


GENERATIONS = ("generation", "generation:records", "generation:corrections")
"""Numbers that move: when anything served changes, a record, a correction."""


def tag(shard: int) -> str:
    """The hash tag of a shard."""
    return f"{{s{shard}}}"


def of_shard(shard: int) -> tuple[str, ...]:
    """Keys that are there once a shard has been worked on."""
    named = (decisions, events, control, history, meta, records, snapshots)
    return tuple(name(shard) for name in named)


def decisions(shard: int) -> str:
    """Stream of decision blocks."""
    return f"{tag(shard)}:decisions"


def events(shard: int) -> str:
    """Stream of event blocks and ticks; its last id is the shard's log time."""
    return f"{tag(shard)}:events"


def control(shard: int) -> str:
    """Stream of control facts: specification changes, corrections, priors, erasures."""
    return f"{tag(shard)}:control"


def history(shard: int) -> str:
    """Stream of published snapshots."""
    return f"{tag(shard)}:history"


def meta(shard: int) -> str:
    """Hash: the learner's `fence` and `cursors`, `GENERATIONS`, and for information `archived_ms`."""
    return f"{tag(shard)}:meta"


def lease(shard: int, role: str) -> str:
    """Who is the learner, or the archiver, of the shard."""
    return f"{tag(shard)}:lease:{role}"


def rewriting(shard: int) -> str:
    """Who rewrites what the lake holds of the shard: erases from it, or compacts it."""
    return f"{tag(shard)}:lease:rewriting"


def records(shard: int) -> str:
    """Hash of experiment records, JSON by `tenant/experiment`."""
    return records_under(tag(shard))


def records_under(hash_tag: str) -> str:
    """The same by hash tag."""
    return f"{hash_tag}:records"


def snapshots(shard: int) -> str:
    """Hash of the newest snapshot by `tenant/experiment`."""
    return f"{tag(shard)}:snapshots"


def versions(shard: int) -> str:
    """Hash of the newest snapshot's version by `tenant/experiment`."""
    return f"{tag(shard)}:versions"


def folds(shard: int) -> str:
    """Hash of the learner's policy states by `tenant/experiment`."""
    return f"{tag(shard)}:folds"


def corrections(shard: int) -> str:
    """Hash of the newest correction by `tenant/experiment`, JSON."""
    return corrections_under(tag(shard))


def corrections_under(hash_tag: str) -> str:
    """The same by hash tag."""
    return f"{hash_tag}:corrections"


def priors(shard: int) -> str:
    """Hash of the priors in force, `PriorBook` JSON by `tenant/priors`."""
    return priors_under(tag(shard))


def priors_under(hash_tag: str) -> str:
    """The same by hash tag."""
    return f"{hash_tag}:priors"


def prior_versions(shard: int, tenant: str) -> str:
    """Hash of every version of a tenant's priors, JSON by objective, group and version."""
    return f"{tag(shard)}:priors:{tenant}"


def erasures(shard: int) -> str:
    """Hash of erasures of units, JSON by `tenant/erasure`; kept, being receipts."""
    return erasures_under(tag(shard))


def erasures_under(hash_tag: str) -> str:
    """The same by hash tag."""
    return f"{hash_tag}:erasures"


def rollups(shard: int, name: str) -> str:
    """Hash of an experiment's epochs by epoch key."""
    return f"{tag(shard)}:rollups:{name}"


def decided(shard: int, name: str) -> str:
    """Hash: decisions logged so far by variant id, settled or not."""
    return f"{tag(shard)}:decided:{name}"


def audit(hash_tag: str, tenant: str) -> str:
    """Stream of a tenant's audit lines about what lives under a hash tag; kept."""
    return f"{hash_tag}:audit:{tenant}"


def audit_heads(hash_tag: str) -> str:
    """Hash of the heads of those streams by tenant."""
    return f"{hash_tag}:audit"


def writer(shard: int, writer_id: str, stream: str) -> str:
    """Last sequence number a writer appended; makes appending a block idempotent."""
    return f"{tag(shard)}:writer:{writer_id}:{stream}"
