"""Priors in the service: published at once, taken at the start, gone back on, restored."""

import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.lake.catalog import Lake
from bandolero.policies import policy_of
from bandolero.prior_book import ALL, PriorBook, PublishedPrior
from bandolero_service import keys, priors
from bandolero_service.archive import archive
from bandolero_service.audit import Author
from bandolero_service.commands import CommandError, Place, UsageError
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.errors import ApiError
from bandolero_service.experiments import acted, change, put_spec
from bandolero_service.new_store import NewStore
from bandolero_service.prior_commands import diff, list_priors, release, roll_back
from bandolero_service.refreshing import _due
from bandolero_service.restore import restore
from bandolero_service.secret import read_secrets, root_fingerprint
from bandolero_service.settings import Settings
from bandolero_service.store import NO_POSITION, Store
from bandolero_service.trail import lines, verified
from service_helpers import SLOWER, Running, cli, click, needs_server, wait_for
from strategies import (
    START_MS,
    Row,
    decision,
    decisions_table,
    event,
    events_table,
)
from traffic import now

pytestmark = needs_server
ROOT = b"root"
AUTHOR = Author("test", ROOT)
CLICK = "click.binary.decision"
RATES, URGENT = (CLICK, ALL), (CLICK, "tone=urgent")


def prior(
    alpha: float, group: str = ALL, version: int = 1, **fields: Any
) -> PublishedPrior:
    """A version of the prior of click rates: Beta(alpha, 100)."""
    named = {"objective": CLICK, "group": group, "version": version, "n_variants": 40}
    parameters = {"alpha": alpha, "beta": 100.0}
    return PublishedPrior.model_validate(
        named | {"parameters": parameters, "watermark_ms": 1_000} | fields
    )


def publish(store: Store, *newer: PublishedPrior, tenant: str = "acme") -> None:
    """Publish, as a refresh does."""
    priors.publish(store, AUTHOR, tenant, "refresh", lambda book: _due(newer, book))


def spec(name: str, n: int = 2, **fields: Any) -> Any:
    """A specification of urgent variants, as its author writes it."""
    variants = [{"id": f"v{i}", "attributes": {"tone": "urgent"}} for i in range(n)]
    raw = {"experiment": name, "tenant": "acme", "variants": variants}
    return parse_experiment(raw | fields)


def begin(store: Store, name: str, **fields: Any) -> ExperimentRecord:
    """Put an experiment and start it."""
    put_spec(store, AUTHOR, "acme", spec(name, **fields))
    return change(
        store, AUTHOR, "acme", name, "start", lambda record: acted(record, "start")
    )


def believed(record: ExperimentRecord) -> list[float]:
    """Alpha of every variant before its first trial."""
    state: Any = policy_of(record.spec).init(len(record.spec.variants))
    alphas: list[float] = state.prior_alpha.tolist()
    return alphas


# --- publishing -------------------------------------------------------------------------------


def test_what_a_night_publishes_is_one_act(store: Store) -> None:
    """Two priors at once are one control fact and one audit line; nothing to say is none."""
    publish(store, prior(2.0), prior(5.0, "tone=urgent"))
    publish(store)
    shard = store.shard("acme", priors.BOOK)
    facts = [
        e
        for e in store.read(keys.control(shard), NO_POSITION)
        if e.fields.get(b"kind") == b"prior"
    ]
    assert [json.loads(f.fields[b"body"])["priors"][1]["version"] for f in facts] == [1]
    (chain,) = verified(store, ROOT, "acme")
    assert (chain.n_lines, chain.faults) == (1, [])
    assert priors.books(store).keys() == {"acme"}


def test_versions_count_up_and_all_are_kept(store: Store) -> None:
    """The book holds the newest of each; every version can still be read, by tenant."""
    publish(store, prior(2.0), prior(5.0, "tone=urgent"))
    publish(store, prior(3.0, version=2))
    publish(store, prior(9.0), tenant="rival")
    book = priors.book_of(store, "acme")
    assert [(p.group, p.version) for p in book.priors] == [(ALL, 2), ("tone=urgent", 1)]
    found = priors.versions_of(store, "acme")
    assert [p.parameters["alpha"] for p in found] == [2.0, 3.0, 5.0]
    assert priors.book_of(store, "nobody") == PriorBook()


