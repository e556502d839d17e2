"""Trackers: each tells one thing of one decision, once, and leads nowhere but home."""

import asyncio
import re
import string
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from bandolero.experiment import InvalidExperimentError, parse_experiment
from bandolero.landing import is_web_url, landing_url
from bandolero_service.api.trackers import PIXEL, tracker_routes
from bandolero_service.events import EventDesk
from bandolero_service.ids import ForgedIdError, Signer, key_in
from bandolero_service.metrics import TRACKED, counted
from bandolero_service.settings import Settings, SettingsError, read_settings
from bandolero_service.store import Store
from bandolero_service.trackers import CLICK, IMPRESSION, Trackers
from service_helpers import Answer, Running, click, experiment, needs_server, wait_for
from worker import Worker

HOME = "https://shop.example/hats?size=m&next=//evil.example#top"
EVIL = [
    "//evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https:\\\\evil.example",
    "\\\\evil.example",
    "/\\evil.example",
    "https://shop.example@evil.example",
    "https://shop:pass@evil.example/",
    "https://shop.example\\@evil.example",
    "https://evil.example/\r\nSet-Cookie: a=b",
    "https://evil.example/\n",
    "\thttps://evil.example",
    "https://evil.example/ a",
    "https://e\x00vil.example",
    "javascript:alert(1)",
    "JAVASCRIPT://shop.example/%0aalert(1)",
    "data:text/html,hi",
    "ftp://shop.example",
    "https%3A%2F%2Fevil.example",
    "https://evil%2eexample",
    "https%253A%252F%252Fevil.example",
    "https://shop.example%2f@evil.example",
    "https://shop.example/%zz",
    "https://bücher.example",
    "https://shop.example。evil.example",
    "https://shop.example/é",
    "https://",
    "https:///hats",
    "https://shop.example:port",
    "https://shop.example:0",
    "https://shop.example:65536/hats",
    "https://shop.example/" + "a" * 2048,
    "",
]
GOOD = [
    HOME,
    "http://shop.example",
    "HTTPS://shop.example:8443/a%20b?x=%C3%A9",
    "https://shop.example:65535",
    "https://xn--bcher-kva.example/",
    "https://[2001:db8::1]/",
    "https://shop.example/@someone",
]
UNKNOWN = {
    "code": "unknown_tracker",
    "message": "the tracker must be one that a decision was answered with.",
}


def with_landing(experiment_id: str, url: str = HOME, **fields: Any) -> Any:
    """An experiment whose first variant leads somewhere; its second does not."""
    spec = experiment(experiment_id, 2, **fields)
    spec["variants"][0]["creative"]["landing_url"] = url
    return spec


# What may be a landing URL


@pytest.mark.parametrize("url", EVIL)
def test_a_landing_url_that_may_lead_elsewhere_is_refused(url: str) -> None:
    """A specification is refused by field, value and rule, and serving would not use it."""
    with pytest.raises(InvalidExperimentError) as refused:
        parse_experiment(with_landing("hats", url))
    (fault,) = refused.value.faults
    assert fault.field == "variants[0].creative.landing_url"
    assert "must be an http or https URL" in fault.message
    assert landing_url({"landing_url": url}) is None


@pytest.mark.parametrize("url", GOOD)
def test_a_plain_landing_url_is_taken_as_it_is(url: str) -> None:
    """Queries, ports, encoded characters and encoded names are no trouble."""
    spec = parse_experiment(with_landing("hats", url))
    assert landing_url(spec.variants[0].creative) == url


@given(st.text(st.sampled_from("htps:/\\@.?#%e\r\n \t[]é0a"), max_size=40))
def test_what_passes_is_plain_and_has_no_credentials(tail: str) -> None:
    """Whatever a landing URL is made of, its host ends where every browser sees it end."""
    url = "https://" + tail
    if is_web_url(url):
        host = re.split(r"[/?#]", tail)[0]
        assert "@" not in host
        assert "\\" not in url
        assert url.isascii()
        assert url.isprintable()
        assert " " not in url


@pytest.mark.parametrize("url", ["ads.example", "javascript:alert(1)", "http://a/?b"])
def test_a_public_url_must_be_one(url: str) -> None:
    """The beginning of all trackers is checked like a landing URL, and has no query."""
    with pytest.raises(SettingsError, match="public_url"):
        read_settings({"BANDOLERO_PUBLIC_URL": url})


# Tokens

