"""API keys: random, shown once, kept as a hash, bound to a tenant and to scopes."""

import secrets
import time
from hashlib import sha256
from hmac import compare_digest

from bandolero_service.store import ApiKey

SCOPES = ("decide", "events", "report", "admin")
_PREFIX = "bk"


def new_api_key(tenant: str, scopes: list[str]) -> tuple[str, ApiKey]:
    """Make a key: its text, to be shown once, and what is kept of it.

    256 random bits, so a fast hash is enough: there is nothing to guess.
    """
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    kept = ApiKey(key_id, tenant, scopes, _hash(secret), int(time.time() * 1000))
    return f"{_PREFIX}_{key_id}_{secret}", kept


def key_id_of(text: str) -> str | None:
    """The id a key's text names, if it has a key's form."""
    parts = text.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else None


def matches(text: str, key: ApiKey) -> bool:
    """Whether a text is this key, and the key may still be used."""
    secret = text.split("_", 2)[2]
    return not key.revoked and compare_digest(_hash(secret), key.secret_hash)


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
