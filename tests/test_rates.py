"""Rates: how often a key may ask, who counts, and what is said about it."""

from typing import Any

import pytest
from limits.util import WindowStats

from bandolero_service.audit import Author
from bandolero_service.auth import new_api_key
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.errors import too_many
from bandolero_service.rates import Limiter, Meter, Rate, parse_rate
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings, SettingsError, read_settings
from bandolero_service.store import Store, StoreDownError
from service_helpers import (
    Answer,
    Running,
    experiment,
    needs_server,
    running_server,
    wait_for,
)

FIELDS = {
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "ratelimit-policy",
}


@pytest.mark.parametrize("text", ["1/s", "100/s", "6000/m", "9/h"])
def test_a_rate_is_written_as_it_is_read(text: str) -> None:
    """A number of requests a second, minute or hour."""
    assert str(parse_rate(text)) == text


@pytest.mark.parametrize(
    "text", ["", "100", "0/s", "-1/s", "1/d", "1.5/s", "100 / s", "1/ms"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    """By name and value, on the command line and in the environment."""
    with pytest.raises(ValueError, match="rate == "):
        parse_rate(text)
    if text:
        with pytest.raises(SettingsError, match="control_rate: rate == "):
            read_settings({"BANDOLERO_CONTROL_RATE": text})


# --- in a worker's memory -------------------------------------------------------------------


def test_a_meter_lets_a_full_window_through_and_then_the_rate() -> None:
    """Ten at once, then one each tenth of a second; what is left is said."""
    meter = Meter(Rate(10, 1), 1)
    at_once = [meter.take(100.0) for _ in range(12)]
    assert [q.allowed for q in at_once] == [True] * 10 + [False] * 2
    assert [q.remaining for q in at_once] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    assert at_once[-1].retry_s == pytest.approx(0.1)
    assert at_once[-1].reset_s == pytest.approx(1.0)
    later = [meter.take(100.0 + 0.1 * i).allowed for i in range(1, 21)]
    assert later == [True] * 20
    assert not meter.take(102.0).allowed


def test_a_refused_request_costs_nothing() -> None:
    """Who asks again too soon, however often, does not wait longer for it."""
    meter = Meter(Rate(1, 1), 1)
    assert meter.take(0.0).allowed
    assert not any(meter.take(0.01 * i).allowed for i in range(1, 99))
    assert meter.take(1.0).allowed


@pytest.mark.parametrize("n", [8, 2, 1])
def test_workers_share_a_rate(n: int) -> None:
    """Four workers together let through what the rate says, if not fewer than one each."""
    meters = [Meter(Rate(n, 1), 4) for _ in range(4)]
    seconds = 40
    allowed = sum(
        meter.take(tick / 100).allowed
        for tick in range(seconds * 100)
        for meter in meters
    )
    assert allowed <= n * seconds + max(n, 4)
    assert allowed >= n * seconds


def test_a_worker_tells_its_share_of_a_rate() -> None:
    """One of two workers lets two at once through of five a second, and says two, not five."""
    meter = Meter(Rate(5, 1), 2)
    quotas = [meter.take(0.0) for _ in range(3)]
    assert [q.allowed for q in quotas] == [True, True, False]
    told = [dict(quota.headers()) for quota in quotas]
    assert [t[b"ratelimit-limit"] for t in told] == [b"2"] * 3
    assert [t[b"ratelimit-remaining"] for t in told] == [b"1", b"0", b"0"]
    assert told[0][b"ratelimit-policy"] == b"5;w=1"


def test_headers_say_what_the_draft_says() -> None:
    """Limit, remaining, reset and policy; Retry-After only on a refusal, at least 1."""
    meter = Meter(Rate(120, 60), 1)
    told = dict(meter.take(0.0).headers())
    assert told == {
        b"ratelimit-limit": b"120",
        b"ratelimit-remaining": b"119",
        b"ratelimit-reset": b"1",
        b"ratelimit-policy": b"120;w=60",
    }
    for _ in range(119):
        meter.take(0.0)
    assert dict(meter.take(0.0).headers())[b"retry-after"] == b"1"


# --- in the store ---------------------------------------------------------------------------


@needs_server
def test_workers_count_together_in_the_store(store: Store) -> None:
    """Two limiters over one store allow together what one would; callers are told apart."""
    two = [Limiter(store.count, StoreDownError) for _ in range(2)]
    rate = Rate(6, 3600)
    quotas = [two[i % 2].take(rate, "acme/key:1") for i in range(8)]
    assert [q.allowed for q in quotas] == [True] * 6 + [False] * 2
    assert [q.remaining for q in quotas] == [5, 4, 3, 2, 1, 0, 0, 0]
    assert 0.0 < quotas[0].reset_s <= 3600.0
    assert two[0].take(rate, "acme/key:2").allowed


def test_a_worker_counts_alone_while_the_store_is_down() -> None:
    """The rate holds in memory, and the store that is down is not asked each time."""
    asked = []

    def count(*_: Any) -> Any:
        asked.append(1)
        raise StoreDownError("down")

    limiter = Limiter(count, StoreDownError)
    quotas = [limiter.take(Rate(3, 3600), "who") for _ in range(5)]
    assert [q.allowed for q in quotas] == [True] * 3 + [False] * 2
    assert len(asked) == 1


def test_a_refusal_leaves_nothing() -> None:
    """Where the window ends between the count and the look at what is left, all of it looks
    left: a refusal says 0, and the seconds of its message are those of Retry-After."""
    ended = WindowStats(reset_time=0.0, remaining=100)
    limiter = Limiter(lambda *_: (False, ended), StoreDownError)
    quota = limiter.take(Rate(100, 1), "who")
    error = too_many("requests of one caller", quota)
    told = dict(error.headers())
    assert told[b"ratelimit-remaining"] == b"0"
    assert told[b"ratelimit-reset"] == told[b"retry-after"] == b"1"
    assert error.message.endswith("at most 100/s, try again in 1 s.")


# --- through the running system -------------------------------------------------------------


def put_key(server: Running, tenant: str, rate: str) -> str:
    """A key with a rate, as the command line would make it."""
    root = read_secrets(Settings(data_dir=server.data_dir)).root
    scopes = ["decide", "events", "report", "admin"]
    text, kept = new_api_key(root, tenant, scopes, None, rate)
    store = Store(EmbeddedStore(server.data_dir).url)
    store.put_api_key(kept, Author("test", root))
    store.close()
    return text


def refused(answer: Answer) -> bool:
    """Whether an answer is a 429, with the error object and a time to come again."""
    if answer.status != 429:
        return False
    assert answer.body["error"]["code"] == "rate_limited"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers.keys() >= FIELDS
    return True


def test_a_key_with_a_rate_is_held_to_it(running: Running) -> None:
    """Five an hour: the sixth is refused, on every hot route; other keys are not."""
    running.begin(experiment("held"))
    key = put_key(running, "acme", "5/h")
    body = {"experiment": "held", "consent": "none"}
    answers = [running.call("POST", "/v1/decide", body, key) for _ in range(5)]
    assert [a.status for a in answers] == [200] * 5
    assert [a.headers["ratelimit-remaining"] for a in answers] == list("43210")
    for path in ("/v1/decide", "/v1/decide/batch", "/v1/events"):
        assert refused(running.call("POST", path, body, key)), path
    free = running.call("POST", "/v1/decide", body, running.key())
    assert free.status == 200
    assert FIELDS & free.headers.keys() == set()


def test_routes_of_the_control_plane_say_what_is_left(running: Running) -> None:
    """Every answer behind a key carries the fields, a refused request's too."""
    for path, status in (("/v1/experiments", 200), ("/v1/experiments/nobody", 404)):
        answer = running.call("GET", path, key=running.key())
        assert answer.status == status
        assert answer.headers["ratelimit-limit"] == "100"
        assert answer.headers["ratelimit-policy"] == "100;w=1"


@pytest.mark.slow
@needs_server
def test_rates_of_the_environment() -> None:
    """Control plane, data plane and guesses, each held to its rate; known keys still work."""
    rates = {
        "BANDOLERO_CONTROL_RATE": "12/h",
        "BANDOLERO_DECIDE_RATE": "9/h",
        "BANDOLERO_FAILED_AUTH_RATE": "4/h",
    }
    with running_server(environment=rates) as server:
        key, other = server.key(), server.key("rival")
        path = "/v1/experiments"
        statuses = [server.call("GET", path, key=key).status for _ in range(14)]
        assert statuses == [200] * 12 + [429] * 2
        decide = [server.call("POST", "/v1/decide", {}, key).status for _ in range(11)]
        assert decide == [422] * 9 + [429] * 2
        without = [server.call("GET", path).status for _ in range(6)]
        assert without == [401] * 6  # who sends no key guesses none
        guesses = [server.call("GET", path, key=f"bk_{i:012}_x") for i in range(5)]
        assert [g.status for g in guesses] == [401] * 4 + [429]
        assert refused(guesses[-1])
        assert refused(server.call("POST", "/v1/decide", {}, "bk_0_x"))
        wait_for(lambda: server.call("GET", path, key=other).status == 200)
        assert server.call("POST", "/v1/decide", {}, key).status == 429  # its own rate
        assert server.call("GET", path).status == 429
        assert server.call("GET", "/healthz").status == 200