SIGNER = Signer(b"secret", "acme")
MINTED = SIGNER.mint(1, b"eight by", 1_000_000, 3, 0, b"nonce 00")


@pytest.mark.parametrize("kind", [IMPRESSION, CLICK])
def test_a_token_names_its_decision(kind: str) -> None:
    """The holder of the secret gets the id back, and the experiment without a check."""
    token = SIGNER.token(kind.encode(), MINTED).decode()
    assert SIGNER.tracked(kind.encode(), token) == MINTED.decode()
    assert key_in(token) == b"eight by"


def test_nothing_can_be_made_of_anything_else() -> None:
    """Ids are no tokens, tokens are no ids, and neither is another kind's or tenant's."""
    seen = SIGNER.token(b"impression", MINTED).decode()
    clicked = SIGNER.token(b"click", MINTED).decode()
    for kind, text in (
        (b"impression", clicked),
        (b"click", seen),
        (b"click", MINTED.decode()),
    ):
        with pytest.raises(ForgedIdError):
            SIGNER.tracked(kind, text)
    for text in (seen, clicked):
        with pytest.raises(ForgedIdError):
            SIGNER.read(text)
    with pytest.raises(ForgedIdError):
        Signer(b"secret", "rival").tracked(b"click", clicked)


@given(st.integers(0, 63), st.sampled_from(string.ascii_letters + "-_é%"))
def test_an_altered_token_is_refused(at: int, other: str) -> None:
    """A token with any one character changed is no token."""
    token = SIGNER.token(b"click", MINTED).decode()
    altered = token[:at] + other + token[at + 1 :]
    if altered != token:
        with pytest.raises(ForgedIdError):
            SIGNER.tracked(b"click", altered)


# Over HTTP


@pytest.fixture(scope="module")
def site(running: Running) -> Running:
    """The shared server, with an experiment that leads home."""
    running.begin(with_landing("trackers", objective={"attribution_window_s": 600.0}))
    return running


def asked(server: Running, variant: str = "v0", **fields: Any) -> Any:
    """A decision with trackers, for one variant."""
    return server.decide("trackers", eligible=[variant], trackers=True, **fields)


def get(server: Running, path: str, method: str = "GET", **headers: str) -> Answer:
    """What a browser without any key gets."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.call(method, path, headers=told)


def events_of(
    server: Running, decision: Any, *expected: tuple[str, str]
) -> list[tuple[str, str]]:
    """(type, event id) of what is recorded of a decision, as soon as some are among it.

    A tracker's answer does not wait for long until its event is.
    """
    path = f"/v1/decisions/{decision['decision_id']}"
    found: list[tuple[str, str]] = []

    def written() -> bool:
        answer = server.call("GET", path, key=server.key())
        if answer.status == 200:
            found[:] = [(e["type"], e["event_id"]) for e in answer.body["events"]]
        return answer.status == 200 and {*expected} <= {*found}

    wait_for(written, 20, "the decision is in the log, and what was told of it")
    return found


SEEN, CLICKED = ("impression", "tracker-impression"), ("click", "tracker-click")


@needs_server
def test_trackers_are_given_where_they_are_asked_for(site: Running) -> None:
    """Both where the variant has a landing URL, else the pixel; none without consent."""
    paths = asked(site)["trackers"]
    assert re.fullmatch(r"/v1/t/i/[\w-]{64}", paths["impression"])
    assert re.fullmatch(r"/v1/t/c/[\w-]{64}", paths["click"])
    assert asked(site, "v1")["trackers"].keys() == {"impression"}
    assert asked(site, consent="contextual")["trackers"].keys() == paths.keys()
    assert "trackers" not in asked(site, consent="none")
    assert "trackers" not in site.decide("trackers")
    batch = site.decide_many("trackers", 2, trackers=True)
    assert all("impression" in one["trackers"] for one in batch)


@needs_server
def test_a_pixel_tells_an_impression_once(site: Running) -> None:
    """43 bytes of GIF that nobody keeps, no cookie; ten requests are one event."""
    decision = asked(site)
    path = decision["trackers"]["impression"]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: get(site, path), range(10)))
    for answer in answers:
        assert (answer.status, answer.body) == (200, PIXEL)
        assert answer.headers["content-type"] == "image/gif"
        assert "no-store" in answer.headers["cache-control"]
        assert "set-cookie" not in answer.headers
    assert len(PIXEL) == 43
    assert set(events_of(site, decision, SEEN)) == {SEEN}


@needs_server
def test_a_click_leads_home_whatever_the_query_says(site: Running) -> None:
    """The landing URL is the variant's own, to the letter; a query changes nothing."""
    decision = asked(site)
    path = decision["trackers"]["click"]
    for query in (
        "",
        "?landing_url=//evil.example",
        "?url=https:%5C%5Cevil",
        "?%0d%0aa",
    ):
        answer = get(site, path + query)
        assert answer.status == 302
        assert answer.headers["location"] == HOME
        assert "no-store" in answer.headers["cache-control"]
        assert "set-cookie" not in answer.headers
    assert set(events_of(site, decision, CLICKED)) == {CLICKED}


