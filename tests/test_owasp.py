"""A test for each of the OWASP API Security Top 10 (2023), against a running server."""

import json
import re
import socket
from typing import Any

import pytest

from bandolero.codec import DamagedBytesError
from bandolero.experiment import ExperimentRecord
from bandolero.snapshot import snapshot_from_bytes, snapshot_to_bytes
from bandolero_service.views import cold_snapshot
from service_helpers import Answer, Running, click, experiment, needs_server, wait_for
from traffic import now

pytestmark = needs_server
NAME = "owasp"
THEIRS = "globex"
EXPERIMENT = f"/v1/experiments/{NAME}"
ADMIN = ("PUT", "POST", "DELETE")


@pytest.fixture(scope="module")
def server(running: Running) -> Running:
    """The shared server, with an experiment of acme's at work; globex has none."""
    running.begin(experiment(NAME))
    return running


def keyed_routes(server: Running) -> list[tuple[str, str]]:
    """Method and path of every route behind a key, parameters filled in with acme's."""
    decision = server.decide(NAME)["decision_id"]
    named = {"experiment_id": NAME, "variant_id": "v0", "action": "pause"}
    named |= {"decision_id": decision, "unit": "u", "erasure_id": "e"}
    paths = server.call("GET", "/openapi.json").body["paths"]
    return [
        (method.upper(), path.format_map(named))
        for path, operations in paths.items()
        for method, operation in operations.items()
        if operation.get("security")
    ]


def ask(
    server: Running, method: str, path: str, key: str | None, **headers: str
) -> Answer:
    """The answer to a plausible body."""
    bodies: dict[str, Any] = {
        "/v1/decide": {"experiment": NAME},
        "/v1/decide/batch": {"requests": [{"experiment": NAME}]},
        "/v1/events": {"events": []},
        f"PUT{EXPERIMENT}": experiment(NAME),
    }
    body = bodies.get(method + path, bodies.get(path))
    if path.endswith("/variants"):
        body = {"id": "new", "creative": {}}
    return server.call(method, path, body, key, headers=headers)


def test_api1_broken_object_level_authorization(server: Running) -> None:
    """With another tenant's key, every route to an object answers as if it were not there,
    byte for byte as for a name that nobody has."""
    theirs = server.key(THEIRS)
    named = [r for r in keyed_routes(server) if NAME in r[1]]
    assert len(named) >= 6
    for method, path in named:
        if method == "PUT":
            continue  # makes one of their own, of the same name; see test_tenants
        foreign = ask(server, method, path, theirs)
        unknown = ask(server, method, path.replace(NAME, "nobody"), theirs)
        assert (foreign.status, unknown.status) == (404, 404), (method, path)
        told = json.dumps(foreign.body)
        assert told.replace(NAME, "nobody") == json.dumps(unknown.body)
    decision = server.decide(NAME)["decision_id"]
    assert ask(server, "GET", f"/v1/decisions/{decision}", theirs).status == 404
    event = click({"decision_id": decision})
    told = server.ok("POST", "/v1/events", {"events": [event]}, theirs)
    assert (told["accepted"], len(told["rejected"])) == (0, 1)


def test_api2_broken_authentication(server: Running) -> None:
    """Every route behind a key refuses none, a wrong, a changed, another kind of one."""
    good = server.key()
    forged = "eyJhbGciOiJub25lIn0.eyJ0ZW5hbnQiOiJhY21lIiwic2NvcGVzIjpbImFkbWluIl19."
    wrong = [
        "Bearer",
        "Bearer ",
        f"Basic {good}",
        f"Bearer {good[:-1]}",
        f"Bearer {good}x",
        f"Bearer {good.swapcase()}",
        f"Bearer {forged}",
    ]
    # Few enough for the bound on failures a minute.
    for i, (method, path) in enumerate(keyed_routes(server)):
        for header in ("", wrong[i % len(wrong)]):
            answer = ask(server, method, path, None, authorization=header)
            assert answer.status == 401, (method, path, header[:12])
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_api2_a_revoked_key_is_refused_within_a_second(server: Running) -> None:
    """A key that worked is refused soon after it was revoked."""
    made = server.cli("keys", "create", "--tenant", "acme", "--scopes", "decide")
    key = made.stdout.strip()
    assert server.call("POST", "/v1/decide", {"experiment": NAME}, key).status == 200
    assert server.cli("keys", "revoke", key.split("_")[1]).returncode == 0

    def refused() -> bool:
        asked = {"experiment": NAME}
        return server.call("POST", "/v1/decide", asked, key).status == 401

    wait_for(refused, 5, "the key is refused")


def test_api3_broken_object_property_level_authorization(server: Running) -> None:
    """No unknown or read-only property is taken, and no answer holds a secret one."""
    extra: list[dict[str, Any]] = [
        {"status": "running"},
        {"spec_version": 9},
        {"variant_states": {}},
        {"is_admin": True},
    ]
    for more in extra:
        answer = server.call("PUT", EXPERIMENT, experiment(NAME) | more, server.key())
        assert answer.status == 422, more
    foreign = server.call(
        "PUT", EXPERIMENT, experiment(NAME, tenant=THEIRS), server.key()
    )
    assert foreign.status == 403
    decide = {"experiment": NAME, "tenant": THEIRS}
    assert server.call("POST", "/v1/decide", decide, server.key()).status == 422
    event = click(server.decide(NAME)) | {"tenant_id": THEIRS}
    assert server.tell([event])["accepted"] == 0
    for path in ("/v1/experiments", EXPERIMENT, "/v1/audit", f"{EXPERIMENT}/report"):
        told = json.dumps(server.ok("GET", path))
        assert "secret" not in told.lower()