def test_a_night_does_not_undo_what_was_done_meanwhile(store: Store) -> None:
    """Who was overtaken looks again; a version that is no longer the next is not written."""
    publish(store, prior(2.0))
    seen = []

    def late(book: PriorBook) -> list[PublishedPrior]:
        seen.append(book)
        if len(seen) == 1:
            publish(store, prior(4.0, version=2, held=True))
        return _due([prior(3.0, version=2)], book)

    assert priors.publish(store, AUTHOR, "acme", "refresh", late) == []
    assert len(seen) == 2
    assert priors.book_of(store, "acme").priors[0].parameters["alpha"] == 4.0


# --- taking -----------------------------------------------------------------------------------


def test_an_experiment_takes_the_newest_prior_when_it_starts(store: Store) -> None:
    """A draft has none; started it has the newest, says which, and keeps it."""
    publish(store, prior(2.0))
    put_spec(store, AUTHOR, "acme", spec("hats"))
    publish(store, prior(3.0, version=2))
    record = begin(store, "hats")
    assert believed(record) == [3.0, 3.0]
    assert {v: s.version for v, s in record.prior_sources.items()} == {"v0": 2, "v1": 2}
    publish(store, prior(4.0, version=3))
    change(store, AUTHOR, "acme", "hats", "pause", lambda r: acted(r, "pause"))
    record = change(store, AUTHOR, "acme", "hats", "start", lambda r: acted(r, "start"))
    assert believed(record) == [3.0, 3.0]


def test_the_same_file_again_is_no_change(store: Store) -> None:
    """Its author need not repeat what was taken; another prior for that variant is refused."""
    publish(store, prior(2.0))
    record = begin(store, "hats")
    assert put_spec(store, AUTHOR, "acme", spec("hats")) == record
    assert put_spec(store, AUTHOR, "acme", record.spec) == record
    own = {"alpha": 1.0, "beta": 9.0}
    variants = [{"id": f"v{i}", "attributes": {"tone": "urgent"}} for i in range(2)]
    with pytest.raises(ApiError, match="fixed once started"):
        put_spec(store, AUTHOR, "acme", spec("hats", variants=[variants[0] | {"prior": own}, variants[1]]))  # fmt: skip


def test_a_new_variant_takes_the_newest_without_its_own_experiment(
    store: Store,
) -> None:
    """What was fitted without this experiment is what its new variant takes; old ones stay."""
    publish(store, prior(2.0))
    begin(store, "hats")
    without = {"hats": {"alpha": 7.0, "beta": 100.0}, "coats": None}
    publish(store, prior(3.0, version=2, without=without))
    record = put_spec(store, AUTHOR, "acme", spec("hats", n=3))
    assert believed(record) == [2.0, 2.0, 7.0]
    assert {v: s.version for v, s in record.prior_sources.items()} == {
        "v0": 1,
        "v1": 1,
        "v2": 2,
    }


def test_what_cannot_be_said_without_an_experiment_is_not_said(store: Store) -> None:
    """An experiment without which there is too little history starts flat."""
    publish(store, prior(3.0, without={"hats": None}))
    record = begin(store, "hats")
    assert (believed(record), record.prior_sources) == ([1.0, 1.0], {})


def test_groups_are_by_the_attribute_the_policy_names(store: Store) -> None:
    """With `prior_by` a variant takes its group's prior, else that of its objective."""
    publish(store, prior(2.0), prior(5.0, "tone=urgent"), prior(6.0, "cta=urgent"))
    variants = [
        {"id": "v0", "attributes": {"tone": "urgent"}},
        {"id": "v1", "attributes": {"tone": "calm"}},
        {
            "id": "v2",
            "attributes": {"tone": "urgent"},
            "prior": {"alpha": 8.0, "beta": 9.0},
        },
    ]
    policy = {"kind": "top_two_thompson", "prior_by": "tone"}
    record = begin(store, "hats", variants=variants, policy=policy)
    assert believed(record) == [5.0, 2.0, 8.0]
    assert record.prior_sources["v0"].group == "tone=urgent"
    assert "v2" not in record.prior_sources


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": {"kind": "beta_thompson", "learn_prior": False}},
        {"policy": {"kind": "beta_thompson", "prior_alpha": 2.0}},
        {"policy": {"kind": "greedy"}},
        {"objective": {"event": "purchase"}},
    ],
    ids=["not wanted", "said otherwise", "no such policy", "another objective"],
)
def test_who_takes_no_prior(store: Store, fields: Any) -> None:
    """A policy that says what to believe, or asks to be left alone, is; so are others."""
    publish(store, prior(3.0))
    record = begin(store, "hats", **fields)
    assert record.prior_sources == {}
    assert all(variant.prior is None for variant in record.spec.variants)


