"""The command that evaluates a policy on what an experiment's log says."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from bandolero.experiment import InvalidExperimentError
from bandolero_service.commands import (
    CommandError,
    Place,
    UsageError,
    _one,
    _say,
    _steps,
)
from bandolero_service.errors import invalid_experiment
from bandolero_service.options import TenantOption, placed
from bandolero_service.refreshing import _iso_ms

if TYPE_CHECKING:
    from bandolero.evaluate.answer import Answer, ByPolicy, ByTable, Target

FORMATS = ("table", "json")
ENDINGS = (".yaml", ".yml", ".json")


@placed
def evaluate(
    place: Place,
    experiment_id: str,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Kind of policy, or a file: learns from the log before --from."
        ),
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option(help="Version of a snapshot that was served.")
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Parquet or CSV: variant_id, probability, and decision_id if by decision.",
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="First decision, ISO 8601. Default: half-way."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Only decisions before, ISO 8601.")
    ] = None,
    format: Annotated[  # noqa: A002  # the name of the option
        str, typer.Option(help="table or json.")
    ] = "table",
    tenant: TenantOption = None,
) -> None:
    """Say what a policy that did not serve would have earned, or that the log cannot say."""
    if format not in FORMATS:
        rule = f"must be one of {', '.join(FORMATS)}."
        raise typer.BadParameter(f"{format!r}, {rule}", param_hint="--format")
    target = _target(policy, snapshot, probabilities)
    begin, end = _times(from_, to)
    _say(_told(_answer(place, experiment_id, tenant, target, begin, end), format))


def _target(
    policy: str | None, snapshot: int | None, probabilities: Path | None
) -> "Target":
    """What is to be evaluated: exactly one of the three."""
    from bandolero.evaluate.answer import BySnapshot

    given = [one for one in (policy, snapshot, probabilities) if one is not None]
    if len(given) != 1:
        rule = "give exactly one of --policy, --snapshot and --probabilities"
        raise UsageError(f"{len(given)} targets are given: {rule}.")
    if snapshot is not None:
        return BySnapshot(snapshot)
    return _table(probabilities) if probabilities else _policy(policy or "")


def _times(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    """The decisions asked for, in milliseconds."""
    from_ms = None if from_ is None else _iso_ms("from", from_)
    to_ms = None if to is None else _iso_ms("to", to)
    if from_ms is not None and to_ms is not None and from_ms >= to_ms:
        raise UsageError(f"from == {from_!r}, must be before to == {to!r}.")
    return from_ms, to_ms


def _answer(
    place: Place,
    experiment_id: str,
    tenant: str | None,
    target: "Target",
    from_ms: int | None,
    to_ms: int | None,
) -> "Answer":
    from bandolero.evaluate.answer import evaluate_experiment
    from bandolero.evaluate.reading import NothingLoggedError
    from bandolero.evaluate.targets import TargetError

    with place.store() as store:
        record = _one(store, experiment_id, tenant)
    now_ms = time.time_ns() // 1_000_000
    lake = place.lake()
    try:
        with _steps() as step:
            return evaluate_experiment(
                record, lake, target, now_ms, from_ms, to_ms, step
            )
    except InvalidExperimentError as error:
        raise invalid_experiment(error.faults) from None
    except (TargetError, NothingLoggedError) as error:
        raise CommandError(str(error)) from None


def _told(answer: "Answer", kind: str) -> str:
    from bandolero.evaluate import telling

    if kind == "json":
        return json.dumps(telling.to_json(answer), indent=2)
    return telling.to_text(answer).rstrip("\n")


def _policy(given: str) -> "ByPolicy":
    """A policy by its kind, or by a file with what an experiment says of its policy."""
    from bandolero.evaluate.answer import ByPolicy
    from bandolero.policies import STATES

    if given in STATES:
        return ByPolicy({"kind": given})
    path = Path(given)
    if path.suffix not in ENDINGS:
        rule = f"must be a file (.yaml, .json) or one of {', '.join(STATES)}"
        raise UsageError(f"policy == {given!r}, {rule}.")
    try:
        found = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CommandError(f"{path} is not YAML or JSON: {reason}.") from None
    if isinstance(found, dict) and isinstance(found.get("policy"), dict):
        found = found["policy"]
    if not isinstance(found, dict):
        raise CommandError(f"{path} must hold a policy: a mapping with its kind.")
    return ByPolicy(found)


def _table(path: Path) -> "ByTable":
    from bandolero.evaluate.answer import ByTable
    from bandolero.evaluate.targets import TargetError, read_probabilities

    try:
        return ByTable(read_probabilities(path))
    except TargetError as error:
        raise CommandError(str(error)) from None
