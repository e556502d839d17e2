"""Rewards that the newest night told otherwise than before, one by one."""

from datetime import UTC, datetime

from bandolero_service.commands import CommandError, Place, _say


def list_corrected(place: Place, experiment_id: str | None, tenant: str | None) -> None:
    """A line a decision: what it was learned as, or before corrections, what it is, and why."""
    from bandolero.lake.results import read_result

    lake = place.lake()
    watermark_ms, audit = read_result(lake, "audit", tenant=tenant)
    if audit is None:
        never = "has not been refreshed yet: bandolero refresh"
        raise CommandError(f"the lake {lake.root} {never}.")
    rows = [
        row
        for row in audit.to_pylist()
        if experiment_id in (None, row["experiment_id"])
        and tenant in (None, row["tenant_id"])
    ]
    if not rows:
        at = datetime.fromtimestamp(watermark_ms / 1000, UTC)
        what = "all rewards are as they were learned"
        _say(f"{what}, by the refresh up to {at:%Y-%m-%d %H:%M:%S} UTC")
    for row in rows:
        was = _told(row["was_trial"], row["was_micros"])
        now = _told(row["is_trial"], row["reward_micros"])
        name = f"{row['tenant_id']}/{row['experiment_id']}"
        _say(
            f"{name:30} {row['decision_id']}  {row['variant_id']:12}"
            f" {was} -> {now}  {row['reason']}"
        )


def _told(is_trial: bool, micros: int) -> str:
    return f"{micros / 1e6:g}" if is_trial else "no trial"
