"""Secrets and keys: where they come from, what they guard, and what a rotation does to whom."""

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bandolero_service import auth
from bandolero_service.audit import Author
from bandolero_service.backup import export_keys, import_keys
from bandolero_service.cli import app
from bandolero_service.commands import CommandError, Place, UsageError
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.ids import DecisionId, ForgedIdError, Signer
from bandolero_service.secret import Secrets, check_exposure, check_root, read_secrets
from bandolero_service.settings import Settings, SettingsError
from bandolero_service.store import RefusedStoreError, Store
from service_helpers import (
    Running,
    cli,
    click,
    experiment,
    free_port,
    needs_server,
    running_server,
    short_folder,
    wait_for,
)

OLD, NEW = "old " * 8, "new " * 8
STEPS = [
    Signer(b"old", "acme"),
    Signer(b"old", "acme", previous=b"new", root=b"old"),
    Signer(b"new", "acme", previous=b"old", root=b"old"),
    Signer(b"new", "acme", root=b"old"),
]
"""A worker's signer, as a rotation goes on."""
DECISION = DecisionId(1, b"8 bytes!", 1_700_000_000_000, 3, 0, b"nonce!!!")


# --- where they come from -----------------------------------------------------------------


def test_a_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """Without one given, the first to ask makes one in the data folder; it stays."""
    settings = Settings(data_dir=tmp_path)
    made = read_secrets(settings)
    assert len(made.current) == 64
    assert read_secrets(settings) == made
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert made.root == made.current


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    """`secret_file` is read without the line end that editors add; two sources are refused."""
    file = tmp_path / "given"
    file.write_text(f"{OLD}x\n")
    settings = Settings(data_dir=tmp_path, secret_file=str(file))
    assert read_secrets(settings).current == f"{OLD}x".encode()
    with pytest.raises(SettingsError, match="must be one of them"):
        read_secrets(Settings(secret=NEW, secret_file=str(file)))
    file.write_text("\n")
    with pytest.raises(SettingsError, match="must hold a secret"):
        read_secrets(settings)
    with pytest.raises(SettingsError, match="must be readable"):
        read_secrets(Settings(secret_file=str(tmp_path / "none")))


def test_a_rotation_names_the_root() -> None:
    """A previous secret alone would change pseudonyms without a word, so it is refused."""
    with pytest.raises(
        SettingsError, match="BANDOLERO_SECRET_ROOT must be given"
    ) as told:
        read_secrets(Settings(secret=NEW, secret_previous=OLD))
    assert OLD not in str(told.value)


def test_secrets_are_not_shown() -> None:
    """Neither settings nor secrets show one when they are printed."""
    settings = Settings(secret=NEW, secret_previous=OLD, secret_root=OLD)
    shown = f"{settings} {read_secrets(settings)}"
    assert NEW not in shown
    assert OLD not in shown


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.7", "ads.example.com"])
def test_beyond_loopback_a_secret_must_be_given(host: str) -> None:
    """The default and short ones are refused where others can reach the port."""
    with pytest.raises(SettingsError, match="must be given"):
        check_exposure(Settings(host=host))
    for short in (Settings(secret="x" * 31), Settings(secret=NEW, secret_root="x")):
        with pytest.raises(SettingsError, match="at least 32 characters"):
            check_exposure(replace(short, host=host))
    check_exposure(Settings(host=host, secret="x" * 32))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_the_default_secret_is_good(host: str) -> None:
    """The demo and a first try need no secret."""
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("role", [(), ("--role", "api")], ids=["all", "api"])
def test_serve_refuses_the_default_secret(role: tuple[str, ...]) -> None:
    """On all addresses: exit code 2, one line that says the way out, nothing started."""
    with short_folder() as folder:
        port = str(free_port())
        where = ("--data-dir", str(folder / "d"), "--host", "0.0.0.0", "--port", port)
        done = cli("serve", *role, *where)
        assert done.returncode == 2
        assert not (folder / "d").exists()
    (line,) = done.stderr.splitlines()
    assert "BANDOLERO_SECRET_FILE must be given" in line


# --- what they guard ------------------------------------------------------------------------


def test_two_live_keys_and_then_one() -> None:
    """During a rotation ids of both secrets are good; after it the old ones are forged."""
    before, ahead, during, after = STEPS
    old_id, new_id = (s.mint(*DECISION).decode() for s in (before, during))
    assert during.read(old_id) == during.read(new_id) == DECISION
    assert after.read(new_id) == DECISION
    with pytest.raises(ForgedIdError):
        after.read(old_id)
    with pytest.raises(ForgedIdError):
        before.read(new_id)
    assert ahead.read(new_id) == DECISION


def test_workers_a_step_apart_take_each_others_ids() -> None:
    """While workers are replaced one by one no event is rejected: whichever of two has
    signed a decision, or its tracker, the other takes it."""
    for one, next_one in itertools.pairwise(STEPS):
        for mints, reads in ((one, next_one), (next_one, one)):
            minted, clicked = mints.mint(*DECISION), b"click"
            assert reads.read(minted.decode()) == DECISION
            token = mints.token(clicked, minted).decode()
            assert reads.tracked(clicked, token) == minted.decode()


def test_pseudonyms_outlive_a_rotation() -> None:
    """A unit is known again under the same root, whatever the current secret is."""
    before, after = Signer(b"old", "acme"), Signer(b"new", "acme", root=b"old")
    assert before.pseudonym("u") == after.pseudonym("u")
    assert before.pseudonym("u") != Signer(b"new", "acme").pseudonym("u")


