"""Snapshots: all a worker needs to decide, immutable, versioned, built by the learner.

All Monte-Carlo or quadrature work is done here, when a snapshot is built; deciding is a
hash and a look-up. A snapshot is safe to share between threads: its arrays are
read-only, and its cache of eligible sets only ever gains entries of equal value.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bandolero.codec import pack, unpack
from bandolero.draws import drawer, draws, experiment_key
from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.features import FeatureMap
from bandolero.policies import (
    PREPARED,
    STATES,
    ContextualPolicy,
    Policy,
    choose,
    cumulative,
    policy_of,
    with_limits,
)
from bandolero.policies.base import Floats, Ints

EXACT_COST_US = 1000.0
"""An eligible set that would cost more than this is not computed while serving."""
MAX_CACHED_SETS = 4096
EXACT = "exact"
RENORMALISED = "renormalised"
HOLDOUT = "holdout"
_new = tuple.__new__


class Distribution(NamedTuple):
    """Probabilities over all arms, ready to draw from.

    probabilities, cumulative
        (n_arms,); zero, and flat, where an arm is not eligible.
    eligible
        Arms that may be drawn, ascending.
    rule
        `exact`, or `renormalised`: the full-set probabilities over the set's sum.
    """

    probabilities: list[float]
    cumulative: list[float]
    eligible: tuple[int, ...]
    rule: str


class Drawn(NamedTuple):
    """A decision: the arm, its propensity given the mode, the draw number, the mode.

    probabilities: of each eligible arm, in order, where the context or a narrowed set
    decided them; else None, for they are the snapshot's own. rule: how they were had.
    """

    arm: int
    propensity: float
    draw: float
    mode: str
    probabilities: tuple[float, ...] | Floats | None = None
    rule: str | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was believed and served at one version of an experiment.

    Parameters
    ----------
    version
        0 is made by a worker from the prior; the learner counts from 1.
    created_at_ms
        Log time that the state is as of: data that fade have faded until then.
    folded_to
        Log id of the last decision block the state holds.
    active
        Arms that may be shown, (n_active,), ascending.
    state
        The policy's state, read-only arrays.
    probabilities
        (n_arms,), the policy with the floor over `active`; zero elsewhere. Of a
        contextual policy: for a request that says nothing.
    correction
        The part of the state that refresh added to the live fold, if any.
    prepared
        What a contextual policy serves from, read-only arrays; None for others.
    """

    experiment: Experiment
    tenant: str
    version: int
    spec_version: int
    created_at_ms: int
    folded_to: str
    active: Ints
    state: tuple[Any, ...]
    probabilities: Floats
    correction: tuple[Any, ...] | None = None
    prepared: tuple[Any, ...] | None = None
    key: bytes = field(init=False)
    draw: Callable[[bytes], float] = field(init=False)
    is_plain: bool = field(init=False)
    mode: str = field(init=False)
    policy: Policy[Any] | ContextualPolicy[Any, Any] = field(init=False)
    features: FeatureMap = field(init=False)
    full: Distribution = field(init=False)
    sets: dict[tuple[int, ...], Distribution] = field(init=False)
    misses: set[tuple[int, ...]] = field(init=False)
    checked: set[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Derive what is looked up per decision."""
        put = object.__setattr__
        put(self, "key", experiment_key(self.tenant, self.experiment.experiment))
        put(self, "draw", drawer(self.key))
        limits = self.experiment.allocation
        is_plain = limits.holdout_share == 0.0 and limits.sticky != "unit"
        put(self, "is_plain", is_plain)
        put(self, "policy", policy_of(self.experiment))
        put(self, "mode", self.policy.mode)
        put(self, "features", FeatureMap(self.experiment.context))
        active = tuple(self.active.tolist())
        put(self, "full", _distribution(self.probabilities, active, EXACT))
        put(self, "sets", {active: self.full})
        put(self, "misses", set())
        put(self, "checked", set())

    @property
    def is_alike(self) -> bool:
        """Whether neither unit nor context has a say in a draw."""
        return self.is_plain and self.prepared is None

    def distribution(self, eligible: tuple[int, ...]) -> Distribution:
        """The distribution over `eligible` (ascending, not empty).

        Exact where it is known or cheap. Otherwise the full-set probabilities over the
        set, and the set is noted in `misses` for `warm` to compute off this path.
        """
        known = self.sets.get(eligible)
        if known is not None:
            return known
        policy = self.policy
        if isinstance(policy, ContextualPolicy):
            return self.warm(eligible)
        if policy.cost_us(len(eligible)) <= EXACT_COST_US:
            return self.warm(eligible)
        if len(self.misses) < MAX_CACHED_SETS:
            self.misses.add(eligible)
        return _renormalised(self.probabilities, eligible)

    def warm(self, eligible: tuple[int, ...]) -> Distribution:
        """The exact distribution over an eligible set, computed once and kept."""
        known = self.sets.get(eligible)
        if known is not None:
            return known
        shares = _over_arms(self.experiment, self.state, self.prepared, _arms(eligible))
        exact = _distribution(shares, eligible, EXACT)
        if len(self.sets) < MAX_CACHED_SETS:
            self.sets[eligible] = exact
        return exact


def build_snapshot(
    record: ExperimentRecord,
    state: tuple[Any, ...],
    *,
    version: int,
    created_at_ms: int,
    folded_to: str = "0-0",
    correction: tuple[Any, ...] | None = None,
) -> Snapshot:
    """Compute the probabilities of the active arms and freeze everything.

    `state` has one row per variant of the record, in order, and holds the `correction`
    already.

    Raises
    ------
    ValueError
        When no variant is active.
    """
    policy = policy_of(record.spec)
    active = _arms(record.active_arms)
    if not active.size:
        states = dict(record.variant_states)
        raise ValueError(f"variant_states == {states}, must leave one active.")
    prepared = None
    if isinstance(policy, ContextualPolicy):
        prepared = _frozen_state(policy.prepare(state))
    shares = _over_arms(record.spec, state, prepared, active)
    return Snapshot(
        experiment=_without_creatives(record.spec),
        tenant=record.tenant,
        version=version,
        spec_version=record.spec_version,
        created_at_ms=created_at_ms,
        folded_to=folded_to,
        active=active,
        state=_frozen_state(state),
        correction=None if correction is None else _frozen_state(correction),
        prepared=prepared,
        probabilities=_frozen(shares),
    )


def decide(
    snapshot: Snapshot,
    nonce: bytes,
    unit: str | None = None,
    eligible: tuple[int, ...] | None = None,
    context: Mapping[str, object] | None = None,
) -> Drawn:
    """Draw an arm for one decision; safe to call from any thread.

    Parameters
    ----------
    nonce
        Bytes unique to the decision; they fix the draw.
    unit
        Whom the decision is for, as given. With `sticky: unit` it fixes the draw
        instead; where there is a holdout it fixes who is held out.
    eligible
        Arms that may be drawn, ascending, not empty, also such as were paused when the
        snapshot was built; None for all active ones.
    context
        What is known of the request; see `bandolero.features`.

    Raises
    ------
    ValueError
        When `eligible` is not what it must be.
    """
    if eligible is not None:
        _check_eligible(snapshot, eligible)
    if snapshot.is_plain:
        draw = snapshot.draw(nonce)
    else:
        draw, held = _draws(snapshot, nonce, unit)
        if held < snapshot.experiment.allocation.holdout_share:
            return _draw_holdout(eligible or snapshot.full.eligible, draw)
    if snapshot.prepared is not None:
        return _draw_by_context(snapshot, eligible, context, draw)
    if eligible is not None:
        given = snapshot.distribution(eligible)
        return _drawn_among(given, eligible, draw, snapshot.mode)
    arm = choose(snapshot.full.cumulative, draw)
    # What `Drawn(...)` comes to, less a call: this is the way of every decision.
    share = snapshot.full.probabilities[arm]
    return _new(Drawn, (arm, share, draw, snapshot.mode, None, None))


def _check_eligible(snapshot: Snapshot, eligible: tuple[Any, ...]) -> None:
    """Raise unless these are arms of the snapshot; a right set is looked at once."""
    if type(eligible) is tuple and eligible in snapshot.checked:
        return
    n_arms = len(snapshot.probabilities)
    is_right = type(eligible) is tuple and len(eligible) > 0
    if not is_right or not all(
        isinstance(arm, int | np.integer) and low < arm < n_arms
        for low, arm in zip((-1, *eligible), eligible, strict=False)
    ):
        rule = f"must be a tuple of arms in 0 … {n_arms - 1}, ascending, not empty"
        raise ValueError(f"eligible == {reprlib.repr(eligible)}, {rule}.")
    if len(snapshot.checked) < MAX_CACHED_SETS:
        snapshot.checked.add(eligible)


def decide_alike(
    snapshot: Snapshot, nonces: Sequence[bytes]
) -> tuple[list[int], list[float]]:
    """Arms and draw numbers of many decisions, as `decide` draws them one by one.

    For a snapshot with `is_alike`, all of whose active arms are eligible: nothing but
    the nonce tells two of its decisions apart.
    """
    numbers = [snapshot.draw(nonce) for nonce in nonces]
    sums = snapshot.full.cumulative
    return [choose(sums, number) for number in numbers], numbers


def _draws(snapshot: Snapshot, nonce: bytes, unit: str | None) -> tuple[float, float]:
    """The draw and the holdout's number, where there is a holdout or units are sticky."""
    if unit is None:
        return draws(snapshot.key, nonce)
    of_unit = draws(snapshot.key, unit.encode("utf-8", "surrogatepass"))
    if snapshot.experiment.allocation.sticky == "unit":
        return of_unit
    return snapshot.draw(nonce), of_unit.holdout


def rederive(
    snapshot: Snapshot,
    draw: float,
    mode: str,
    eligible: tuple[int, ...] | None,
    rule: str | None,
    context: Mapping[str, object] | None = None,
) -> Drawn:
    """Draw a recorded decision again, from what its record says.

    Parameters
    ----------
    eligible, rule, context
        As recorded; None means the snapshot's own distribution, and no context.
    """
    if mode == HOLDOUT:
        return _draw_holdout(eligible or snapshot.full.eligible, draw)
    if snapshot.prepared is not None:
        return _draw_by_context(snapshot, eligible, context, draw)
    if eligible is None:
        arm = choose(snapshot.full.cumulative, draw)
        return Drawn(arm, snapshot.full.probabilities[arm], draw, mode)
    if rule == RENORMALISED:
        given = _renormalised(snapshot.probabilities, eligible)
    else:
        given = snapshot.warm(eligible)
    return _drawn_among(given, eligible, draw, mode)


def _drawn_among(
    given: Distribution, eligible: tuple[int, ...], draw: float, mode: str
) -> Drawn:
    """Draw from a narrowed set, and say with what: the set may be warmed meanwhile."""
    arm = choose(given.cumulative, draw)
    shares = tuple(given.probabilities[each] for each in eligible)
    return Drawn(arm, given.probabilities[arm], draw, mode, shares, given.rule)


def _draw_by_context(
    snapshot: Snapshot,
    eligible: tuple[int, ...] | None,
    context: Mapping[str, object] | None,
    draw: float,
) -> Drawn:
    """Draw with the probabilities that a contextual policy gives for this context."""
    policy: ContextualPolicy[Any, Any] = snapshot.policy  # type: ignore[assignment]
    limits = snapshot.experiment.allocation
    arms = snapshot.active if eligible is None else _arms(eligible)
    x = snapshot.features.encode(context or {})
    if limits.max_share >= 1.0:
        arm, propensity, shares = policy.draw(
            snapshot.prepared, arms, x, draw, limits.min_share
        )
        return Drawn(arm, propensity, draw, policy.mode, shares, EXACT)
    weights = policy.probabilities(snapshot.prepared, arms, x)
    shares = with_limits(weights, limits.min_share, limits.max_share)
    at = choose(cumulative(shares), draw)
    return Drawn(int(arms[at]), float(shares[at]), draw, policy.mode, shares, EXACT)


def _draw_holdout(eligible: tuple[int, ...], draw: float) -> Drawn:
    """Uniform over the eligible arms."""
    n = len(eligible)
    return Drawn(eligible[int(draw * n)], 1.0 / n, draw, HOLDOUT)


def snapshot_to_bytes(snapshot: Snapshot) -> bytes:
    """Serialise; `snapshot_from_bytes` restores it bit for bit."""
    header = {
        "experiment": snapshot.experiment.model_dump(mode="json"),
        "tenant": snapshot.tenant,
        "version": snapshot.version,
        "spec_version": snapshot.spec_version,
        "created_at_ms": snapshot.created_at_ms,
        "folded_to": snapshot.folded_to,
    }
    arrays = state_arrays("state", snapshot.state)
    if snapshot.correction is not None:
        arrays |= state_arrays("correction", snapshot.correction)
    if snapshot.prepared is not None:
        arrays |= state_arrays("prepared", snapshot.prepared)
    arrays |= {"active": snapshot.active, "probabilities": snapshot.probabilities}
    return pack(header, arrays)


def snapshot_from_bytes(data: bytes, last: Snapshot | None = None) -> Snapshot:
    """Read what `snapshot_to_bytes` wrote.

    Parameters
    ----------
    last
        An earlier snapshot of the same experiment, if there is one at hand. Where the
        specification is still of that version, both share it.

    Raises
    ------
    bandolero.codec.DamagedBytesError
        When the bytes were cut or altered.
    """
    header, arrays = unpack(data)
    told = header.pop("experiment")
    if last is not None and last.spec_version == header["spec_version"]:
        experiment = last.experiment
    else:
        experiment = Experiment.model_validate(told)
    kind = experiment.policy.kind
    return Snapshot(
        experiment=experiment,
        active=arrays["active"],
        probabilities=arrays["probabilities"],
        state=_read("state", STATES[kind], arrays),
        correction=_read_if_there("correction", STATES[kind], arrays),
        prepared=_read_if_there("prepared", PREPARED.get(kind), arrays),
        **header,
    )


def state_arrays(prefix: str, state: tuple[Any, ...]) -> dict[str, Any]:
    """Arrays of a state, named `<prefix>.<field>`."""
    names = type(state)._fields  # type: ignore[attr-defined]  # a NamedTuple
    return {f"{prefix}.{n}": a for n, a in zip(names, state, strict=True)}


def state_of(prefix: str, kind: str, arrays: dict[str, Any]) -> tuple[Any, ...]:
    """The state of a policy kind from arrays named as `state_arrays` names them."""
    return _read(prefix, STATES[kind], arrays)


def _read(prefix: str, cls: Any, arrays: dict[str, Any]) -> tuple[Any, ...]:
    state: tuple[Any, ...] = cls(*(arrays[f"{prefix}.{name}"] for name in cls._fields))
    return state


def _read_if_there(
    prefix: str, cls: Any, arrays: dict[str, Any]
) -> tuple[Any, ...] | None:
    there = any(name.startswith(f"{prefix}.") for name in arrays)
    return _read(prefix, cls, arrays) if there else None


def _without_creatives(experiment: Experiment) -> Experiment:
    """What deciding needs; creatives are the record's, and may be large."""
    variants = [v.model_copy(update={"creative": {}}) for v in experiment.variants]
    return experiment.model_copy(update={"variants": variants})


def _over_arms(
    experiment: Experiment,
    state: tuple[Any, ...],
    prepared: tuple[Any, ...] | None,
    arms: Ints,
) -> Floats:
    """Probabilities of `arms` with the limits, spread over all arms, (n_arms,).

    Of a contextual policy for a request that says nothing.
    """
    policy, limits = policy_of(experiment), experiment.allocation
    if isinstance(policy, ContextualPolicy):
        x = FeatureMap(experiment.context).encode({})
        weights = policy.probabilities(prepared, arms, x)
    else:
        weights = policy.probabilities(state, arms)
    if policy.mode == "explore":
        weights = with_limits(weights, limits.min_share, limits.max_share)
    full = np.zeros(len(experiment.variants))
    full[arms] = weights
    return full


def _distribution(
    probabilities: Floats, eligible: tuple[int, ...], rule: str
) -> Distribution:
    shares = probabilities.tolist()
    return Distribution(shares, cumulative(probabilities), eligible, rule)


def _renormalised(probabilities: Floats, eligible: tuple[int, ...]) -> Distribution:
    arms = _arms(eligible)
    total = float(probabilities[arms].sum())
    shares = np.zeros(len(probabilities))
    shares[arms] = probabilities[arms] / total if total > 0.0 else 1.0 / len(arms)
    return _distribution(shares, eligible, RENORMALISED)


def _arms(arms: Sequence[int]) -> Ints:
    made: Ints = _frozen(arms, np.int64)
    return made


def _frozen_state(state: tuple[Any, ...]) -> tuple[Any, ...]:
    return type(state)(*(_frozen(array) for array in state))


def _frozen(array: Any, dtype: Any = None) -> Any:
    """A copy that nobody writes to, laid out as every other: kernels compile by layout."""
    copy = np.array(array, dtype, order="C")
    copy.setflags(write=False)
    return copy
