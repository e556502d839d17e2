"""Decision ids: what goes in comes out, and nobody else can make one."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero_service.ids import ID_CHARACTERS, DecisionId, ForgedIdError, Signer

SIGNER = Signer(b"secret", "acme")
decisions = st.builds(
    DecisionId,
    shard=st.integers(0, 1023),
    key=st.binary(min_size=8, max_size=8),
    decided_at_ms=st.integers(0, 2**48 - 1),
    snapshot_version=st.integers(0, 2**32 - 1),
    arm=st.integers(0, 999),
    nonce=st.binary(min_size=8, max_size=8),
)


@given(decisions)
def test_an_id_says_what_it_was_minted_with(decision: DecisionId) -> None:
    """Reading an id gives the shard, key, time, version, arm and nonce of its minting."""
    assert SIGNER.read(SIGNER.mint(*decision).decode()) == decision


@given(decisions)
def test_an_id_fits_into_a_url(decision: DecisionId) -> None:
    """An id is 64 characters that a URL carries unescaped."""
    assert re.fullmatch(
        rf"[A-Za-z0-9_-]{{{ID_CHARACTERS}}}", SIGNER.mint(*decision).decode()
    )


@given(
    decisions,
    st.integers(0, ID_CHARACTERS - 1),
    st.sampled_from(string.ascii_letters + string.digits + "-_"),
)
def test_an_altered_id_is_refused(decision: DecisionId, at: int, other: str) -> None:
    """An id with any one character changed is no id."""
    minted = SIGNER.mint(*decision).decode()
    altered = minted[:at] + other + minted[at + 1 :]
    if altered == minted:
        assert SIGNER.read(altered) == decision
        return
    with pytest.raises(ForgedIdError):
        SIGNER.read(altered)


@given(decisions)
def test_only_the_tenant_it_was_minted_for_can_read_it(decision: DecisionId) -> None:
    """An id is refused under another tenant's name, and under another secret."""
    minted = SIGNER.mint(*decision).decode()
    for stranger in (Signer(b"secret", "rival"), Signer(b"other", "acme")):
        with pytest.raises(ForgedIdError):
            stranger.read(minted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "A",
        "A" * 63,
        "A" * 64,
        "A" * 65,
        "A" * 68,
        "+" * 64,
        "é" * 64,
        "\ud800" * 64,
        "\0" * 64,
        " " * 64,
        "A" * 62 + "==",
        "A" * 1_000_000,
    ],
    ids=lambda text: f"{len(text)} of {text[:1]!a}",
)
def test_what_is_not_an_id_is_refused(text: str) -> None:
    """Empty, short, long, padded and foreign texts are refused, however they are made."""
    with pytest.raises(ForgedIdError):
        SIGNER.read(text)


@given(decisions, st.sampled_from(["{}\n", "{}=", " {}", "{}A", "{}AAAA"]))
def test_an_id_has_one_spelling(decision: DecisionId, spelling: str) -> None:
    """An id with anything before or after it is no id."""
    with pytest.raises(ForgedIdError):
        SIGNER.read(spelling.format(SIGNER.mint(*decision).decode()))


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_pseudonym_tells_units_apart_and_nothing_else(one: str, other: str) -> None:
    """Pseudonyms are equal exactly where units are, and differ between tenants."""
    assert (SIGNER.pseudonym(one) == SIGNER.pseudonym(other)) == (one == other)
    assert SIGNER.pseudonym(one) != Signer(b"secret", "rival").pseudonym(one)
    assert re.fullmatch(r"[0-9a-f]{24}", SIGNER.pseudonym(one))
