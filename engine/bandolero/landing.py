"""The landing URL of a variant: where its click leads, checked when it is specified.

A click tracker redirects to it, so it must be a place on the web and nothing else: plain
http or https, a host and no credentials before it, and only characters that mean the same
to every browser. Names and paths beyond ASCII are given encoded (`xn--…`, `%C3%A9`), so
what is reviewed is what is opened.
"""

import re
from collections.abc import Iterator, Mapping

from bandolero.policy_specs import Fault

LANDING_URL = "landing_url"
"""The slot of a creative that holds it."""
MAX_URL_CHARACTERS = 2048
MAX_PORT = 65_535
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_REST = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?#-]|%[0-9A-Fa-f]{2})"
_URL = re.compile(
    rf"(?i:https?)://{_HOST}(?::(?P<port>[0-9]{{1,5}}))?(?:[/?#]{_REST}*)?"
)

_RULE = (
    "must be an http or https URL: ASCII, a host without credentials, a"
    f" port up to {MAX_PORT}, the rest percent-encoded, at most {MAX_URL_CHARACTERS} characters."
)


def is_web_url(text: str) -> bool:
    """Whether a text is an absolute http or https URL as a landing URL must be.

    Examples
    --------
    >>> is_web_url("https://shop.example/hats?size=m#red")
    True
    >>> is_web_url("javascript:alert(1)"), is_web_url("https://a@evil.example")
    (False, False)
    """
    found = _URL.fullmatch(text) if len(text) <= MAX_URL_CHARACTERS else None
    return found is not None and 1 <= int(found["port"] or 1) <= MAX_PORT


def landing_url(creative: Mapping[str, str]) -> str | None:
    """Where a creative's click leads; None where it says nothing, or nothing safe."""
    url = creative.get(LANDING_URL)
    return url if url is not None and is_web_url(url) else None


def landing_faults(variants: object) -> list[Fault]:
    """Landing URLs that break the rule, in variants as an author wrote them."""
    return [
        Fault(field, f"{field} == {url[:80]!r}, {_RULE}")
        for field, url in _given(variants)
        if isinstance(url, str) and not is_web_url(url)
    ]


def _given(variants: object) -> Iterator[tuple[str, object]]:
    for i, variant in enumerate(variants if isinstance(variants, list) else []):
        creative = variant.get("creative") if isinstance(variant, Mapping) else None
        if isinstance(creative, Mapping):
            field = f"variants[{i}].creative.{LANDING_URL}"
            yield field, creative.get(LANDING_URL)