@needs_server
def test_a_repeat_is_not_written_again(site: Running) -> None:
    """The worker remembers what it has recorded: a flood of one pixel is no flood of rows."""
    decision = asked(site)
    for _ in range(20):
        get(site, decision["trackers"]["impression"])
        told = events_of(site, decision, SEEN)
    assert told == [SEEN] * len(told)
    assert (
        len(told) < 20
    )  # more than one where it took too long to be sure of the first


@needs_server
def test_what_nobody_has_asked_for_is_not_recorded(site: Running) -> None:
    """Probes and fetches ahead see the answer, and tell nothing; no redirect ahead."""
    decision = asked(site)
    seen, clicked = decision["trackers"]["impression"], decision["trackers"]["click"]
    assert get(site, seen, "HEAD").status == 200
    assert get(site, clicked, "HEAD").headers["location"] == HOME
    assert get(site, seen, sec_purpose="prefetch;prerender").body == PIXEL
    for name in ("purpose", "sec_purpose", "x_moz"):
        answer = get(site, clicked, **{name: "prefetch"})
        assert (answer.status, "location" in answer.headers) == (503, False)
    assert get(site, clicked, "POST").status == 405
    assert events_of(site, decision) == []


@needs_server
def test_an_unknown_token_gets_nothing(site: Running) -> None:
    """Forged, swapped, cut or odd: 404, with a pixel where an image is asked for."""
    decision = asked(site)
    seen, clicked = decision["trackers"]["impression"], decision["trackers"]["click"]
    bad = [clicked[-64:], decision["decision_id"], "A" * 64, seen[-64:-1], "%00", "%ff"]
    bad += ["..%2f..", seen[-64:-2] + "%0a", "é".encode().hex()]
    for token in bad:
        answer = get(site, "/v1/t/i/" + token)
        assert answer.status == 404, token
        if "%2f" not in token:
            assert answer.body == PIXEL
    for token in [seen[-64:], *bad[1:]]:
        answer = get(site, "/v1/t/c/" + token)
        assert answer.status == 404, token
        assert "location" not in answer.headers
    assert get(site, "/v1/t/c/" + "A" * 64).body["error"] == UNKNOWN
    assert events_of(site, decision) == []


@needs_server
def test_a_token_is_no_key_for_events(site: Running) -> None:
    """What a page holds cannot be used as a decision id, even with a key."""
    decision = asked(site)
    token = decision["trackers"]["click"][-64:]
    told = site.tell([click({"decision_id": token})])
    assert told["rejected"][0]["error"]["code"] == "unknown_decision"


@needs_server
def test_trackers_stand_in_the_document(site: Running) -> None:
    """OpenAPI tells of both routes, without a key, and of the field in the answer."""
    document = site.call("GET", "/openapi.json").body
    for path, status in (("/v1/t/i/{token}", "200"), ("/v1/t/c/{token}", "302")):
        operation = document["paths"][path]["get"]
        assert status in operation["responses"]
        assert "security" not in operation
    schemas = document["components"]["schemas"]
    assert "trackers" in schemas["Decision"]["properties"]
    assert "trackers" in schemas["DecideRequest"]["properties"]


