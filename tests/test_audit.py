"""The audit log: every act has its line, and a chain that was touched shows it."""

import json
import threading
from typing import Any

import pytest

from bandolero.experiment import Experiment, parse_experiment
from bandolero_service import keys, trail
from bandolero_service.audit import Act, Author, Line, faults
from bandolero_service.auth import new_api_key
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.erasures import Progress, _written, ask
from bandolero_service.experiments import acted, change, put_spec
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import Running, experiment, needs_server

ROOT = b"root"
AUTHOR = Author("test", ROOT)
CHAIN = "{s0}"


def chain_of(n: int, author: Author = AUTHOR) -> list[Line]:
    """A chain of `n` acts on one object, whose body is the number of the act."""
    lines: list[Line] = []
    for i in range(n):
        act = Act("acme", "changed", "experiment hats", "acme/hats", str(i))
        before = str(i - 1).encode() if i else None
        head = lines[-1].head if lines else ""
        lines.append(author.line(CHAIN, head, act, before))
    return lines


def found_in(lines: list[Line], head: str | None = None, body: bytes = b"4") -> str:
    """What is wrong with a chain of five that was whole, in words; empty for nothing."""
    whole = chain_of(1)[0].head if head is None else head
    bodies = {"experiment hats": body}
    return "; ".join(faults(ROOT, CHAIN, "acme", lines, whole, bodies))


@pytest.fixture
def five() -> list[Line]:
    """A chain of five lines."""
    return chain_of(5)


def test_a_chain_as_it_was_written_is_whole(five: list[Line]) -> None:
    """Nothing is found in a chain that nobody touched."""
    assert found_in(five, five[-1].head) == ""


@pytest.mark.parametrize("at", range(5))
def test_a_removed_line_shows(five: list[Line], at: int) -> None:
    """The first, any in the middle, and the last, which only the head tells of."""
    assert found_in(five[:at] + five[at + 1 :], five[-1].head) != ""


def test_lines_cut_off_with_their_head_show(five: list[Line]) -> None:
    """Who cuts the head back too leaves an object that no line accounts for."""
    said = found_in(five[:3], five[2].head)
    assert (
        said
        == "acme, chain s0: experiment hats is not what the last line about it led to"
    )


@pytest.mark.parametrize(
    "field", ["actor", "at_ms", "act", "object", "before", "after", "n"]
)
def test_a_changed_line_shows(five: list[Line], field: str) -> None:
    """Every field is under the line's MAC."""
    told = five[2].fields | {field: 99}
    changed = [*five[:2], Line(json.dumps(told), five[2].mac), *five[3:]]
    assert "line 3 was changed" in found_in(changed, five[-1].head)


def test_a_reordered_line_shows(five: list[Line]) -> None:
    """Two lines that changed places are named."""
    swapped = [five[0], five[2], five[1], *five[3:]]
    assert "line 2 is not in its place" in found_in(swapped, five[-1].head)


def test_a_line_put_in_shows(five: list[Line]) -> None:
    """A line that was copied, or made with another secret, does not fit in."""
    copied = [*five[:3], five[2], *five[3:]]
    assert "line 4 is not in its place" in found_in(copied, five[-1].head)
    forged = chain_of(6, Author("test", b"another"))
    assert "line 6 was changed" in found_in([*five, forged[-1]], forged[-1].head, b"5")


def test_a_line_of_another_tenant_does_not_fit(five: list[Line]) -> None:
    """Chains are keyed by tenant: a whole one given to another tenant is broken."""
    said = faults(ROOT, CHAIN, "rival", five, five[-1].head, {})
    assert len(said) == 5


def test_what_is_no_line_is_a_fault_and_no_crash() -> None:
    """Bytes that are not even JSON are reported like any changed line."""
    assert "line 1 was changed" in found_in([Line("nonsense", "")], "")
    assert "line 1 was changed" in found_in([Line("[]", "")], "")


def test_an_object_that_is_gone_shows(five: list[Line]) -> None:
    """Nothing is ever removed: what a line led to must still be there."""
    (said,) = faults(ROOT, CHAIN, "acme", five, five[-1].head, {})
    assert said == "acme, chain s0: experiment hats is gone"


def test_a_mac_may_be_any_text(five: list[Line]) -> None:
    """Letters beyond ASCII in its place are a fault and no crash."""
    changed = [*five[:4], Line(five[4].text, "\u00e9" * 48)]
    assert "line 5 was changed" in found_in(changed, five[-1].head)


