"""Tokens of people: taken from the configured issuer only, and no trick gets another in."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.client import IncompleteRead
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from bandolero_service import people
from bandolero_service.errors import ApiError
from bandolero_service.people import KeySet, People, Person, check_key_set
from bandolero_service.settings import Settings, SettingsError, read_settings
from service_helpers import cli, experiment, needs_server, running_server, short_folder

ISSUER, AUDIENCE = "https://id.example", "bandolero"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half of a key as an entry of a key set."""
    algorithm: Any = jwt.algorithms.OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = jwt.algorithms.RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, **more}


def key_set(*entries: dict[str, Any]) -> bytes:
    """A key set."""
    return json.dumps({"keys": entries}).encode()


BOTH = key_set(jwk(RSA, "r"), jwk(ED, "e"))


def claims(**more: Any) -> dict[str, Any]:
    """The claims of ann, who may read acme's reports; None leaves one out."""
    now = int(time.time())
    found = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann@example.com",
        "tenant": "acme",
        "scope": "report",
        "exp": now + 300,
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def token(
    key: Any = RSA, kid: str | None = "r", alg: str = "RS256", **more: Any
) -> str:
    """A token of ann, signed."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**more), key, alg, headers)


def by_hand(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token that no library would make."""
    parts = (json.dumps(part).encode() for part in (header, claims()))
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mac = base64.urlsafe_b64encode(sign(text)).rstrip(b"=")
    return (text + b"." + mac).decode()


@pytest.fixture
def checks(tmp_path: Path) -> People:
    """People of the issuer, whose keys are in a file."""
    return people_of(tmp_path, BOTH)


def people_of(folder: Path, keys: bytes) -> People:
    """People whose key set is these bytes."""
    file = folder / "jwks.json"
    file.write_bytes(keys)
    return People(Settings(jwks=str(file), jwt_issuer=ISSUER, jwt_audience=AUDIENCE))


def refusal(checks: People, text: str) -> str:
    """Why a token is refused; it must be."""
    with pytest.raises(ApiError) as told:
        checks.person(text)
    assert told.value.status == 401
    return told.value.message


# --- who gets in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "kid", "alg"), [(RSA, "r", "RS256"), (ED, "e", "EdDSA")]
)
def test_a_good_token_speaks_for_its_person(
    checks: People, key: Any, kid: str, alg: str
) -> None:
    """RS256 and EdDSA: subject, tenant and scopes come from the claims."""
    found = checks.person(token(key, kid, alg))
    assert found == Person("ann@example.com", "acme", ["report"])


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("admin report profile", ["admin", "report", "profile"]),
        (["report"], ["report"]),
        ("decide events", ["decide", "events"]),
        (["report", 7, None], ["report"]),
        (None, []),
        (7, []),
        ({"admin": 1}, []),
    ],
)
def test_scopes_are_words_or_a_list(
    checks: People, scope: Any, scopes: list[str]
) -> None:
    """A token's scopes are whole words, or texts of a list; anything else names none."""
    assert checks.person(token(scope=scope)).scopes == scopes


# --- who does not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"exp": int(time.time()) - 60}, "expired"),
        ({"exp": None}, "exp"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"aud": "another"}, "udience"),
        ({"aud": None}, "aud"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": "x" * 129}, "sub"),
        ({"sub": 7}, "ubject"),
        ({"sub": "\x1b[31mroot\x1b[0m\n2026-11-22"}, "sub must have printable"),
        ({"nbf": 4_000_000_000}, "not yet valid"),
        ({"tenant": None}, "tenant"),
        ({"tenant": ["acme"]}, "tenant"),
        ({"tenant": "../acme"}, "tenant"),
    ],
)
def test_claims_must_be_right(
    checks: People, change: dict[str, Any], word: str
) -> None:
    """Expiry, issuer, audience, subject and tenant: each is needed, and named if wrong."""
    assert word in refusal(checks, token(**change))


def test_a_key_of_nobody_does_not_sign(checks: People) -> None:
    """Another key under a known id, a known key under another id, and no id at all."""
    assert "Signature" in refusal(checks, token(OTHER))
    assert "kid" in refusal(checks, token(RSA, "unknown"))
    assert "kid" in refusal(checks, token(RSA, None))
    refusal(checks, token(RSA, "e"))
    refusal(checks, token(ED, "r", "EdDSA"))


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", ""])
def test_a_token_without_a_signature_is_refused(checks: People, alg: str) -> None:
    """`alg: none`, in any spelling, with and without bytes where the signature was."""
    header = {"alg": alg, "typ": "JWT", "kid": "r"}
    refusal(checks, by_hand(header, lambda _: b""))
    refusal(checks, by_hand(header, lambda _: b"x"))


