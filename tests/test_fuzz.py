"""Decision ids and JSON bodies that are broken in every way: refused, never a fault."""

import json
import string
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandolero_service.ids import ForgedIdError, Signer
from service_helpers import Running, experiment, needs_server

SIGNER, OTHER = Signer(b"secret", "acme"), Signer(b"secret", "globex")
ID = SIGNER.mint(1, b"experime", 1_700_000_000_000, 7, 2, b"nonce123").decode()
ALPHABET = string.ascii_letters + string.digits + "-_"
PATHS = ("/v1/decide", "/v1/decide/batch", "/v1/events")


def refused(text: str) -> bool:
    """Whether a text is no decision id of acme's."""
    try:
        SIGNER.read(text)
    except ForgedIdError:
        return True
    return False


def test_every_changed_character_is_refused() -> None:
    """In each place each other character, of the alphabet or not, makes a forged id."""
    assert not refused(ID)
    for i, right in enumerate(ID):
        for wrong in ALPHABET + "+/=. \n%é\0":
            if wrong != right:
                assert refused(ID[:i] + wrong + ID[i + 1 :]), (i, wrong)


def test_every_piece_of_an_id_is_refused() -> None:
    """An id cut short at either end, doubled, padded or turned around is none."""
    for i in range(1, len(ID)):
        assert refused(ID[:i])
        assert refused(ID[i:])
    for other in (ID * 2, f"{ID}=", f" {ID}", f"{ID}\n", ID[::-1], ID.swapcase(), ""):
        assert refused(other)


def test_another_tenants_id_is_refused() -> None:
    """The same decision under another tenant's key is as good as forged."""
    assert refused(OTHER.mint(1, b"experime", 1, 7, 2, b"nonce123").decode())


@given(st.text(max_size=100) | st.text(ALPHABET, min_size=64, max_size=64))
def test_made_up_ids_are_refused(text: str) -> None:
    """No text that was not minted is read as an id."""
    assert refused(text)


@pytest.fixture(scope="module")
def fuzzed(running: Running) -> Running:
    """The shared server, with an experiment at work."""
    running.begin(experiment("fuzz"))
    return running


def broken_bodies() -> Iterator[bytes]:
    """Bodies that are no JSON, or JSON that no route wants."""
    for n in (10, 1_000, 100_000):
        yield b"[" * n
        yield b'{"a":' * n
        yield b"[" * n + b"]" * n
        yield b'{"experiment":' * n + b'"x"' + b"}" * n
    for value in (
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"9" * 5_000,
        b"0x10",
        b"01",
        b"'x'",
        b"undefined",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff\xfe"',
        b'"\\u0000"',
        b"\xef\xbb\xbf{}",
        b"",
        b" ",
        b"\0",
    ):
        yield value
        for field in (b"experiment", b"unit", b"context", b"requests", b"events"):
            yield b'{"experiment":"fuzz","' + field + b'":' + value + b"}"
            yield b'{"' + field + b'":[' + value + b"]}"
        yield (
            b'{"events":[{"event_id":"e","decision_id":"d","type":"click","value":%b}]}'
            % value
        )
        yield b'{"experiment":"fuzz","context":{"device":%b}}' % value
    yield b'{"experiment":"fuzz","experiment":"other"}'
    yield b'{"experiment":"fuzz"}{"experiment":"fuzz"}'
    yield json.dumps({"experiment": "fuzz"}).encode("utf-16")


@needs_server
@pytest.mark.parametrize("path", PATHS)
def test_broken_bodies_are_refused_not_crashed_on(fuzzed: Running, path: str) -> None:
    """Depth, numbers, encodings, surrogates, doubled and wrong fields: a 2xx or a 4xx
    with the error object, never a 5xx; and the worker goes on."""
    for body in broken_bodies():
        answer = fuzzed.call("POST", path, key=fuzzed.key(), raw=body)
        assert answer.status < 500, (body[:80], answer)
        assert answer.status < 300 or "error" in answer.body
    assert fuzzed.decide("fuzz")["experiment"] == "fuzz"


FIELDS = [
    "experiment",
    "unit",
    "context",
    "eligible",
    "events",
    "requests",
    "event_id",
    "type",
    "value",
    "at",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@needs_server
@settings(max_examples=60)
@given(body=JSON, path=st.sampled_from(PATHS))
def test_made_up_json_is_answered(fuzzed: Running, body: Any, path: str) -> None:
    """Whatever JSON comes, the answer is no fault of ours."""
    answer = fuzzed.call("POST", path, body, fuzzed.key())
    assert answer.status < 500, (body, answer)
