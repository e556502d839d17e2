"""A night's priors from plain tables: fitted, judged, published or left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.lake.refit import Night, Refit, refit
from bandolero.lake.refresh import refresh
from bandolero.lake.stages import Stages
from bandolero.prior_book import ALL, PriorBook, PublishedPrior, with_priors
from strategies import START_MS, decision, event
from test_refresh import lake_of

CLICK = "click.binary.decision"
DAYS = 10
WATERMARK_MS = DAYS * DAY_MS
TONES = ("calm", "urgent")


def record(i: int, tenant: str = "acme", **fields: Any) -> ExperimentRecord:
    """A running experiment of six variants, calm and urgent by turns."""
    spec = {
        "experiment": f"x{i:02d}",
        "tenant": tenant,
        "variants": [
            {"id": f"v{j}", "attributes": {"tone": TONES[j % 2]}} for j in range(6)
        ],
    }
    return ExperimentRecord(
        tenant=tenant,
        spec=parse_experiment(spec | fields),
        status="running",
        started_at_ms=i + 1,
    )


RECORDS = [record(i) for i in range(12)]


def night(
    seed: int = 0,
    mean: float = 0.03,
    last: float = 1.0,
    splits: Any = None,
    watermark_ms: int = WATERMARK_MS,
) -> Night:
    """What a refresh found: 200 trials a variant and day; the last day's rates times `last`."""
    rng = np.random.default_rng(seed)
    rows, stages = [], []
    for one in RECORDS:
        for variant_id, p in zip(
            one.spec.variant_ids, rng.beta(400 * mean, 400 * (1 - mean), 6), strict=True
        ):
            hits = rng.binomial(200, p * np.array([1.0] * (DAYS - 1) + [last]))
            names = {"tenant_id": "acme", "experiment_id": one.experiment_id}
            named = names | {"variant_id": variant_id}
            rows += [
                named | _facts(200, int(x)) | {"day": d} for d, x in enumerate(hits)
            ]
            stages.append(
                named | _facts(200, int(hits[0])) | _moments(200, int(hits[0]))
            )
    rollups, first = (pa.Table.from_pylist(table) for table in (rows, stages))
    return Night(watermark_ms, rollups, first, splits or {})


def _facts(trials: int, hits: int) -> dict[str, Any]:
    return {
        "decisions": trials,
        "trials": trials,
        "hits": hits,
        "rewards_micros": hits * 1_000_000,
        "rewards_squared": float(hits),
    }


def _moments(trials: int, hits: int) -> dict[str, Any]:
    """Of a uniform log of six variants, in one stage."""
    w = 6.0
    sums = (trials * w, trials * w**2, w * hits, w**2 * hits, w**2 * hits)
    return {"stage": 0} | dict(zip(Stages._fields[5:], sums, strict=True))


def book_of(found: list[Refit], **changes: Any) -> PriorBook:
    """The priors that a night publishes, as the book in force."""
    priors = [one.prior for one in found if one.outcome == "published"]
    return PriorBook().with_priors([p.model_copy(update=changes) for p in priors])


def outcomes(found: list[Refit]) -> dict[str, str]:
    """What becomes of each prior, by group."""
    return {one.group: one.outcome for one in found}


def judged(night: Night, book: PriorBook) -> list[Refit]:
    """The night's priors of all experiments."""
    return refit(RECORDS, night, {"acme": book})


def test_first_night_publishes_all_and_each_group() -> None:
    """Objective and groups get version 1, better than flat, each without each experiment."""
    found = judged(night(), PriorBook())
    assert {one.objective for one in found} == {CLICK}
    assert outcomes(found) == dict.fromkeys(
        (ALL, "tone=calm", "tone=urgent"), "published"
    )
    for one in found:
        assert one.prior.version == 1
        assert one.prior.without.keys() == {r.experiment_id for r in RECORDS}
        assert [finding.gate for finding in one.findings] == [
            "sample ratio",
            "drift",
            "log score",
            "first value",
        ]


def test_the_same_night_again_changes_nothing() -> None:
    """Where nothing moved there is no new version; where something did it is the second."""
    first = judged(night(), PriorBook())
    book = book_of(first)
    assert set(outcomes(judged(night(), book)).values()) == {"unchanged"}
    again = judged(night(seed=1), book)
    assert "published" in outcomes(again).values()
    assert {one.prior.version for one in again} == {2}


def test_an_older_night_or_a_held_prior_is_left_alone() -> None:
    """A prior of a later watermark stays, and so does one that a rollback holds."""
    later = book_of(judged(night(), PriorBook()), watermark_ms=WATERMARK_MS + 1)
    assert set(outcomes(judged(night(seed=1), later)).values()) == {"stale"}
    held = book_of(judged(night(), PriorBook()), held=True)
    assert set(outcomes(judged(night(seed=1), held)).values()) == {"held"}


