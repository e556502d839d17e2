"""Two tenants with experiments of the same names: neither ever sees a trace of the other."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service_helpers import Answer, Running, click, experiment, needs_server

pytestmark = needs_server
TENANTS = ("north", "south")
MARKS = {"north": "MARKNORTH", "south": "MARKSOUTH"}
SHARED = "same-name"
CALLS = [
    "list",
    "show",
    "report",
    "html",
    "csv",
    "audit",
    "decide",
    "batch",
    "own",
    "foreign",
    "mark",
    "explain",
    "explain-foreign",
    "pause",
    "start",
    "openapi",
    "metrics",
    "unknown",
    "variant",
    "put",
]
SEQUENCES = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.sampled_from(CALLS)), min_size=3, max_size=12
)


def spec(tenant: str) -> Any:
    """A specification in which every text that a client may choose is marked."""
    mark = MARKS[tenant]
    made = experiment(SHARED, 2)
    for variant in made["variants"]:
        variant["creative"] = {"headline": f"{mark} headline"}
        variant["attributes"] = {"tone": mark}
    return made | {"placement": mark}


def private(tenant: str) -> str:
    """The name of an experiment that only this tenant has."""
    return f"only-{MARKS[tenant]}"


@pytest.fixture(scope="module")
def both(running: Running) -> Running:
    """The shared server, with an experiment of one name for both, and one of its own."""
    for tenant in TENANTS:
        running.begin(spec(tenant), tenant)
        running.begin(spec(tenant) | {"experiment": private(tenant)}, tenant)
    return running


class Neighbour:
    """A tenant's calls, and what they were answered."""

    def __init__(self, server: Running, tenant: str) -> None:
        self.server, self.tenant = server, tenant
        self.key = server.key(tenant)
        asked = {"experiment": SHARED, "unit": MARKS[tenant]}
        self.decision = server.ok("POST", "/v1/decide", asked, self.key)

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Ask with this tenant's key."""
        return self.server.call(method, path, body, self.key)

    def act(self, what: str, other: "Neighbour") -> Answer:
        """One of the calls; where it is about an object, the other may have one like it."""
        of = f"/v1/experiments/{SHARED}"
        event = click(self.decision, MARKS[self.tenant])
        foreign = f"/v1/decisions/{other.decision['decision_id']}"
        calls: dict[str, tuple[Any, ...]] = {
            "list": ("GET", "/v1/experiments"),
            "show": ("GET", of),
            "report": ("GET", f"{of}/report"),
            "html": ("GET", f"{of}/report?format=html"),
            "csv": ("GET", f"{of}/report?format=csv"),
            "audit": ("GET", "/v1/audit"),
            "decide": ("POST", "/v1/decide", {"experiment": SHARED}),
            "batch": ("POST", "/v1/decide/batch", {"requests": [{"experiment": "x"}]}),
            "own": ("POST", "/v1/events", {"events": [event]}),
            "foreign": ("POST", "/v1/events", {"events": [click(other.decision)]}),
            "mark": ("POST", f"{of}/variants/{MARKS[self.tenant]}/pause"),
            "explain": ("GET", f"/v1/decisions/{self.decision['decision_id']}"),
            "explain-foreign": ("GET", foreign),
            "pause": ("POST", f"{of}/pause", {}),
            "start": ("POST", f"{of}/start", {}),
            "openapi": ("GET", "/openapi.json"),
            "metrics": ("GET", "/metrics"),
            "unknown": ("GET", "/v1/experiments/nobody"),
            "variant": ("POST", f"{of}/variants/v1/pause", {}),
            "put": ("PUT", of, spec(self.tenant)),
        }
        return self.call(*calls[what])


def text_of(answer: Answer) -> str:
    """All that an answer says: body and headers."""
    body = answer.body
    shown = body.decode(errors="replace") if isinstance(body, bytes) else None
    told = shown if shown is not None else json.dumps(body, ensure_ascii=False)
    return f"{answer.status} {dict(answer.headers)} {told}"


@settings(max_examples=12)
@given(calls=SEQUENCES)
def test_no_answer_shows_the_other_tenant(both: Running, calls: list[Any]) -> None:
    """Whatever both do in whatever order, no report, error, metric or header of one holds
    a text, a name or an id of the other's."""
    north, south = (Neighbour(both, tenant) for tenant in TENANTS)
    for tenant, what in calls:
        me, other = (north, south) if tenant == "north" else (south, north)
        answer = me.act(what, other)
        told = text_of(answer)
        assert answer.status < 500, (what, told)
        assert MARKS[other.tenant] not in told, (tenant, what)
        if what not in ("explain-foreign", "foreign"):  # these echo what was sent
            assert other.decision["decision_id"] not in told


def test_foreign_names_are_as_good_as_unknown(both: Running) -> None:
    """Every route with another tenant's name answers as for one that nobody has, byte for
    byte save for the name; so does an event, an explanation, a batch."""
    north, south = (Neighbour(both, tenant) for tenant in TENANTS)
    theirs, nobody = private("south"), "only-NOBODYELSE"
    routes: list[tuple[Any, ...]] = [
        ("GET", "/v1/experiments/{}"),
        ("GET", "/v1/experiments/{}/report"),
        ("GET", "/v1/experiments/{}/report?format=parquet"),
        ("POST", "/v1/experiments/{}/start", {}),
        ("POST", "/v1/experiments/{}/stop", {}),
        ("POST", "/v1/experiments/{}/variants", {"id": "v9"}),
        ("POST", "/v1/experiments/{}/variants/v0/retire", {}),
    ]
    for method, path, *body in routes:
        foreign, unknown = (
            north.call(method, path.format(name), *body) for name in (theirs, nobody)
        )
        assert foreign.status == unknown.status == 404
        told = json.dumps(foreign.body).replace(theirs, nobody)
        assert told == json.dumps(unknown.body)
        same = {"content-type", "cache-control", "content-security-policy"}
        for name in same & foreign.headers.keys():
            assert foreign.headers[name] == unknown.headers[name]
    for path, body_of in (
        ("/v1/decide", lambda name: {"experiment": name}),
        ("/v1/decide/batch", lambda name: {"requests": [{"experiment": name}]}),
    ):
        foreign, unknown = (
            north.call("POST", path, body_of(name)) for name in (theirs, nobody)
        )
        assert json.dumps(foreign.body).replace(theirs, nobody) == json.dumps(
            unknown.body
        )
    made_up = "A" * 64
    for path in ("/v1/decisions/{}",):
        foreign, unknown = (
            north.call("GET", path.format(one))
            for one in (south.decision["decision_id"], made_up)
        )
        told = json.dumps(foreign.body).replace(south.decision["decision_id"], made_up)
        assert (foreign.status, told) == (404, json.dumps(unknown.body))