def test_another_tenants_prior_is_never_taken(store: Store) -> None:
    """A tenant without priors starts flat, whatever the others have."""
    publish(store, prior(3.0), tenant="rival")
    assert believed(begin(store, "hats")) == [1.0, 1.0]


# --- commands ---------------------------------------------------------------------------------


@pytest.fixture
def place(store: Store, embedded: EmbeddedStore, tmp_path: Path) -> Place:
    """Where a command works: on the store, which holds three versions and a group's."""
    found = Place(Settings(store=embedded.url, data_dir=tmp_path, shards=4))
    publish(store, prior(2.0), prior(5.0, "tone=urgent"))
    publish(store, prior(3.0, version=2))
    publish(store, prior(4.0, version=3, watermark_ms=90_000_000))
    return found


def in_force(store: Store, group: str = ALL) -> PublishedPrior:
    """Acme's prior of click rates."""
    found = priors.book_of(store, "acme").get(CLICK, group)
    assert found is not None
    return found


def test_list_shows_what_is_in_force(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a prior, with version, parameters and watermark; with all, a line a version."""
    list_priors(place, None, every=False)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert "version    3  alpha 4, beta 100, from 40 variants up to 1970-01-02 01:00" in shown[0]  # fmt: skip
    list_priors(place, "acme", every=True)
    assert len(capsys.readouterr().out.splitlines()) == 4
    list_priors(place, "rival", every=True)
    assert "no prior is published yet" in capsys.readouterr().out


def test_diff_shows_how_a_prior_moved(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default from the version before; else between any two."""
    diff(place, None, RATES, None, None)
    assert "3 ->            4  (+1)" in capsys.readouterr().out
    diff(place, "acme", RATES, 3, 1)
    assert "4 ->            2  (-2)" in capsys.readouterr().out
    with pytest.raises(CommandError, match="version == 9, must be one of 1, 2, 3"):
        diff(place, None, RATES, 9, None)
    with pytest.raises(CommandError, match="must be one that was published for acme: "):
        diff(place, None, ("purchase", ALL), None, None)


def test_rollback_is_one_step_and_holds(place: Place, store: Store) -> None:
    """Version 1 is in force again as version 4, the next night leaves it alone until it is
    released, and the audit log has an act for each; the group stays as it was."""
    roll_back(place, None, RATES, 1)
    back = in_force(store)
    assert (back.version, back.restores, back.held) == (4, 1, True)
    assert back.parameters["alpha"] == 2.0
    assert believed(begin(store, "hats")) == [2.0, 2.0]
    release(place, None, RATES)
    assert (in_force(store).version, in_force(store).held) == (5, False)
    release(place, None, RATES)
    assert in_force(store).version == 5
    assert in_force(store, "tone=urgent").version == 1
    acts = [line["act"] for line in _lines(store, "book of priors")]
    assert acts == ["refresh"] * 3 + ["rollback", "release"]


def _lines(store: Store, thing: str) -> list[Any]:
    return [line for line in lines(store, "acme") if line["object"] == thing]


def test_rollback_goes_to_the_version_before_by_default(
    place: Place, store: Store
) -> None:
    """Of 3 it is 2, then 1 and not the bad 3, then none; one in force makes no other."""
    for version, alpha in ((4, 3.0), (5, 2.0)):
        roll_back(place, None, RATES, None)
        back = in_force(store)
        assert (back.version, back.parameters["alpha"]) == (version, alpha)
    for name in (RATES, URGENT):
        with pytest.raises(CommandError, match="version 1 is the first"):
            roll_back(place, None, name, None)
    roll_back(place, None, RATES, 1)
    release(place, None, RATES)
    with pytest.raises(CommandError, match="version 5 is what is in force"):
        roll_back(place, None, RATES, None)
    assert in_force(store).version == 6
    publish(store, prior(9.0), tenant="rival")
    with pytest.raises(UsageError, match="acme, rival: say --tenant"):
        roll_back(place, None, RATES, None)


# --- restoring --------------------------------------------------------------------------------


def test_priors_come_back_from_the_lake(
    store: Store, embedded: EmbeddedStore, tmp_path: Path
) -> None:
    """A new store has the book in force and every version; the audit log begins whole."""
    publish(store, prior(2.0), prior(5.0, "tone=urgent"))
    publish(store, prior(3.0, version=2))
    begin(store, "hats")
    lake = Lake(tmp_path)
    time.sleep(0.002)
    for shard in range(4):
        archive(store, lake, shard, 10_000_000)
    fresh = NewStore(f"{embedded.url}?db=2")
    fresh.open(4)
    restore(fresh, lake, AUTHOR)
    assert priors.books(fresh) == priors.books(store)
    assert priors.versions_of(fresh, "acme") == priors.versions_of(store, "acme")
    assert fresh.record("acme", "hats") == store.record("acme", "hats")
    assert all(chain.faults == [] for chain in verified(fresh, ROOT, None))
    fresh.close()


# --- a gate ---------------------------------------------------------------------------------


def history(last: float) -> tuple[list[Row], list[Row]]:
    """Decisions and clicks of 28 variants on eight days; rates of the last times `last`."""
    rng = np.random.default_rng(1)
    made, told = [], []
    for x, v, day, i in product(range(7), range(4), range(8), range(20)):
        at_ms = START_MS + (day - 7) * 86_400_000 + i
        names = {"decision_id": f"{x}-{v}-{day}-{i}", "experiment_id": f"past{x}"}
        at = {"decided_at_ms": at_ms, "log_ms": at_ms, "propensity": 0.25}
        made.append(decision(variant_id=f"v{v}", **names, **at))
        if rng.random() < 0.3 * (last if day == 7 else 1.0):
            clicked = {"at_ms": at_ms + 1, "log_ms": at_ms + 1}
            told.append(event(decided_at_ms=at_ms, **names, **clicked))
    return made, told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last", "code", "outcome"), [(1.0, 0, "published"), (0.1, 3, "blocked")]
)
def test_a_blocked_night_ends_with_code_3(
    store: Store,
    embedded: EmbeddedStore,
    tmp_path: Path,
    last: float,
    code: int,
    outcome: str,
) -> None:
    """Where the last day lost its clicks the command says why, publishes no prior, and ends
    with 3; the same days with their clicks end with 0 and a prior."""
    for x in range(7):
        begin(store, f"past{x}", n=4)
    made, told = history(last)
    tables = {"decisions": decisions_table(made), "events": events_table(told)}
    Lake(tmp_path / "lake").commit("s0", 0, START_MS + 10_000_000, tables)
    store.keep_root(root_fingerprint(read_secrets(Settings(data_dir=tmp_path)).root))
    file = tmp_path / "summary.json"
    where = ("--store", embedded.url, "--data-dir", str(tmp_path))
    done = cli("refresh", *where, "--summary", str(file))
    assert done.returncode == code, done.stderr
    priors_told = json.loads(file.read_text())["priors"]
    assert {p["outcome"] for p in priors_told.values()} == {outcome}
    assert ("blocked by the gate of drift" in done.stdout) == (code == 3)
    assert ("is kept back: none is in force" in done.stdout) == (code == 3)
    assert bool(priors.books(store)) == (code == 0)