@pytest.mark.parametrize("form", ["pem", "jwk", "der"])
@pytest.mark.parametrize("kid", ["r", "e"])
def test_a_public_key_is_no_shared_secret(checks: People, kid: str, form: str) -> None:
    """HS256 keyed with the public key that everybody knows: the old swap."""
    public = (RSA if kid == "r" else ED).public_key()
    encoding = (
        serialization.Encoding.DER if form == "der" else serialization.Encoding.PEM
    )
    shared = public.public_bytes(
        encoding, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    if form == "jwk":
        shared = json.dumps(jwk(RSA if kid == "r" else ED, kid)).encode()

    def sign(text: bytes) -> bytes:
        return hmac.new(shared, text, hashlib.sha256).digest()

    header = {"alg": "HS256", "typ": "JWT", "kid": kid}
    assert "alg value" in refusal(checks, by_hand(header, sign))


@pytest.mark.parametrize("alg", ["RS384", "RS512", "PS256"])
def test_other_algorithms_of_a_good_key_are_refused(checks: People, alg: str) -> None:
    """One algorithm a type of key, whatever the key could do."""
    assert "alg value" in refusal(checks, token(RSA, "r", alg))


def test_a_token_brings_no_keys_of_its_own(checks: People) -> None:
    """`jwk`, `jku` and `x5u` in a header are not looked at."""
    headers = {
        "kid": "mine",
        "jwk": jwk(OTHER, "mine"),
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/cert",
    }
    text = jwt.encode(claims(), OTHER, "RS256", headers)
    assert "kid" in refusal(checks, text)
    headers["kid"] = "r"
    assert "Signature" in refusal(checks, jwt.encode(claims(), OTHER, "RS256", headers))


@pytest.mark.parametrize(
    "text", ["..", "a.b.c", "é.é.é", "a" * 9000 + "..", "e30.e30.e30"]
)
def test_what_is_no_token_is_refused(checks: People, text: str) -> None:
    """Nonsense of a token's form is a 401 like any other."""
    refusal(checks, text)


@pytest.mark.filterwarnings("ignore:The RSA key is")
def test_keys_that_are_unfit_are_not_used(tmp_path: Path) -> None:
    """Symmetric, short, private, for encryption, of other curves, or of strange types: none
    of them checks, and none shuts out the good one among them."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    curve = ec.generate_private_key(ec.SECP256R1())
    secret = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    private = jwt.algorithms.RSAAlgorithm.to_jwk(OTHER, as_dict=True) | {
        "kid": "private"
    }
    checks = people_of(
        tmp_path,
        key_set(
            jwk(RSA, "r"),
            {"kty": "oct", "k": secret, "kid": "oct"},
            jwk(short, "short"),
            private,
            jwk(OTHER, "enc", use="enc"),
            jwk(OTHER, "hs", alg="HS256"),
            jwk(curve, "curve"),
            {"kty": "RSA", "kid": "broken"},
            {"kty": ["RSA"], "kid": "odd"},
            jwk(OTHER, "listed") | {"kid": ["listed"]},
            jwk(OTHER, "curved") | {"crv": ["x"]},
            jwk(OTHER, "number") | {"n": 7},
        ),
    )
    assert checks.person(token()).tenant == "acme"
    refusal(checks, token(b"k" * 32, "oct", "HS256"))
    refusal(checks, token(short, "short"))
    for kid in ("private", "enc", "hs", "broken", "odd", "listed", "curved", "number"):
        refusal(checks, token(OTHER, kid))
    refusal(checks, token(curve, "curve", "ES256"))


# --- the key set ----------------------------------------------------------------------------


class Source:
    """A key set that changes, breaks, and counts how often it was read."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | Exception = data
        self.n_reads = 0

    def __call__(self) -> bytes:
        """Give the key set, or fail."""
        self.n_reads += 1
        if isinstance(self.data, Exception):
            raise self.data
        return self.data


def test_unknown_ids_do_not_make_us_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of tokens with ids nobody has reads the key set once; later it is read anew."""
    source = Source(key_set(jwk(RSA, "r")))
    keys = KeySet(source)
    assert all(keys.key(f"unknown-{i}") is None for i in range(50))
    assert source.n_reads == 1
    source.data = BOTH
    monkeypatch.setattr(people, "AGAIN_S", 0.0)
    assert keys.key("e") is not None
    assert source.n_reads == 2


@pytest.mark.parametrize(
    "failure",
    [
        OSError("away"),
        IncompleteRead(b"{"),
        b"",
        b"[]",
        b"{}",
        b'{"keys": 7}',
        b'{"keys": []}',
        b'{"keys": [{"kid": ["r"]}]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_the_last_keys_stay_when_there_are_no_new_ones(
    monkeypatch: pytest.MonkeyPatch, failure: bytes | Exception
) -> None:
    """A provider that is away, or answers nonsense, locks nobody out."""
    source = Source(BOTH)
    keys = KeySet(source)
    assert keys.key("r") is not None
    monkeypatch.setattr(people, "AGAIN_S", 0.0)
    monkeypatch.setattr(people, "REFRESH_S", 0.0)
    source.data = failure
    assert keys.key("r") is not None
    assert source.n_reads == 2


def test_no_keys_at_all_is_no_fault_of_the_token(tmp_path: Path) -> None:
    """Where no key set was ever read the answer is 503, for it may come."""
    checks = People(
        Settings(jwks=str(tmp_path / "none"), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    )
    with pytest.raises(ApiError) as told:
        checks.person(token())
    assert told.value.status == 503


@pytest.mark.parametrize("keys", [None, b"", b"{}", key_set()], ids=repr)
def test_a_file_without_keys_is_noticed(keys: bytes | None) -> None:
    """Missing, empty, or without a usable key: by setting, value and rule."""
    with short_folder() as folder:
        file = folder / "jwks.json"
        if keys is not None:
            file.write_bytes(keys)
        with pytest.raises(SettingsError, match=r"jwks == '.*', must (be|hold) a "):
            check_key_set(Settings(jwks=str(file)))
    check_key_set(Settings(jwks="https://id.example/jwks"))


def test_serve_without_its_keys_does_not_start() -> None:
    """Exit code 2, one line, nothing made; an API worker alone says the same."""
    with short_folder() as folder:
        told = {
            "BANDOLERO_JWKS": str(folder / "none"),
            "BANDOLERO_JWT_ISSUER": ISSUER,
            "BANDOLERO_JWT_AUDIENCE": AUDIENCE,
        }
        for role in ((), ("--role", "api")):
            where = ("--data-dir", str(folder / "d"), "--port", "0")
            done = cli("serve", *role, *where, environment=told)
            assert done.returncode == 2, done
            assert len(done.stderr.splitlines()) == 1
        assert not (folder / "d").exists()


def test_the_settings_come_together() -> None:
    """Keys without issuer or audience would take anybody's tokens; http is no place for keys."""
    with pytest.raises(SettingsError, match="together"):
        read_settings({"BANDOLERO_JWKS": "jwks.json"})
    all_three = {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    with pytest.raises(SettingsError, match="https"):
        read_settings({}, jwks="http://id.example/jwks", **all_three)
    assert read_settings({}, jwks="https://id.example/jwks", **all_three).jwks


# --- over https -----------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    """Serves the key set at /jwks, sends on from /moved, and never ends at /endless."""

    def do_GET(self) -> None:  # the library's name
        """Answer."""
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/jwks")
            self.end_headers()
            return
        data = (
            b" " * (people.MAX_KEY_SET_BYTES + 1) if self.path == "/endless" else BOTH
        )
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An https server of an identity provider, whose certificate this process trusts."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(RSA.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(RSA, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    kind = serialization.PrivateFormat.PKCS8
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.public_bytes(pem))
    key.write_bytes(RSA.private_bytes(pem, kind, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), Provider)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "good"), [("/jwks", True), ("/moved", False), ("/endless", False)]
)
def test_keys_are_fetched_from_the_configured_place_only(
    provider: str, path: str, good: bool
) -> None:
    """Over TLS that is checked, without following anywhere, and never more than a megabyte."""
    keys = KeySet(people._reader(provider + path))
    if good:
        assert keys.key("r") is not None
    else:
        with pytest.raises(ApiError, match="cannot be read"):
            keys.key("r")


