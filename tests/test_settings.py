"""Settings: what is refused is named, and what is secret is not."""

import math
from dataclasses import fields

import pytest

from bandolero_service.settings import BOUNDS, Settings, SettingsError, read_settings

PEOPLE = {"jwt_issuer": "x", "jwt_audience": "y"}


@pytest.mark.parametrize(
    "given",
    [
        {"store": "valkey://:hunter2@h"},
        {"store": "valkey://user:hunter2@h:6379/0"},
        {"store": "valkey://:p/hunter2@x@h"},
        {"store": "valkey://h?password=hunter2"},
        {"store": ":hunter2@h:6379"},
        {"jwks": "http://ann:hunter2@id.example/jwks", **PEOPLE},
        {"jwks": "https://ann:hunter2@id.example/jwks", **PEOPLE},
        {"public_url": "ftp://ann:hunter2@ads.example"},
    ],
)
def test_a_refused_url_shows_no_password(given: dict[str, str]) -> None:
    """The message names setting and rule, and the URL without who and with what."""
    with pytest.raises(SettingsError, match="must be") as told:
        read_settings({}, **given)
    assert "hunter2" not in str(told.value)
    assert "***" in str(told.value)


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/8, ::1"])
def test_proxies_are_addresses_or_networks(text: str) -> None:
    """Anything else, or everybody, is refused."""
    assert read_settings({}, trusted_proxies=text).trusted_proxies == text
    for bad in ("*", "proxy.example", "10.0.0.1/8"):
        with pytest.raises(SettingsError, match="trusted_proxies == "):
            read_settings({}, trusted_proxies=bad)


def test_every_number_has_bounds() -> None:
    """No number can be left out of the table, and each default lies within."""
    numbers = {f.name for f in fields(Settings) if isinstance(f.default, int | float)}
    assert numbers == BOUNDS.keys()
    read_settings({})


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_out_of_bounds_is_named(name: str) -> None:
    """Too small, too large, infinite or none at all: refused by name, value and rule."""
    least, most = BOUNDS[name]
    for good in (least, most):
        assert getattr(read_settings({}, **{name: good}), name) == good
    for bad in (least - 1, most + 1, math.inf, -math.inf, math.nan):
        with pytest.raises(SettingsError, match=rf"^{name} == .*, must be .* to "):
            read_settings({}, **{name: bad})


def test_numbers_of_the_environment_are_held_to_their_bounds() -> None:
    """What no number can be read from is refused as well as what is out of bounds."""
    for text in ("-5", "", "1e3"):
        with pytest.raises(SettingsError, match=r"(?i)max_body_bytes == "):
            read_settings({"BANDOLERO_MAX_BODY_BYTES": text})
    for text in ("nan", "inf", "-1"):
        with pytest.raises(SettingsError, match="poll_interval_s == "):
            read_settings({"BANDOLERO_POLL_INTERVAL_S": text})