def test_a_split_that_cannot_be_blocks() -> None:
    """Where an experiment's decisions split otherwise than drawn nothing is published."""
    found = judged(night(splits={("acme", "x03"): 1e-9}), PriorBook())
    assert set(outcomes(found).values()) == {"blocked"}
    (why,) = {f.message for one in found for f in one.findings if f.blocks}
    assert "least of x03" in why
    other = night(splits={("rival", "x03"): 1e-9})
    assert set(outcomes(judged(other, PriorBook())).values()) == {"published"}


def test_a_day_that_lost_its_clicks_blocks() -> None:
    """Where the last day earned a fifth of what it should nothing is published."""
    found = judged(night(last=0.2), PriorBook())
    assert set(outcomes(found).values()) == {"blocked"}
    assert {f.gate for one in found for f in one.findings if f.blocks} == {"drift"}


def test_a_prior_is_judged_against_the_one_in_force() -> None:
    """What most experiments say yields to nothing: a fit swayed by a large odd one is blocked."""
    book = book_of(judged(night(), PriorBook()))
    odd = night()
    rows = odd.rollups.to_pylist()
    extra = [
        row | {"variant_id": f"w{k}", "experiment_id": "x99"} | _facts(200, 100)
        for row in rows
        for k in range(2)
        if row["day"] < 2 and row["experiment_id"] < "x06"
    ]
    large = [
        row | {"variant_id": f"{row['variant_id']}-{i}"} for i, row in enumerate(extra)
    ]
    everything = odd._replace(rollups=pa.Table.from_pylist(rows + large))
    found = refit([*RECORDS, record(99)], everything, {"acme": book})
    swayed = next(one for one in found if one.group == ALL)
    assert swayed.outcome == "blocked"
    assert "log score" in {f.gate for f in swayed.findings if f.blocks}


def test_tenants_and_objectives_do_not_mix() -> None:
    """Another tenant's variants, and those of another event, are another prior's."""
    rival = [record(i, "rival") for i in range(12)]
    buys = record(11, objective={"event": "purchase"})
    found = refit([*RECORDS[:11], buys, *rival], night(), {})
    assert {(one.tenant, one.objective) for one in found} == {("acme", CLICK)}
    assert next(o for o in found if o.group == ALL).prior.n_variants == 66


def test_contextual_experiments_are_no_history() -> None:
    """Rates of requests that a policy chose a variant for are left out."""
    by_context = record(11, policy={"kind": "linear_thompson"})
    found = refit([*RECORDS[:11], by_context], night(), {})
    assert next(o for o in found if o.group == ALL).prior.n_variants == 66


def test_stopped_experiments_need_no_prior_without_them() -> None:
    """A prior is told without the experiments that may still take it."""
    stopped = RECORDS[0].model_copy(update={"status": "stopped"})
    found = refit([stopped, *RECORDS[1:]], night(), {})
    assert {"x00"} == {r.experiment_id for r in RECORDS} - found[0].prior.without.keys()


@pytest.mark.parametrize("kind", ["poisson_thompson", "gaussian_thompson"])
def test_counts_and_values_have_priors_of_their_own(kind: str) -> None:
    """The same night as counts or values gives priors that their policies take."""
    reward = {"poisson_thompson": "count", "gaussian_thompson": "value"}[kind]
    fields: dict[str, Any] = {"objective": {"reward": reward}, "policy": {"kind": kind}}
    records = [record(i, **fields) for i in range(12)]
    found = refit(records, night(), {})
    assert outcomes(found)[ALL] == "published"
    fresh = record(50, **fields)
    taken = with_priors(fresh, None, book_of(found))
    assert len(taken.spec.arm_priors) == 6
    assert None not in taken.spec.arm_priors


def test_a_refresh_gives_the_stages(tmp_path: Path) -> None:
    """Decisions of the first second, of the second, and of the two after it are apart."""
    ages = (0, 900, 1000, 2900, 3000, 6900)
    made = [
        decision(decision_id=f"d{i}", decided_at_ms=START_MS + age, propensity=0.25)
        for i, age in enumerate(ages)
    ]
    spec = parse_experiment(
        {
            "experiment": "hats",
            "tenant": "acme",
            "objective": {"attribution_window_s": 2.0},
            "variants": [{"id": "v1"}],
        }
    )
    told = [event(decision_id="d2", at_ms=START_MS + 1001, log_ms=START_MS + 1001)]
    running = ExperimentRecord(tenant="acme", spec=spec, status="running")
    rows = refresh(lake_of(tmp_path, made, told), [running]).stages
    shown = {row["stage"]: row for row in rows.to_pylist()}
    assert {stage: row["decisions"] for stage, row in shown.items()} == {
        0: 2,
        1: 2,
        2: 2,
    }
    assert {s: row["weights_squared"] for s, row in shown.items()} == {
        0: 32,
        1: 32,
        2: 32,
    }
    assert {s: row["squared_weighted_squares"] for s, row in shown.items()} == {
        0: 0.0,
        1: 16.0,
        2: 0.0,
    }


def test_published_priors_survive_their_bytes() -> None:
    """A book read back is the book."""
    book = book_of(judged(night(), PriorBook()))
    assert PriorBook.model_validate_json(book.model_dump_json()) == book
    assert isinstance(book.priors[0], PublishedPrior)
