"""Settings: what is refused is named, and what is secret is not."""

import pytest

from bandolero_service.settings import SettingsError, read_settings

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
