"""The stages of the demo, each with its progress, each through the public contract."""

import json
import time
from collections.abc import Sequence
from subprocess import CompletedProcess
from typing import Any

from bandolero.simulate import Environment
from bandolero_service.demo.checks import (
    Check,
    end_checks,
    is_settled,
    prior_check,
)
from bandolero_service.demo.client import Client
from bandolero_service.demo.past import export
from bandolero_service.demo.plan import Counts, variant_id
from bandolero_service.demo.play import Play, Player
from bandolero_service.demo.results import total_earnings
from bandolero_service.demo.screen import Narrator, percent
from bandolero_service.demo.server import ARCHIVE_INTERVAL_S, PrivateServer

TENANT = "demo"
NEXT = "demo-next"
PAST = "demo-past"
# A started experiment is live on all workers within one second, by contract.
LIVE_AFTER_S = 1.5
SETTLE_TIMEOUT_S = 15.0
Done = CompletedProcess[str]
"""A command that has ended."""


def start(server: PrivateServer, narrator: Narrator) -> str:
    """Wait for the server and make a key."""
    with narrator.stage("Starting store, API worker, learner and archiver") as report:
        server.wait_ready()
        key = server.create_key(TENANT)
        report(1.0, f"port {server.port}")
        return key


def specification(test: Environment, experiment_id: str) -> dict[str, Any]:
    """The experiment that a test becomes: a variant per package, a window of one second."""
    return {
        "experiment": experiment_id,
        "tenant": TENANT,
        "objective": {
            "event": "click", "reward": "binary", "attribution_window_s": 1, "trial": "decision",
        },
        "policy": {"kind": "beta_thompson"},
        "allocation": {"holdout_share": 0.0, "min_share": 0.01},
        "variants": [
            {"id": variant_id(arm), "creative": {"headline": headline, "description": description}}
            for arm, (headline, description) in enumerate(
                zip(test.headlines, test.descriptions, strict=True)
            )
        ],
    }  # fmt: skip


def create(
    client: Client,
    tests: Sequence[Environment],
    experiment_ids: Sequence[str],
    narrator: Narrator,
) -> None:
    """Put and start one experiment per test."""
    with narrator.stage("Creating experiments") as report:
        for done, (test, experiment_id) in enumerate(
            zip(tests, experiment_ids, strict=True), 1
        ):
            path = f"/v1/experiments/{experiment_id}"
            client.expect("PUT", path, specification(test, experiment_id))
            client.expect("POST", f"{path}/start", {})
            report(done / len(tests), f"{done} of {len(tests)}")
        time.sleep(LIVE_AFTER_S)


def play(
    player: Player,
    server: PrivateServer,
    tests: Sequence[Environment],
    narrator: Narrator,
) -> Play:
    """Play to the end, with the gap captured so far beside the bar."""
    horizon = sum(test.horizon for test in tests)
    with narrator.stage("Playing") as report:

        def watch(shown: Counts) -> None:
            server.check_alive()
            so_far = total_earnings(tests, shown, shown * 0)
            note = f"{so_far.decisions:,} decisions, gap captured {percent(so_far.gap_captured)}"
            report(so_far.decisions / horizon, note)

        return player.play(watch)


def settle(
    client: Client, experiment_ids: Sequence[str], decisions: Counts, narrator: Narrator
) -> tuple[dict[str, Any], ...]:
    """The reports, once every decision of every test has settled; else as they are."""
    reports: dict[str, dict[str, Any]] = {}
    waiting = dict(zip(experiment_ids, decisions.tolist(), strict=True))
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    with narrator.stage("Settling") as report:
        while waiting and time.monotonic() < deadline:
            for experiment_id, n_decisions in list(waiting.items()):
                path = f"/v1/experiments/{experiment_id}/report?format=json"
                reports[experiment_id] = client.expect("GET", path)
                if is_settled(reports[experiment_id], n_decisions):
                    del waiting[experiment_id]
            n_settled = len(experiment_ids) - len(waiting)
            report(n_settled / len(experiment_ids), f"{n_settled} tests settled")
            time.sleep(0.5 if waiting else 0.0)
    return tuple(reports[experiment_id] for experiment_id in experiment_ids)


def ingest(
    server: PrivateServer,
    client: Client,
    test: Environment,
    seed: int,
    narrator: Narrator,
) -> tuple[Done, ...]:
    """Load what another system logged of one more test; while the archiver archives."""
    until = time.monotonic() + ARCHIVE_INTERVAL_S + 1
    with narrator.stage("Ingesting another system's log"):
        client.expect("PUT", f"/v1/experiments/{PAST}", specification(test, PAST))
        log, mappings = export(test, TENANT, PAST, server.data_dir, seed)
        done = tuple(
            server.command("ingest", table, str(log), "--mapping", str(mapping))
            for table, mapping in mappings.items()
        )
    with narrator.stage("Archiving to Parquet"):
        time.sleep(max(0.0, until - time.monotonic()))
    return done


def refresh_and_replay(
    server: PrivateServer, experiment_id: str, narrator: Narrator
) -> tuple[dict[str, Any], tuple[Done, ...]]:
    """The night's summary; and refresh, a replay and an evaluation, as they ended."""
    summary = server.data_dir / "night.json"
    with narrator.stage("Refreshing from the lake"):
        refresh = server.command("refresh", "--summary", str(summary))
    with narrator.stage("Replaying one experiment"):
        replay = server.command("replay", experiment_id, "--tenant", TENANT)
    with narrator.stage("Evaluating a policy on the other system's log"):
        evaluate = server.command(
            "evaluate", PAST, "--policy", "beta_thompson", "--tenant", TENANT
        )
    night = json.loads(summary.read_text()) if summary.exists() else {}
    return night, (refresh, replay, evaluate)


def start_warm(
    client: Client, test: Environment, night: dict[str, Any], narrator: Narrator
) -> tuple[Check, ...]:
    """Start one more experiment: it believes what the night learned from the others."""
    path = f"/v1/experiments/{NEXT}"
    with narrator.stage("Starting one more experiment"):
        client.expect("PUT", path, specification(test, NEXT))
        return (prior_check(night, client.expect("POST", f"{path}/start", {})),)


def stop(server: PrivateServer, narrator: Narrator) -> tuple[Check, ...]:
    """Stop the server as an operator would, and look for what it left."""
    with narrator.stage("Stopping the server"):
        return end_checks(server.stop(), server.left_behind())
