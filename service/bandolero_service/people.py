"""People: JSON Web Tokens of an identity provider, for reports and the control plane.

A token names the tenant in the claim `tenant` and its scopes, `report` and `admin`, in
the claim `scope`, as words or as a list. Which algorithm checks it is said by the key,
never by the token; no URL in a token is ever read.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, build_opener

import jwt

from bandolero_service.errors import ApiError
from bandolero_service.experiments import checked_tenant
from bandolero_service.settings import Settings, SettingsError, shown

log = logging.getLogger(__name__)

SCOPES = ("report", "admin")
"""What a person may do; deciding and telling events is for keys."""
MAX_KEY_SET_BYTES = 1_000_000
FETCH_TIMEOUT_S = 5.0
REFRESH_S = 300.0
AGAIN_S = 10.0
"""The key set is not read more often than this, whatever tokens ask for."""
LEEWAY_S = 30.0
"""How far two clocks may be apart."""
MAX_SUBJECT_CHARACTERS = 128
_UNREADABLE = (OSError, HTTPException, ValueError, RecursionError)
"""What reading a key set raises, be it away, cut short or none."""
_UNUSABLE = (jwt.PyJWTError, AttributeError, LookupError, TypeError, ValueError)
"""What a strange key raises, which must not shut out the others of its set."""
_ALGORITHMS = {("RSA", "None"): "RS256", ("OKP", "Ed25519"): "EdDSA"}
"""By the type of a key and its curve."""
_OPTIONS: Any = {
    "require": ["exp", "iss", "aud", "sub"],
    "enforce_minimum_key_length": True,
}


class Person(NamedTuple):
    """Who a token speaks for, and the scopes that it names; of use are those in `SCOPES`."""

    subject: str
    tenant: str
    scopes: list[str]


class KeySet:
    """The public keys of an identity provider, read anew now and then.

    The keys that were read last stay when they cannot be read again.

    Parameters
    ----------
    read
        Gives the JSON Web Key Set.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._lock = threading.Lock()

    def key(self, kid: str) -> jwt.PyJWK | None:
        """The key of that id."""
        age_s = time.monotonic() - self._read_at
        if age_s > REFRESH_S or (kid not in self._keys and age_s > AGAIN_S):
            self._refresh()
        if not self._keys:
            message = "the key set of the identity provider cannot be read, try again."
            raise ApiError(503, "no_key_set", message)
        return self._keys.get(kid)

    def _refresh(self) -> None:
        """Read the keys; others meanwhile use those there are, or wait for the first."""
        if not self._lock.acquire(blocking=not self._keys):
            return
        try:
            if time.monotonic() - self._read_at > AGAIN_S:
                self._read_at = time.monotonic()
                self._keys = _keys_in(self._read()) or self._keys
        except _UNREADABLE as error:
            log.error("the key set cannot be read, the last one stays: %s", error)
        finally:
            self._lock.release()


class People:
    """Checks tokens against the configured key set, issuer and audience."""

    def __init__(self, settings: Settings) -> None:
        self._keys = KeySet(_reader(settings.jwks))
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience

    @staticmethod
    def is_token(text: str) -> bool:
        """Whether a text has a token's form."""
        return text.count(".") == 2

    def person(self, token: str) -> Person:
        """Who a token speaks for.

        Raises
        ------
        ApiError
            401 naming what is wrong with it; 503 where there are no keys to check with.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._keys.key(kid) if isinstance(kid, str) else None
            if key is None:
                raise _refused("kid names no key of the identity provider")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options=_OPTIONS,
            )
        except jwt.PyJWTError as error:
            raise _refused(str(error) or type(error).__name__) from None
        return _person(claims)


def check_key_set(settings: Settings) -> None:
    """Refuse a file of keys by which nobody could come in.

    A provider behind a URL may be away for the moment, and is asked when it is needed.

    Raises
    ------
    SettingsError
        Naming the setting, its value and the rule.
    """
    if settings.jwks.startswith("https://"):
        return
    where = f"jwks == {settings.jwks!r}"
    try:
        keys = _keys_in(_reader(settings.jwks)())
    except _UNREADABLE as error:
        raise SettingsError(f"{where}, must be a readable key set: {error}") from None
    if not keys:
        raise SettingsError(f"{where}, must hold a key that may check tokens.")


def _person(claims: dict[str, Any]) -> Person:
    subject, tenant = claims["sub"], claims.get("tenant")
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
        raise _refused(f"sub must have 1 to {MAX_SUBJECT_CHARACTERS} characters")
    if not subject.isprintable():
        raise _refused("sub must have printable characters only")
    if not isinstance(tenant, str):
        raise _refused("the claim 'tenant' must name a tenant")
    try:
        checked_tenant(tenant)
    except ApiError as error:
        raise _refused(error.message) from None
    scope = claims.get("scope", "")
    words = scope.split() if isinstance(scope, str) else scope
    named = words if isinstance(words, list) else []
    return Person(subject, tenant, [word for word in named if isinstance(word, str)])


def _refused(reason: str) -> ApiError:
    return ApiError(401, "unauthorised", f"the token is refused: {reason.rstrip('.')}.")


def _keys_in(data: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of a set that may check tokens, by id."""
    found = json.loads(data)
    keys = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it must be an object with a list of keys.")
    usable = (_usable(raw) for raw in keys if isinstance(raw, dict))
    return {key.key_id: key for key in usable if key is not None and key.key_id}


def _usable(raw: dict[str, Any]) -> jwt.PyJWK | None:
    """A public key for signatures, with the one algorithm of its type; else None."""
    algorithm = _ALGORITHMS.get((str(raw.get("kty")), str(raw.get("crv"))))
    is_named = isinstance(raw.get("kid"), str)
    meant_for_us = is_named and raw.get("use", "sig") == "sig" and "d" not in raw
    if not meant_for_us or algorithm is None or raw.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK(raw, algorithm)
    except _UNUSABLE as error:
        log.warning("a key of the key set cannot be used: %s", error)
        return None


def _reader(source: str) -> Callable[[], bytes]:
    """Reads a key set from where the settings say: a file, or an https URL."""
    if not source.startswith("https://"):
        return lambda: _bounded(Path(source).read_bytes())
    opener = build_opener(_NoRedirect)

    def fetch() -> bytes:
        try:
            with opener.open(source, timeout=FETCH_TIMEOUT_S) as answer:
                return _bounded(answer.read(MAX_KEY_SET_BYTES + 1))
        except URLError as error:
            raise OSError(f"{shown(source)}: {error.reason}") from None

    return fetch


class _NoRedirect(HTTPRedirectHandler):
    """The configured URL is the only one that is asked."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nowhere: the answer counts as a failure."""


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_KEY_SET_BYTES:
        raise ValueError(f"it must have at most {MAX_KEY_SET_BYTES} bytes.")
    return data