def test_api4_unrestricted_resource_consumption(server: Running) -> None:
    """Bodies, batches, depth, texts and headers have a bound, and going past it is told."""
    key = server.key()
    large = server.call("POST", "/v1/decide", key=key, raw=b"[" * 1_100_000)
    assert large.status == 413
    chunks = (b" " * 100_000 for _ in range(20))
    assert server.call("POST", "/v1/events", key=key, raw=chunks).status == 413
    for path, field in (("/v1/decide/batch", "requests"), ("/v1/events", "events")):
        assert server.call("POST", path, {field: [{}] * 1001}, key).status == 422
    deep = b'{"experiment":"x","context":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    assert server.call("POST", "/v1/decide", key=key, raw=deep).status in (400, 422)
    unit = {"experiment": NAME, "unit": "u" * 10_000}
    assert server.call("POST", "/v1/decide", unit, key).status == 422
    many = experiment(NAME + "-many", 2)
    many["variants"] = [{"id": f"v{i}"} for i in range(20_000)]
    path = f"/v1/experiments/{NAME}-many"
    assert server.call("PUT", path, many, key).status in (413, 422)


def test_api5_broken_function_level_authorization(server: Running) -> None:
    """A key with one scope is refused by every route of another."""
    allowed = {"decide": "/v1/decide", "events": "/v1/events"}
    for scope, prefix in allowed.items():
        key = server.key(scopes=scope)
        for method, path in keyed_routes(server):
            answer = ask(server, method, path, key)
            expected = path.startswith(prefix)
            assert (answer.status != 403) is expected, (scope, method, path)
    reader = server.key(scopes="report")
    for method, path in keyed_routes(server):
        if method in ADMIN:
            assert ask(server, method, path, reader).status == 403, (method, path)


def test_api6_unrestricted_access_to_sensitive_business_flows(server: Running) -> None:
    """Reward cannot be made up: a click told fifty times is one, and one about a decision
    of another experiment, tenant or nobody is none."""
    name = f"{NAME}-flow"
    server.begin(experiment(name))
    decision, at = server.decide(name), now()
    for _ in range(5):
        server.tell([click(decision, at=at)] * 10)
    server.tell([click(decision, f"more-{i}", at=at) for i in range(20)])

    def rewards() -> list[float]:
        rows = server.report(name).values()
        settled = sum(row["trials"] for row in rows)
        return [row["rewards"] for row in rows] if settled else []

    assert sorted(wait_for(rewards, 20, "the decision settles")) == [0, 0, 1]


def test_api7_server_side_request_forgery(server: Running) -> None:
    """No address in a request is ever called, and a click leads where the variant says."""
    name = f"{NAME}-links"
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.settimeout(0.3)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/"
        spec = experiment(name, 2)
        for variant in spec["variants"]:
            variant["creative"] = {"image": url, "landing_url": f"{url}landing"}
        server.begin(spec)
        decision = server.decide(name, trackers=True)
        link = re.sub(r"^https?://[^/]+", "", decision["trackers"]["click"])
        server.tell([click(decision, url)])
        headers = {"referer": url, "x-forwarded-host": "evil.example"}
        for query in ("", "?url=https://evil.example", "?next=//evil.example"):
            answer = server.call("GET", link + query, headers=headers)
            assert answer.headers["location"] == f"{url}landing"
        server.call("GET", f"/v1/experiments/{name}/report", key=server.key())
        with pytest.raises(TimeoutError):
            bait.accept()


def test_api8_security_misconfiguration(server: Running) -> None:
    """Answers carry their headers, name no software, show no insides, allow no origin."""
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/nothing"),
        ("POST", "/v1/decide"),
        ("GET", EXPERIMENT),
        ("TRACE", "/v1/decide"),
        ("OPTIONS", "/v1/experiments"),
        ("GET", "/v1/experiments/%00/report"),
    ):
        answer = server.call(
            method, path, key=server.key(), headers={"origin": "https://evil.example"}
        )
        assert answer.status < 500, (method, path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert not re.search(r"Traceback|File \"|\.py\b", str(answer.body))


def test_api9_improper_inventory_management(server: Running) -> None:
    """Every path is versioned or for operations, documented, and behind a key or meant
    to be open; old, hidden and debugging paths are not there."""
    paths = server.call("GET", "/openapi.json").body["paths"]
    open_paths = {"/healthz", "/readyz", "/metrics"}
    for path, operations in paths.items():
        assert path.startswith("/v1/") or path in open_paths, path
        is_open = path in open_paths or path.startswith("/v1/t/")
        for operation in operations.values():
            assert bool(operation.get("security")) is not is_open, path
    for path in ("/v0/decide", "/v2/decide", "/decide", "/debug", "/admin", "/.env"):
        assert server.call("GET", path, key=server.key()).status == 404


def test_api10_unsafe_consumption_of_apis() -> None:
    """What comes back from the store is checked like a stranger's: a snapshot with any
    byte changed, or cut short, is refused."""
    raw = {"tenant": "acme", "spec": experiment("hats") | {"tenant": "acme"}}
    data = snapshot_to_bytes(cold_snapshot(ExperimentRecord.model_validate(raw)))
    for i in range(0, len(data), 7):
        damaged = data[:i] + bytes([data[i] ^ 0x40]) + data[i + 1 :]
        with pytest.raises(DamagedBytesError):
            snapshot_from_bytes(damaged)
    for end in range(0, len(data), 97):
        with pytest.raises(DamagedBytesError):
            snapshot_from_bytes(data[:end])