# --- the whole way ----------------------------------------------------------------------------

TENANT = "nights"
N_EXPERIMENTS, N_DECISIONS = 7, 80


def running_experiment(running: Running, name: str, n: int = 4) -> None:
    """Start an experiment of the tenant, with a metric of three seconds."""
    window = {"event": "click", "attribution_window_s": 2.0}
    variants = [{"id": f"v{i}"} for i in range(n)]
    metrics = [{"name": "slow", "event": "click", "window_s": 3.0}]
    raw = {"experiment": name, "objective": window, "variants": variants}
    running.begin(raw | {"metrics": metrics}, TENANT)


def record_of(running: Running, name: str) -> Any:
    """An experiment's record."""
    return running.ok("GET", f"/v1/experiments/{name}", key=running.key(TENANT))


def report_of(running: Running, name: str) -> Any:
    """An experiment's report."""
    path = f"/v1/experiments/{name}/report"
    return running.ok("GET", path, key=running.key(TENANT))


def rows_of(running: Running, name: str) -> dict[str, Any]:
    """The rows of its report by variant id."""
    return {row["variant_id"]: row for row in report_of(running, name)["variants"]}


def play(running: Running, name: str, n: int) -> tuple[list[Any], str]:
    """Decide `n` times; every third decision is clicked. Answers, and when that was."""
    request = {"requests": [{"experiment": name}] * n}
    key = running.key(TENANT)
    made: list[Any] = running.ok("POST", "/v1/decide/batch", request, key)["decisions"]
    at = now()
    running.tell([click(one, at=at) for one in made[::3]], TENANT)
    return made, at


