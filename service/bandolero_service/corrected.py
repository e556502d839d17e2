"""Rewards that the newest night told otherwise than they were learned, one by one."""

import sys

from bandolero_service.commands import CommandError, Place


def list_corrected(place: Place, experiment_id: str | None, tenant: str | None) -> None:
    """A line a decision: what it was learned as, what it is, and why."""
    from bandolero.lake.catalog import Lake
    from bandolero.lake.results import read_result

    _, audit = read_result(Lake(place.settings.lake_url), "audit", tenant=tenant)
    if audit is None:
        raise CommandError("the lake has not been refreshed yet: bandolero refresh.")
    for row in audit.to_pylist():
        mine = experiment_id in (None, row["experiment_id"])
        if mine and tenant in (None, row["tenant_id"]):
            was = _told(row["was_trial"], row["was_micros"])
            now = _told(row["is_trial"], row["reward_micros"])
            name = f"{row['tenant_id']}/{row['experiment_id']}"
            sys.stdout.write(
                f"{name:30} {row['decision_id']}  {row['variant_id']:12}"
                f" {was} -> {now}  {row['reason']}\n"
            )


def _told(is_trial: bool, micros: int) -> str:
    return f"{micros / 1e6:g}" if is_trial else "no trial"
