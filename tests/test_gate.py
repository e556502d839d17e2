"""The gate of a worker: who guesses is held back, and nobody with him."""

from pathlib import Path

import pytest

from bandolero_service.api.gate import Gate
from bandolero_service.audit import Author
from bandolero_service.auth import new_api_key
from bandolero_service.errors import ApiError
from bandolero_service.rates import Limiter
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings
from bandolero_service.store import Store, StoreDownError
from bandolero_service.views import Views
from service_helpers import needs_server
from test_people import AUDIENCE, BOTH, ISSUER, OTHER, token

pytestmark = needs_server
PROXY = "10.0.0.1"


class Door:
    """A gate over a store, with a good key that the worker knows."""

    def __init__(self, store: Store, folder: Path) -> None:
        (folder / "jwks.json").write_bytes(BOTH)
        settings = Settings(
            data_dir=folder,
            secret="secret",
            failed_auth_rate="3/h",
            jwks=str(folder / "jwks.json"),
            jwt_issuer=ISSUER,
            jwt_audience=AUDIENCE,
        )
        self.root = read_secrets(settings).root
        self.store = store
        self.key = self.new_key()
        self.views = Views(store, settings)
        self.views.refresh()
        self.gate = Gate(self.views, Limiter(store.count, StoreDownError), settings)

    def new_key(self) -> str:
        """A key made now."""
        text, kept = new_api_key(self.root, "acme", ["decide", "report"])
        self.store.put_api_key(kept, Author("test", self.root))
        return text

    def status(self, text: str, scope: str = "report") -> int:
        """What a caller from behind the proxy is told."""
        try:
            self.gate.caller(f"Bearer {text}".encode(), PROXY, scope)
        except ApiError as error:
            return error.status
        return 200


@pytest.fixture
def door(store: Store, tmp_path: Path) -> Door:
    """A gate that allows three bad keys an hour from an address."""
    return Door(store, tmp_path)


def test_a_guesser_keeps_out_nobody_who_shares_his_address(door: Door) -> None:
    """Past the bound guesses get 429; a good key not used before and a token get in."""
    guesses = [door.status(f"bk_{i:012}_x") for i in range(5)]
    assert guesses == [401] * 3 + [429] * 2
    assert door.status(door.key) == 200
    assert door.status(token()) == 200
    assert door.status("") == 429


def test_bad_tokens_count_as_guesses(door: Door) -> None:
    """Tokens that are refused are bounded like keys, and keep out no good ones."""
    statuses = [door.status(token(OTHER)) for _ in range(5)]
    assert statuses == [401] * 3 + [429] * 2
    assert door.status(token()) == 200
    assert door.status("bk_0_x") == 429


def test_a_person_who_may_not_is_told_what_the_token_says(door: Door) -> None:
    """Its scopes and those wanted are named; people never decide, whatever a token says."""
    header = f"Bearer {token(scope='decide events')}".encode()
    with pytest.raises(ApiError) as told:
        door.gate.caller(header, PROXY, "report", "admin")
    scopes = (
        "the token's scopes are ['decide', 'events'], must include report or admin."
    )
    assert (told.value.status, told.value.message) == (403, scopes)
    assert door.status(token(scope="decide"), "decide") == 403


def test_past_the_bound_the_store_is_not_asked(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that the worker does not know are looked up until the address is past it."""
    asked: list[int] = []
    known = door.store.api_keys_generation()

    def ask() -> int:
        asked.append(1)
        return known

    monkeypatch.setattr(door.store, "api_keys_generation", ask)
    for i in range(6):
        door.status(f"bk_{i:012}_x")
    assert len(asked) == 3


def test_a_key_made_a_moment_ago_gets_in(door: Door) -> None:
    """What the worker has not seen yet is asked of the store."""
    assert door.status(door.new_key()) == 200


def test_spellings_of_a_header_do_not_pile_up(door: Door) -> None:
    """Every spelling is let in; only the one that clients use is remembered, a scope each."""
    key = door.key.encode()
    for n in range(50):
        for scheme in (b"Bearer", b"bearer", b"BEARER"):
            header = scheme + b" " * (n + 1) + key + b" " * n
            assert door.gate.key(header, PROXY, "decide").tenant == "acme"
            assert door.gate.key(header, PROXY, "report").tenant == "acme"
    remembered = {header for header, _ in door.views.authorised}
    assert remembered == {b"Bearer " + key}