def night(running: Running) -> tuple[int, Any]:
    """Exit code and summary of a refresh of everything logged by now."""
    now_ms = time.time() * 1000 + 1_500  # a metric's window is open a second longer
    lake = Lake(running.data_dir / "lake")
    wait_for(lambda: lake.watermark_ms() > now_ms, 30, "the lake")
    file = running.data_dir / "night.json"
    done = running.cli("refresh", "--tenant", TENANT, "--summary", str(file))
    return done.returncode, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.timeout(240 * SLOWER)
def test_a_night_warms_the_next_experiment(running: Running) -> None:
    """Seven experiments give a prior; the eighth starts with it and learns on top of it,
    late clicks too, each once, as its metric does; the same night again publishes nothing; a
    rollback holds."""
    names = [f"past{i}" for i in range(N_EXPERIMENTS)]
    for name in names:
        running_experiment(running, name)
        play(running, name, N_DECISIONS)

    def settled() -> bool:
        trials = [r["trials"] for n in names for r in rows_of(running, n).values()]
        return bool(sum(trials) == N_EXPERIMENTS * N_DECISIONS)

    wait_for(settled, 40, "all settle")
    code, told = night(running)
    (mine,) = told["priors"].values()
    assert (code, mine["outcome"], mine["version"]) == (0, "published", 1)
    assert mine["n_variants"] == 4 * N_EXPERIMENTS
    running_experiment(running, "warm")
    record = record_of(running, "warm")
    assert {s["version"] for s in record["prior_sources"].values()} == {1}
    alpha, beta = mine["parameters"]["alpha"], mine["parameters"]["beta"]
    given = record["spec"]["variants"][0]["prior"]
    assert (given["alpha"], given["beta"]) == pytest.approx((alpha, beta))
    before = rows_of(running, "warm")
    assert before["v0"]["mean"] == pytest.approx(alpha / (alpha + beta), rel=1e-6)
    made, at = play(running, "warm", 60)
    wait_for(lambda: _trials(running) == 60, 40, "they settle")
    late = [click(one, "late", at=at) for one in made[1::3]]
    running.tell(late, TENANT)
    code, told = night(running)
    assert (code, told["corrected_experiments"].keys()) == (0, {f"{TENANT}/warm"})
    rows = rows_of(running, "warm")
    assert sum(row["rewards"] for row in rows.values()) == 40
    for row in rows.values():
        mean = (alpha + row["rewards"]) / (alpha + beta + row["trials"])
        assert row["mean"] == pytest.approx(mean, rel=1e-6)
    (metric,) = report_of(running, "warm")["metrics"]
    assert sum(row["rewards"] for row in metric["variants"]) == 40
    code, again = night(running)
    assert [p["outcome"] for p in again["priors"].values()] == ["unchanged"]
    assert again["corrected_experiments"] == {}
    where = ("priors", "rollback", CLICK, "--tenant", TENANT, "--to", "1")
    assert running.cli(*where).returncode == 0
    play(running, names[0], N_DECISIONS)
    wait_for(lambda: _trials(running, names[0]) == 2 * N_DECISIONS, 40, "they settle")
    code, told = night(running)
    assert (code, [p["outcome"] for p in told["priors"].values()]) == (0, ["held"])
    assert running.cli("audit", "verify", "--tenant", TENANT).returncode == 0


def _trials(running: Running, name: str = "warm") -> int:
    return sum(row["trials"] for row in rows_of(running, name).values())
