"""Settings of a service process: one frozen record, from the environment.

Every field `name` is read from `BANDOLERO_NAME`; the command line sets the same
variables for the processes it starts, so there is one way in.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bandolero.landing import is_web_url
from bandolero_service.rates import parse_rate

PREFIX = "BANDOLERO_"
PARENT = PREFIX + "PARENT"
"""Names the process that started a role, and has checked its settings."""
_READERS: dict[str, Callable[[str], object]] = {
    "path": Path,
    "str": str,
    "int": int,
    "float": float,
}
EMBEDDED = "embedded"
STORE_URLS = ("redis://", "rediss://", "unix://")
LOG_FORMATS = ("auto", "json", "text")
_DAY_S = 86_400
BOUNDS: Mapping[str, tuple[float, float]] = {
    "shards": (1, 1024),
    "port": (0, 65_535),
    "workers": (1, 256),
    "flush_interval_s": (0.001, 10),
    "poll_interval_s": (0.01, 60),
    "publish_interval_s": (0, 3600),
    "archive_interval_s": (0.1, _DAY_S),
    "archive_bytes": (1_000, 1_000_000_000),
    "retain_s": (0, 365 * _DAY_S),
    "accept_events_days": (0, 3650),
    "repeated_click_ms": (0, 1000 * _DAY_S),
    "fastest_click_ms": (0, 1000 * _DAY_S),
    "unit_click_times": (0, 1_000_000),
    "max_body_bytes": (1_000, 16_000_000),
    "spool_max_bytes": (0, 1_000_000_000_000),
    "drain_delay_s": (0, 3600),
}
"""The least and the most that each number may be."""


class SettingsError(ValueError):
    """A setting breaks its rule."""


@dataclass(frozen=True)
class Settings:
    """How a process finds its parts and how patient it is.

    Parameters
    ----------
    store
        `embedded`, or a URL: `redis://`, `rediss://` or `unix://`.
    data_dir
        Holds the embedded store, the lake, the spool and the secret.
    lake
        Directory or URL of an Arrow filesystem; default `<data_dir>/lake`.
    secret, secret_previous, secret_root
        See `bandolero_service.secret.Secrets`. Default: `<data_dir>/secret`, made at
        first use, good for loopback only. Several machines must share them.
    secret_file, secret_previous_file, secret_root_file
        Files that hold the secrets, instead.
    shards
        Fixed when a store is first used.
    flush_interval_s
        Longest time a decision waits in a worker's memory.
    poll_interval_s
        How often a worker looks for new snapshots, specifications and keys.
    publish_interval_s
        Least time between two snapshots of an experiment.
    archive_interval_s, archive_bytes
        The archiver commits at whichever comes first.
    retain_s
        The log keeps at least this much, archived or not.
    public_url
        Where pages reach this service, e.g. `https://ads.example`: what trackers' URLs
        begin with. Without it they are paths only.
    accept_events_days
        Events of older decisions are rejected as expired.
    repeated_click_ms, fastest_click_ms, unit_click_times
        What the refresh takes for invalid traffic, see
        `bandolero.lake.traffic.TrafficRules`; 0, the default, turns a rule off. Where
        people click, 1000, 200 and 10 are a beginning.
    trusted_proxies
        Addresses or networks, with commas, of proxies whose `X-Forwarded-For` is
        believed; empty: nobody's is.
    jwks, jwt_issuer, jwt_audience
        Where the keys are that sign people's tokens (a file, or an https URL), who must
        have issued the tokens, and for whom. Empty: no tokens are taken.
    control_rate
        Most requests of a caller to control plane and reports; empty for no bound.
    decide_rate
        Most requests of a key to decide and events, unless the key has a rate of its
        own; each worker allows its share.
    failed_auth_rate
        Most refused keys and tokens from an address to a worker; past it, refusals are
        429, and keys that the worker does not know yet are not looked up.
    spool_max_bytes
        Blocks kept on local disk while the store is down.
    drain_delay_s
        Told to stop, an API worker says so in `/readyz` for so long before it does.
    log_format
        `json`: every log line is an object; `text`: for people; `auto`: text on a
        terminal, else JSON.
    """

    store: str = EMBEDDED
    data_dir: Path = Path(".bandolero")
    lake: str = ""
    secret: str = field(default="", repr=False)
    secret_file: str = ""
    secret_previous: str = field(default="", repr=False)
    secret_previous_file: str = ""
    secret_root: str = field(default="", repr=False)
    secret_root_file: str = ""
    shards: int = 4
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    workers: int = 1
    flush_interval_s: float = 0.05
    poll_interval_s: float = 0.2
    publish_interval_s: float = 1.0
    archive_interval_s: float = 300.0
    archive_bytes: int = 64_000_000
    retain_s: float = 3600.0
    accept_events_days: float = 30.0
    repeated_click_ms: int = 0
    fastest_click_ms: int = 0
    unit_click_times: float = 0.0
    trusted_proxies: str = ""
    jwks: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    control_rate: str = "100/s"
    decide_rate: str = ""
    failed_auth_rate: str = "100/m"
    max_body_bytes: int = 1_000_000
    spool_max_bytes: int = 1_000_000_000
    drain_delay_s: float = 0.0
    log_format: str = "auto"

    @property
    def lake_url(self) -> str:
        """Where the lake is."""
        return self.lake or str(self.data_dir / "lake")

    @property
    def spool_dir(self) -> Path:
        """Where blocks wait while the store is down."""
        return self.data_dir / "spool"

    @property
    def cache_dir(self) -> Path:
        """Where what was last seen of the store is kept."""
        return self.data_dir / "cache"

    def environment(self) -> dict[str, str]:
        """The variables that give these settings to another process."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["data_dir"] = self.data_dir.absolute()
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def read_settings(
    environment: Mapping[str, str] = os.environ, **given: Any
) -> Settings:
    """Settings from the environment, with those `given` (not None) on top.

    Raises
    ------
    SettingsError
        Naming the variable, its value and the rule.
    """
    values: dict[str, Any] = {}
    for one in fields(Settings):
        name = PREFIX + one.name.upper()
        if name in environment:
            values[one.name] = _parse(name, environment[name], one.default)
    values |= {name: value for name, value in given.items() if value is not None}
    settings = replace(Settings(), **values)
    if settings.store != EMBEDDED and not settings.store.startswith(STORE_URLS):
        rule = f"must be {EMBEDDED} or a URL: {', '.join(STORE_URLS)}."
        raise SettingsError(f"store == {shown(settings.store)!r}, {rule}")
    url = settings.public_url
    if url and (not is_web_url(url) or "?" in url or "#" in url):
        rule = "must be an http or https URL without a query."
        raise SettingsError(f"public_url == {shown(url)!r}, {rule}")
    people = (settings.jwks, settings.jwt_issuer, settings.jwt_audience)
    if any(people) and not all(people):
        raise SettingsError("jwks, jwt_issuer and jwt_audience must be given together.")
    if "://" in settings.jwks and not settings.jwks.startswith("https://"):
        rule = "must be a file or https URL."
        raise SettingsError(f"jwks == {shown(settings.jwks)!r}, {rule}")
    if "@" in urlsplit(settings.jwks).netloc:
        rule = "must be without user and password."
        raise SettingsError(f"jwks == {shown(settings.jwks)!r}, {rule}")
    for proxy in filter(None, settings.trusted_proxies.split(",")):
        _check_proxy(proxy)
    for name in ("control_rate", "decide_rate", "failed_auth_rate"):
        if rate := getattr(settings, name):
            _check_rate(name, rate)
    for name, (least, most) in BOUNDS.items():
        value = getattr(settings, name)
        if not least <= value <= most:  # what is not a number is not within
            raise SettingsError(f"{name} == {value}, must be {least:,} to {most:,}.")
    if settings.log_format not in LOG_FORMATS:
        rule = f"must be one of {', '.join(LOG_FORMATS)}."
        raise SettingsError(f"log_format == {settings.log_format!r}, {rule}")
    return settings


def shown(url: str) -> str:
    """A URL for people to see, without what may be secret: user, password, query.

    >>> shown("valkey://:hunter2@h:6379/0")
    'valkey://***@h:6379/0'
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    login, at, place = rest.rpartition("@")
    place, query, _ = place.partition("?")
    return f"{scheme}{separator}{'***' if login else ''}{at}{place}{query and '?***'}"


def _check_proxy(text: str) -> None:
    try:
        ip_network(text.strip())
    except ValueError:
        rule = "must be addresses or networks, with commas."
        raise SettingsError(f"trusted_proxies == {text!r}, {rule}") from None


def _check_rate(name: str, text: str) -> None:
    try:
        parse_rate(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from None


def _parse(name: str, text: str, default: object) -> object:
    kind = "path" if isinstance(default, Path) else type(default).__name__
    try:
        return _READERS[kind](text)
    except ValueError:
        raise SettingsError(f"{name} == {text!r}, must be a {kind}.") from None