def test_a_certificate_that_nobody_signed_is_refused(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without trust in its certificate a provider is not listened to."""
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ApiError, match="cannot be read"):
        KeySet(people._reader(f"{provider}/jwks")).key("r")


# --- through the running system -------------------------------------------------------------


@pytest.mark.slow
@needs_server
def test_people_work_in_the_running_system() -> None:
    """Tokens open the control plane and reports of their tenant, are audited, and decide nothing."""
    with short_folder() as folder:
        file = folder / "jwks.json"
        file.write_bytes(BOTH)
        told = {
            "BANDOLERO_JWKS": str(file),
            "BANDOLERO_JWT_ISSUER": ISSUER,
            "BANDOLERO_JWT_AUDIENCE": AUDIENCE,
        }
        with running_server(environment=told) as server:
            admin, reader = token(scope="admin"), token(ED, "e", "EdDSA")
            path = "/v1/experiments/theirs"
            server.ok("PUT", path, experiment("theirs"), admin)
            assert server.call("GET", path, key=reader).status == 200
            assert server.call("POST", f"{path}/start", {}, reader).status == 403
            (line,) = server.ok("GET", "/v1/audit", key=admin)["lines"]
            assert line["actor"] == "jwt:ann@example.com"
            foreign = token(scope="admin", tenant="rival")
            assert server.call("GET", path, key=foreign).status == 404
            for where in ("/v1/decide", "/v1/events"):
                assert server.call("POST", where, {}, admin).status == 401
            expired = server.call("GET", path, key=token(exp=1))
            assert expired.status == 401
            assert "expired" in expired.body["error"]["message"]
            assert expired.headers["www-authenticate"] == "Bearer"
            assert admin not in server.log.read_text()