@needs_server
def test_a_store_knows_its_root(store: Store) -> None:
    """A store that was used with one root refuses another, and keeps nothing of either."""
    check_root(store, Secrets(b"old"))
    check_root(store, Secrets(b"new", previous=b"old", root=b"old"))
    with pytest.raises(RefusedStoreError, match="BANDOLERO_SECRET_ROOT"):
        check_root(store, Secrets(b"new"))


def test_a_kept_key_is_good_for_nothing_without_the_root() -> None:
    """A key matches under its root and its tenant only; what is kept is not a plain hash."""
    text, kept = auth.new_api_key(b"root", "acme", ["decide"])
    assert auth.matches(b"root", text, kept)
    assert not auth.matches(b"other", text, kept)
    assert not auth.matches(b"root", text, kept._replace(tenant="rival"))
    assert not auth.matches(b"root", text[:-1] + "?", kept)
    assert text.split("_", 2)[2] not in str(kept)


def test_a_key_expires() -> None:
    """A key is good until its moment, and is called expired after it."""
    soon = auth.expiry("1m")
    text, kept = auth.new_api_key(b"root", "acme", ["decide"], soon)
    assert auth.matches(b"root", text, kept)
    past = kept._replace(expires_at_ms=time.time_ns() // 1_000_000)
    assert not auth.matches(b"root", text, past)
    assert (auth.state(kept), auth.state(past)) == ("live", "expired")
    assert auth.next_expiry_ms([past, kept]) == soon
    assert auth.next_expiry_ms([past]) == auth.NEVER_MS


@pytest.mark.parametrize(
    "text", ["", "90", "0d", "-1d", "tomorrow", "2020-01-01", "9999999d"]
)
def test_an_expiry_is_a_time_to_come(text: str) -> None:
    """Anything else is refused by name and value."""
    with pytest.raises(ValueError, match="expires == "):
        auth.expiry(text)


# --- through the running system -------------------------------------------------------------


def test_an_expired_key_is_refused_within_a_second(running: Running) -> None:
    """A key that was used until its moment, and is remembered, is refused after it."""
    root = read_secrets(Settings(data_dir=running.data_dir)).root
    moment_ms = time.time_ns() // 1_000_000 + 3000
    text, kept = auth.new_api_key(root, "acme", ["decide"], moment_ms)
    store = Store(EmbeddedStore(running.data_dir).url)
    store.put_api_key(kept, Author("test", root))
    store.close()

    def status() -> int:
        body = {"experiment": "nobody"}
        return running.call("POST", "/v1/decide", body, text).status

    assert status() == 404
    time.sleep(max(0.0, moment_ms / 1000 - time.time()))
    wait_for(lambda: status() == 401, 5, "the key has expired")


def test_a_key_without_a_time_to_come_is_not_made(tmp_path: Path) -> None:
    """An expiry that is none is a usage error, and nothing is printed for a key."""
    words = ["keys", "create", "--tenant", "acme", "--expires", "soon"]
    with pytest.raises(UsageError, match="expires == 'soon'"):
        CliRunner().invoke(
            app, [*words, "--data-dir", str(tmp_path)], catch_exceptions=False
        )


@pytest.mark.slow
@needs_server
def test_a_rotation_walks_through_the_running_system() -> None:
    """Old ids are good until the old secret is removed; keys and pseudonyms always are."""
    ahead = {
        "BANDOLERO_SECRET": OLD,
        "BANDOLERO_SECRET_PREVIOUS": NEW,
        "BANDOLERO_SECRET_ROOT": OLD,
    }
    with running_server(environment=ahead) as server:
        server.begin(experiment("turning"))
        old = server.decide("turning", unit="u")

        def restarted(**environment: str) -> None:
            server.stop()
            server._environment |= environment
            server.start()

        restarted(BANDOLERO_SECRET=NEW, BANDOLERO_SECRET_PREVIOUS=OLD)
        new = server.decide("turning", unit="u")
        told = server.tell([click(old, "a"), click(new, "b")])
        assert told == {"accepted": 2, "rejected": []}
        server._environment.pop("BANDOLERO_SECRET_PREVIOUS")
        restarted()
        told = server.tell([click(old, "c"), click(new, "d")])
        assert [one["index"] for one in told["rejected"]] == [0]
        shown = [server.ok("GET", f"/v1/decisions/{d['decision_id']}") for d in (new,)]
        assert shown[0]["decision_id"] == new["decision_id"]
        log = server.log.read_text()
        assert OLD not in log
        assert NEW not in log
        server.stop()
        server._environment.pop("BANDOLERO_SECRET_ROOT")
        server.start(wait=False)
        assert server.process is not None
        assert server.process.wait(30) == 1
        assert "BANDOLERO_SECRET_ROOT" in server.last_words()


@needs_server
def test_exported_keys_name_their_root(
    store: Store,
    embedded: EmbeddedStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Keys go where their root is; under another they are refused before anything is written."""
    place = Place(Settings(store=embedded.url, data_dir=tmp_path, secret=OLD))
    _, key = auth.new_api_key(OLD.encode(), "acme", ["decide"])
    store.put_api_key(key, Author("test", OLD.encode()))
    export_keys(place, None)
    file = tmp_path / "keys.jsonl"
    file.write_text(capsys.readouterr().out)
    import_keys(place, file, None)
    assert "0 keys imported, 1 were there" in capsys.readouterr().out
    store._redis.flushall()
    store.open(4)
    with pytest.raises(CommandError, match=r"line 1, .* BANDOLERO_SECRET_ROOT"):
        import_keys(Place(replace(place.settings, secret=NEW)), file, None)
    assert store.api_keys() == []
    rotated = replace(place.settings, secret=NEW, secret_root=OLD)
    import_keys(Place(rotated), file, None)
    assert store.api_keys() == [key]
    file.write_text("[]")
    with pytest.raises(CommandError, match="must be a key as"):
        import_keys(place, file, None)
