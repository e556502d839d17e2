"""Traffic that no person made: which decisions of a settled night are taken out.

Three rules, each off at 0: clicks repeated at once (the repeats do not count), clicks
faster than a hand, and units that click far more than others. A decision that is taken
out is no trial and earns nothing; it is listed with its reason, without its unit.
"""

from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import poisson

from bandolero.lake.engines import Engine
from bandolero.lake.settling import DECISION, EXPERIMENT, quiet

FAST, UNIT = "click too fast", "unit clicks too often"
REPEATED = "click repeated"
INVALID = (FAST, UNIT, REPEATED)
"""Reasons in a night's audit table that are about invalid traffic."""
FALSE_ALARM = 1e-3
"""How often a night takes out any unit at all, though none clicks more than allowed."""
_LEAST_HITS = 3
_UNIT = ("tenant_id", "unit")


class TrafficRules(NamedTuple):
    """What counts as invalid traffic; 0 turns a rule off.

    repeated_click_ms: a click that follows another of its decision sooner does not count.
    fastest_click_ms: a decision clicked sooner after it was made is taken out.
    unit_click_times: a unit is taken out, with all its decisions, whose hits would be a
    wonder (`FALSE_ALARM`) even if it were so many times as likely to click as the others.
    """

    repeated_click_ms: int = 0
    fastest_click_ms: int = 0
    unit_click_times: float = 0.0


NO_RULES = TrafficRules()


def without_invalid(
    engine: Engine, settled: ir.Table, closed: ir.Table, rules: TrafficRules
) -> ir.Table:
    """Settled decisions, `excluded` saying why one is taken out, null where it is not.

    Parameters
    ----------
    settled
        From `settle_twice`.
    closed
        All closed decisions; those of an excluded unit join the settled.
    """
    fast = (
        settled.fastest_ms < rules.fastest_click_ms
        if rules.fastest_click_ms
        else ibis.literal(False)
    )
    marked = settled.mutate(
        excluded=ibis.ifelse(fast.fill_null(False), FAST, ibis.null("string"))
    )
    if rules.unit_click_times:
        units = _wild_units(
            engine, marked.filter(marked.excluded.isnull()), closed, rules
        )
        if units.num_rows:
            marked = _with_units(engine, marked, closed, units)
    stays = marked.excluded.isnull()
    return marked.mutate(
        is_trial=marked.is_trial & stays,
        reward_micros=ibis.ifelse(stays, marked.reward_micros, 0),
    )


def _with_units(
    engine: Engine, marked: ir.Table, closed: ir.Table, units: pa.Table
) -> ir.Table:
    """With all decisions of some units, and these marked."""
    wild = engine.table(units)
    theirs = closed.semi_join(wild, _UNIT).anti_join(marked, DECISION)
    learned = theirs.live_cut_ms >= 0
    none = ibis.literal(0, "int64")
    more = theirs.mutate(
        is_trial=quiet(theirs),
        reward_micros=none,
        is_impression=ibis.literal(False),
        was_trial=learned & quiet(theirs),
        was_micros=none,
        was_impression=ibis.literal(False),
        before_trial=quiet(theirs),
        before_micros=none,
        fastest_ms=ibis.null("int64"),
        repeats=none,
        n_late=none,
        late_retracts=none,
        late_refunds=none,
        excluded=ibis.null("string"),
    )
    whole = marked.union(more.select(*marked.columns))
    named = whole.left_join(wild.mutate(is_wild=True), _UNIT)
    return named.mutate(
        excluded=named.excluded.fill_null(
            ibis.ifelse(named.is_wild.fill_null(False), UNIT, ibis.null("string"))
        )
    ).select(*marked.columns)


def _wild_units(
    engine: Engine, settled: ir.Table, closed: ir.Table, rules: TrafficRules
) -> pa.Table:
    """Units with more hits than chance gives, at the others' rate times what is allowed.

    Hits of a unit, were they Poisson with the expectation of all its decisions: a union
    bound over all decisions, of which there are at least as many as units.
    """
    hit = settled.filter(settled.reward_micros > 0)
    hits = hit.filter(hit.unit.notnull()).group_by(_UNIT).aggregate(hits=ibis._.count())
    suspects = engine.to_arrow(hits.filter(hits.hits >= _LEAST_HITS))
    if not suspects.num_rows:
        return suspects.select(_UNIT)
    by_experiment = hit.group_by(EXPERIMENT).aggregate(hits=ibis._.count())
    made = closed.group_by(EXPERIMENT).aggregate(n=ibis._.count())
    rates = made.inner_join(by_experiment, EXPERIMENT)
    rates = engine.keep(rates.select(*EXPERIMENT, "n", rate=rates.hits / rates.n))
    named = engine.table(suspects)
    theirs = closed.semi_join(named, _UNIT).inner_join(rates, EXPERIMENT)
    expected = theirs.group_by(_UNIT).aggregate(expected=theirs.rate.sum())
    told = engine.to_arrow(named.inner_join(expected, _UNIT))
    n_decisions = int(pc.sum(engine.to_arrow(rates)["n"]).as_py())
    chance = poisson.sf(
        told["hits"].to_numpy() - 1,
        rules.unit_click_times * told["expected"].to_numpy(),
    )
    wild = pa.array(np.asarray(chance < FALSE_ALARM / n_decisions))
    return told.filter(wild).select(_UNIT)