def test_an_erasure_may_go_on_but_not_be_another() -> None:
    """How far it has come is no act; whose unit it is, when, and its receipt are."""
    asked = Progress("pseudonym", 1, 2, 3, "receipt")
    thing = "erasure er-1"
    body = _written(asked)
    line = AUTHOR.line(
        CHAIN, "", Act("acme", "erasure", thing, "acme/er-1", body), None
    )

    def found(**changed: Any) -> list[str]:
        now = _written(asked._replace(**changed)).encode()
        return faults(ROOT, CHAIN, "acme", [line], line.head, {thing: now})

    assert found(rows=9, files=2, unreadable=1, in_lake=False, in_log=False) == []
    for changed in ({"unit": "x"}, {"asked_at_ms": 0}, {"receipt_hash": "x"}):
        assert len(found(**changed)) == 1
    junk = {thing: b"[[["}
    assert len(faults(ROOT, CHAIN, "acme", [line], line.head, junk)) == 1


# --- in the store ---------------------------------------------------------------------------


def spec(experiment_id: str) -> Experiment:
    """A specification of acme's."""
    return parse_experiment(experiment(experiment_id))


def audited(store: Store, tenant: str | None = None) -> list[str]:
    """Everything that is wrong with the audit log."""
    chains = trail.verified(store, ROOT, tenant)
    return [fault for chain in chains for fault in chain.faults]


@needs_server
def test_acts_and_their_lines_are_written_together(store: Store) -> None:
    """Experiments, corrections and keys: one line an act, none for an act that was refused."""
    record = put_spec(store, AUTHOR, "acme", spec("hats"))
    change(store, AUTHOR, "acme", "hats", "start", lambda r: acted(r, "start"))
    assert not store.put_record(record, 1, "changed", AUTHOR)
    store.put_correction("acme", "hats", {"watermark_ms": 1}, AUTHOR)
    _, key = new_api_key(ROOT, "acme", ["decide"])
    store.put_api_key(key, AUTHOR)
    store.put_api_key(key._replace(revoked=True), AUTHOR)
    told = trail.lines(store, "acme")
    assert sorted((line["act"], line["object"]) for line in told) == [
        ("correction", "correction of hats"),
        ("created", "experiment hats"),
        ("created", f"key {key.key_id}"),
        ("revoked", f"key {key.key_id}"),
        ("start", "experiment hats"),
    ]
    by_act = {(line["object"], line["act"]): line for line in told}
    created = by_act["experiment hats", "created"]
    started = by_act["experiment hats", "start"]
    assert (created["before"], started["before"]) == (None, created["after"])
    assert {line["actor"] for line in told} == {"test"}
    assert audited(store) == []


