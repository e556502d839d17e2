"""API keys: random, shown once, kept as a keyed hash, bound to a tenant and to scopes."""

import re
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from hmac import compare_digest

from bandolero_service.ids import derive
from bandolero_service.store import ApiKey

SCOPES = ("decide", "events", "report", "admin")
NEVER_MS = 2**63 - 1
_PREFIX = "bk"
_SPAN = re.compile(r"([1-9]\d{0,5})([mhd])")
_SPAN_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def new_api_key(
    root: bytes,
    tenant: str,
    scopes: list[str],
    expires_at_ms: int | None = None,
    rate: str = "",
) -> tuple[str, ApiKey]:
    """Make a key: its text, to be shown once, and what is kept of it.

    256 random bits, so a fast hash is enough: there is nothing to guess. The hash is
    keyed, so a stolen store gives nothing to check a guess, or a leaked key, against.
    """
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    kept = ApiKey(
        key_id,
        tenant,
        scopes,
        _hash(root, tenant, secret),
        _now_ms(),
        expires_at_ms=expires_at_ms,
        rate=rate,
    )
    return f"{_PREFIX}_{key_id}_{secret}", kept


def key_id_of(text: str) -> str | None:
    """The id a key's text names, if it has a key's form."""
    parts = text.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else None


def matches(root: bytes, text: str, key: ApiKey) -> bool:
    """Whether a text is this key, and the key may still be used."""
    secret = text.split("_", 2)[2]
    same = compare_digest(_hash(root, key.tenant, secret), key.secret_hash)
    return same and state(key) == "live"


def expired(key: ApiKey) -> bool:
    """Whether a key's time is over."""
    return key.expires_at_ms is not None and key.expires_at_ms <= _now_ms()


def state(key: ApiKey) -> str:
    """What a key is good for now: live, revoked or expired."""
    return "revoked" if key.revoked else "expired" if expired(key) else "live"


def next_expiry_ms(keys: Iterable[ApiKey]) -> int:
    """When the next of some keys expires; `NEVER_MS` where none will."""
    to_come = (k.expires_at_ms for k in keys if k.expires_at_ms and not expired(k))
    return min(to_come, default=NEVER_MS)


def expiry(text: str) -> int:
    """The moment, in ms since 1970, that `90d`, `12h`, `30m` or an ISO date means.

    Raises
    ------
    ValueError
        Where it is none of them, or over already.

    >>> expiry("1970-01-02")
    Traceback (most recent call last):
    ValueError: expires == '1970-01-02', must be in the future.
    """
    span = _SPAN.fullmatch(text)
    if span is not None:
        return _now_ms() + int(span[1]) * _SPAN_MS[span[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        rule = "must be a time from now such as 90d, 12h or 30m, or an ISO date"
        raise ValueError(f"expires == {text!r}, {rule}.") from None
    at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    if at_ms <= _now_ms():
        raise ValueError(f"expires == {text!r}, must be in the future.")
    return at_ms


def _hash(root: bytes, tenant: str, secret: str) -> str:
    key = derive(root, b"api-key", tenant)
    return blake2b(secret.encode(), digest_size=32, key=key).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
