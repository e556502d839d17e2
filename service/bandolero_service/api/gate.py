"""Who is calling: an API key or a person's token, and no guessing at speed."""

from typing import NamedTuple

from bandolero.documents import shown
from bandolero_service.errors import ApiError, too_many
from bandolero_service.people import SCOPES, People
from bandolero_service.rates import Limiter, parse_rate
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey
from bandolero_service.views import Views

_SCHEME = "Bearer"


class Caller(NamedTuple):
    """Who is calling: the tenant, and the actor that the audit log names."""

    tenant: str
    actor: str


class Gate:
    """Lets callers of one worker in."""

    def __init__(self, views: Views, limiter: Limiter, settings: Settings) -> None:
        self._views = views
        self._limiter = limiter
        self._people = People(settings) if settings.jwks else None
        failed = settings.failed_auth_rate
        self._failed_rate = parse_rate(failed) if failed else None

    def key(self, header: bytes, address: str, *scopes: str) -> ApiKey:
        """The API key of an Authorization header, if it has one of the scopes.

        Raises
        ------
        ApiError
            401 without a valid key, 403 where the key lacks the scopes, 429 instead of
            401 where the address has sent too many that were refused.
        """
        checked = self._views.authorised
        for scope in scopes:
            if (known := checked.get((header, scope))) is not None:
                return known
        text = _text(header)
        key = self._views.api_key(text) or self._unseen_key(header, text, address)
        _check_scopes("key", key.scopes, scopes)
        if header == f"{_SCHEME} {text}".encode("latin-1"):  # one spelling a key
            for scope in scopes:
                if scope in key.scopes:
                    checked[header, scope] = key
        return key

    def caller(self, header: bytes, address: str, *scopes: str) -> Caller:
        """Who sent an Authorization header: a key as above, or a person.

        Raises
        ------
        ApiError
            As above.
        """
        text = _text(header)
        if self._people is None or not self._people.is_token(text):
            key = self.key(header, address, *scopes)
            return Caller(key.tenant, f"key:{key.key_id}")
        try:
            person = self._people.person(text)
        except ApiError as error:
            if error.status == 401:
                self._refuse_guesses(address)
                self._count_failure(address)
            raise
        for_people = tuple(scope for scope in scopes if scope in SCOPES)
        _check_scopes("token", person.scopes, for_people)
        return Caller(person.tenant, f"jwt:{person.subject}")

    def _unseen_key(self, header: bytes, text: str, address: str) -> ApiKey:
        """A key that this worker did not know, made a moment ago; else a guess."""
        self._refuse_guesses(address)
        if (key := self._views.api_key_now(text)) is not None:
            return key
        if header:  # who sends nothing guesses nothing
            self._count_failure(address)
        message = "Authorization must be 'Bearer KEY' with a valid key."
        raise ApiError(401, "unauthorised", message)

    def _count_failure(self, address: str) -> None:
        if self._failed_rate is not None:
            self._limiter.take_here(self._failed_rate, f"failed/{address}")

    def _refuse_guesses(self, address: str) -> None:
        """Ask no store, and say no more, for an address that has sent too many bad ones.

        Only what is known to be bad, or not known, comes here: callers behind a proxy
        share its address, and must not be kept out by one who guesses.
        """
        if self._failed_rate is not None:
            quota = self._limiter.left_here(self._failed_rate, f"failed/{address}")
            if not quota.allowed:
                raise too_many("refused keys and tokens of one address", quota)


def _text(header: bytes) -> str:
    """What an Authorization header bears; empty where that is nothing of ours."""
    kind, _, text = header.decode("latin-1").partition(" ")
    return text.strip() if kind.lower() == _SCHEME.lower() else ""


def _check_scopes(what: str, scopes: list[str], wanted: tuple[str, ...]) -> None:
    if not any(scope in scopes for scope in wanted):
        message = (
            f"the {what}'s scopes are {shown(scopes)}, "
            f"must include {' or '.join(wanted)}."
        )
        raise ApiError(403, "forbidden", message)
