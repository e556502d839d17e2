"""The secrets of a service: where they come from, and what each is for.

They come from the environment, from files, or, for the embedded demo and on loopback
only, from a file made at first use. They are never shown.
"""

import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from secrets import token_hex

from bandolero_service.ids import derive
from bandolero_service.settings import PREFIX, Settings, SettingsError
from bandolero_service.spool import sync_folder
from bandolero_service.store import Store

MIN_CHARACTERS = 32
"""A secret that guards more than loopback has at least so many."""


@dataclass(frozen=True)
class Secrets:
    """What a process signs, checks and hashes with.

    Parameters
    ----------
    current
        Signs decision ids.
    previous
        Its decision ids are still good; empty when no rotation is under way.
    root
        Of what must outlive rotations: pseudonyms of units, hashes of API keys, the
        chain of the audit log. The first `current` there was.
    """

    current: bytes = field(repr=False)
    previous: bytes = field(default=b"", repr=False)
    root: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        """The root is the current secret until that is rotated."""
        object.__setattr__(self, "root", self.root or self.current)


def read_secrets(settings: Settings) -> Secrets:
    """The secrets that are given; the current one is made where none is.

    Raises
    ------
    SettingsError
        Naming the variable and the rule, never the value.
    """
    current, previous, root = given_secrets(settings)
    if previous and not root:
        rule = "must be given too: the first secret of this store, which is not rotated"
        raise SettingsError(
            f"{PREFIX}SECRET_PREVIOUS is given, {PREFIX}SECRET_ROOT {rule}."
        )
    return Secrets(current or _made(settings.data_dir / "secret"), previous, root)


def given_secrets(settings: Settings) -> tuple[bytes, bytes, bytes]:
    """(current, previous, root) as given in variables or files; empty where not."""
    return (
        _given("SECRET", settings.secret, settings.secret_file),
        _given(
            "SECRET_PREVIOUS", settings.secret_previous, settings.secret_previous_file
        ),
        _given("SECRET_ROOT", settings.secret_root, settings.secret_root_file),
    )


def check_exposure(settings: Settings) -> None:
    """Refuse to listen beyond loopback with a secret that was not given, or is short.

    Raises
    ------
    SettingsError
        Saying which, and the way out.
    """
    if is_loopback(settings.host):
        return
    current, previous, root = given_secrets(settings)
    where = f"host == {settings.host!r} is more than loopback"
    if not current:
        rule = f"{PREFIX}SECRET or {PREFIX}SECRET_FILE must be given: the default secret is for loopback only"
        raise SettingsError(f"{where}, {rule}.")
    if (
        min(len(s.decode(errors="replace")) for s in (current, previous, root) if s)
        < MIN_CHARACTERS
    ):
        rule = f"every secret must have at least {MIN_CHARACTERS} characters"
        raise SettingsError(f"{where}, {rule}: try `openssl rand -hex 32`.")


def check_root(store: Store, secrets: Secrets) -> None:
    """Refuse a store that was first used with another root secret.

    Raises
    ------
    bandolero_service.store.RefusedStoreError
        Saying the way out.
    """
    store.keep_root(root_fingerprint(secrets.root))


def root_fingerprint(root: bytes) -> str:
    """The hash by which a root secret is known again; it tells nothing of it."""
    return derive(root, b"fingerprint", "").hex()[:16]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _given(name: str, value: str, file: str) -> bytes:
    if value and file:
        raise SettingsError(
            f"{PREFIX}{name} and {PREFIX}{name}_FILE are given, must be one of them."
        )
    if not file:
        return value.encode()
    try:
        found = Path(file).read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}{name}_FILE == {file!r}, must be readable: {error.strerror}."
        ) from None
    if not found:
        raise SettingsError(f"{PREFIX}{name}_FILE == {file!r}, must hold a secret.")
    return found


def _made(path: Path) -> bytes:
    """Read the secret at `path`; make it first if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"secret.{os.getpid()}.{token_hex(4)}")
    if not path.exists():
        draft.touch(0o600)
        with draft.open("w") as file:
            file.write(token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            # Fails if another process was first: its secret stands.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        sync_folder(path.parent)
    return path.read_bytes().strip()