# In one process


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store, that pages reach at a URL."""
    settings = Settings(data_dir=tmp_path, public_url="https://ads.example/")
    worker = Worker(store, settings)
    yield worker
    worker.close()


@needs_server
def test_trackers_begin_with_the_public_url(worker: Worker) -> None:
    """The setting makes them absolute."""
    worker.put(with_landing("hats"))
    urls = worker.decide("hats", trackers=True)["trackers"]
    assert urls["impression"].startswith("https://ads.example/v1/t/i/")


@needs_server
def test_a_page_outlives_its_decision(worker: Worker) -> None:
    """Too old for events: the pixel is shown, the link leads home, no event is made, and
    that is counted; one that nobody was given still leads nowhere."""
    worker.put(with_landing("hats"))
    urls = worker.decide("hats", eligible=["v0"], trackers=True)["trackers"]
    desk = EventDesk(worker.views, Settings(accept_events_days=-1.0))
    app = FastAPI()
    app.include_router(tracker_routes(Trackers(worker.views, desk), _never_asked))
    for kind, status in ((IMPRESSION, 200), (CLICK, 302)):
        path, before = urls[kind].removeprefix("https://ads.example"), expired(kind)
        assert asyncio.run(_status(app, path)) == status
        assert expired(kind) == before + 1
        if kind == IMPRESSION:
            assert asyncio.run(_status(app, path[:-64] + "A" * 64)) == 404


def expired(kind: str) -> float:
    """How many trackers of expired decisions this process has counted."""
    return counted()[TRACKED.name].get((kind, "expired"), 0.0)


async def _never_asked(_: object) -> None:
    pytest.fail("an event was made")


async def _full(_: object) -> str:
    return "store and disk are full"


async def _slow(_: object) -> None:
    await asyncio.sleep(60)


@needs_server
@pytest.mark.parametrize("durable", [_full, _slow])
def test_a_page_goes_on_though_its_event_cannot_be_kept(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, durable: Any
) -> None:
    """Refused, or slower than anyone waits: the click leads home, the pixel is shown, and
    neither is taken for recorded."""
    monkeypatch.setattr("bandolero_service.api.trackers.WAIT_S", 0.01)
    worker.put(with_landing("hats"))
    urls = worker.decide("hats", eligible=["v0"], trackers=True)["trackers"]
    trackers = Trackers(worker.views, EventDesk(worker.views, Settings()))
    app = FastAPI()
    app.include_router(tracker_routes(trackers, durable))
    for kind, status in ((IMPRESSION, 200), (CLICK, 302)):
        path = urls[kind].removeprefix("https://ads.example")
        assert asyncio.run(_status(app, path)) == status
        assert trackers.event(kind, trackers.read(kind, path[-64:])) is not None


async def _status(app: FastAPI, path: str) -> int:
    """The status of an answer, without a server."""
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
    await app({**scope, "query_string": b"", "headers": []}, receive, send)
    return int(told[0]["status"])


# In a page

WINDOW_S = 45.0
"""Longer than a browser needs to start on a busy machine."""


class _Landing(BaseHTTPRequestHandler):
    """A landing page that says so in its title."""

    def do_GET(self) -> None:
        body = b"<title>landed</title><p>home"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def landing() -> Iterator[str]:
    """The URL of a landing page on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Landing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/home"
        server.shutdown()
        thread.join()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.timeout(180)
@needs_server
def test_a_page_shows_the_pixel_and_its_link_is_clicked(
    chromium: str, running: Running, landing: str, tmp_path: Path
) -> None:
    """A real browser loads the pixel and follows the link; the report shows both."""
    window = {"event": "click", "attribution_window_s": WINDOW_S}
    running.begin(with_landing("page", landing, objective=window))
    decision = running.decide("page", eligible=["v0"], trackers=True)
    base = f"http://127.0.0.1:{running.port}"
    seen, clicked = (base + decision["trackers"][k] for k in ("impression", "click"))
    page = tmp_path / "page.html"
    page.write_text(
        f'<a id="a" href="{clicked}">hats</a>'
        f'<img src="{base}/v1/t/i/{"A" * 64}" onerror="document.title = 1">'
        f'<img src="{seen}" onload="if (this.naturalWidth === 1) a.click()">'
    )
    options = ["headless", "no-sandbox", "disable-gpu", "dump-dom"]
    options += ["virtual-time-budget=10000", f"user-data-dir={tmp_path / 'profile'}"]
    command = [chromium, *(f"--{option}" for option in options), page.as_uri()]
    shown = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=True
    )
    assert "<title>landed</title>" in shown.stdout

    def told() -> bool:
        row = running.report("page")["v0"]
        return (row["impressions"], row["rewards"]) == (1, 1)

    assert set(events_of(running, decision, SEEN, CLICKED)) == {SEEN, CLICKED}
    wait_for(told, WINDOW_S + 20, "the report shows the impression and the click")