@needs_server
def test_racing_acts_make_one_chain(store: Store) -> None:
    """Eight threads that act on a tenant's experiments write every line, one after the other."""

    def act(name: str) -> None:
        put_spec(store, AUTHOR, "acme", spec(name))
        change(store, AUTHOR, "acme", name, "start", lambda r: acted(r, "start"))

    threads = [threading.Thread(target=act, args=(f"e{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(trail.lines(store, "acme")) == 16
    assert audited(store) == []


@needs_server
def test_what_is_done_to_the_store_shows(store: Store) -> None:
    """A line deleted, a record written past the log, a chain removed: each is found."""
    put_spec(store, AUTHOR, "acme", spec("hats"))
    put_spec(store, AUTHOR, "rival", spec("hats"))
    redis: Any = store._redis
    tag = keys.tag(store.shard("acme", "hats"))
    redis.hset(f"{tag}:records", "acme/hats", "{}")
    assert len(audited(store, "acme")) == 1
    assert audited(store, "rival") == []
    ((log_id, _),) = redis.xrange(keys.audit(tag, "acme"))
    redis.xdel(keys.audit(tag, "acme"), log_id)
    assert len(audited(store)) == 2
    redis.delete(keys.audit(tag, "acme"))
    redis.hdel(keys.audit_heads(tag), "acme")
    assert len(audited(store)) == 1


@needs_server
@pytest.mark.parametrize("kind", ["records", "corrections", "erasures"])
def test_what_is_written_or_removed_past_the_log_shows(store: Store, kind: str) -> None:
    """Experiments, corrections and erasures: one that was changed, and one that is gone."""
    put_spec(store, AUTHOR, "acme", spec("hats"))
    store.put_correction("acme", "hats", {"watermark_ms": 1}, AUTHOR)
    ask(store, Settings(), "acme", "pseudonym", AUTHOR)
    assert audited(store) == []
    redis: Any = store._redis
    where = f"{keys.tag(store.shard('acme', 'hats'))}:{kind}"
    (name,) = redis.hkeys(where)
    redis.hset(where, name, "{}")
    assert len(audited(store)) == 1
    redis.hdel(where, name)
    (said,) = audited(store)
    assert said.endswith("is gone")


@needs_server
def test_bytes_that_are_no_text_are_a_fault(store: Store) -> None:
    """A line in the store whose MAC is not even text is found, and breaks nothing."""
    put_spec(store, AUTHOR, "acme", spec("hats"))
    redis: Any = store._redis
    tag = keys.tag(store.shard("acme", "hats"))
    redis.xadd(keys.audit(tag, "acme"), {"line": b"\xff", "mac": b"\xff\xc3"})
    assert any("line 2 was changed" in fault for fault in audited(store))


@needs_server
@pytest.mark.parametrize("changed", [{"at_ms": None}, {"at_ms": 10**30}, {"tenant": 1}])
def test_a_line_that_says_too_little_is_left_out_of_the_list(
    store: Store, changed: dict[str, Any]
) -> None:
    """A line without a time, or with nonsense in a field, breaks no listing; it is a fault."""
    put_spec(store, AUTHOR, "acme", spec("hats"))
    redis: Any = store._redis
    where = keys.audit(keys.tag(store.shard("acme", "hats")), "acme")
    (first,) = trail.lines(store, "acme")
    redis.xadd(where, {"line": json.dumps(first | changed), "mac": "x"})
    assert trail.lines(store, "acme") == [first]
    assert any("line 2 was changed" in fault for fault in audited(store))


# --- through the running system -------------------------------------------------------------


def test_a_tenant_reads_its_own_log_and_no_other(running: Running) -> None:
    """Who, what and when, newest last; the other tenant's acts are nowhere in it."""
    mine, theirs = running.key("watched"), running.key("watcher")
    running.ok("PUT", "/v1/experiments/seen", experiment("seen"), mine)
    running.ok("POST", "/v1/experiments/seen/start", {}, mine)
    running.ok("PUT", "/v1/experiments/unseen", experiment("unseen"), theirs)
    body = running.ok("GET", "/v1/audit?limit=2", key=mine)
    assert (body["whole"], body["faults"]) == (True, [])
    actor = f"key:{mine.split('_')[1]}"
    assert [(one["actor"], one["act"], one["object"]) for one in body["lines"]] == [
        (actor, "created", "experiment seen"),
        (actor, "start", "experiment seen"),
    ]
    everything = running.ok("GET", "/v1/audit?limit=1000", key=mine)["lines"]
    assert {one["tenant"] for one in everything} == {"watched"}
    assert everything[0]["actor"] == "cli"
    reporter = running.key("watched", "report")
    assert running.call("GET", "/v1/audit", key=reporter).status == 403
    assert running.call("GET", "/v1/audit?limit=0", key=mine).status == 422


def test_no_actor_forges_a_line(running: Running) -> None:
    """A subject with line ends and escape codes, as it may stand in an old log, is listed as
    one line that does not drive the terminal."""
    root = read_secrets(Settings(data_dir=running.data_dir)).root
    store = Store(EmbeddedStore(running.data_dir).url)
    _, key = new_api_key(root, "forged", ["decide"])
    store.put_api_key(key, Author("jwt:\x1b[31mroot\x1b[0m\n2026-11-22 \u202e", root))
    store.close()
    listed = running.cli("audit", "list", "--tenant", "forged").stdout
    assert listed.count("\n") == 1
    assert "root" in listed
    assert listed.rstrip("\n").isprintable()


def test_the_commands_list_and_verify(running: Running) -> None:
    """`audit list` shows the acts, `audit verify` the chains, beside a running server."""
    running.key("listed")
    listed = running.cli("audit", "list", "--tenant", "listed")
    (line,) = listed.stdout.splitlines()
    assert "cli" in line
    assert "created" in line
    done = running.cli("audit", "verify", "--tenant", "listed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 chains, all whole"
