"""The running server against its own OpenAPI document, by generated requests."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.config import GenerationConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    ignored_auth,
    positive_data_acceptance,
    unsupported_method,
)

from service_helpers import Running, experiment, needs_server

pytestmark = needs_server

TENANT = "schema"
RULES_BETWEEN_FIELDS = {
    ("PUT", "/v1/experiments/{experiment_id}"),
    ("POST", "/v1/experiments/{experiment_id}/variants"),
    ("GET", "/v1/experiments/{experiment_id}/report"),
}
"""What their schema allows may still be refused."""
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
Operation = APIOperation[Any, Any, Any, Any]


@pytest.fixture(scope="module")
def document(running: Running) -> BaseSchema:
    """The document as the server gives it; requests have a key of all scopes."""
    load_all_checks()
    running.begin(experiment("hats"), TENANT)
    key = {"authorization": f"Bearer {running.key(TENANT)}"}
    url = f"http://127.0.0.1:{running.port}/openapi.json"
    schema = schemathesis.openapi.from_url(url)
    schema.config.update(headers=key, request_timeout=60)
    return schema


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A connection that is kept."""
    with requests.Session() as kept:
        yield kept


def operations(document: BaseSchema) -> list[Operation]:
    """Every operation of the document, which must itself be sound."""
    found = list(document.get_all_operations())
    assert all(isinstance(one, Ok) for one in found), found
    return [one.ok() for one in found if isinstance(one, Ok)]


def check(case: Case[Any], session: requests.Session) -> None:
    """The answer is no fault, and is as documented: status, type, schema."""
    skipped: list[Any] = [ignored_auth]  # test_owasp asks every route without a key
    if (case.method, case.path) in RULES_BETWEEN_FIELDS:
        skipped.append(positive_data_acceptance)
    if case.path.endswith("/report"):
        # A POST there is an act of that name.
        skipped += [unsupported_method, allow_header_conformance]
    key = case.operation.schema.config.headers
    case.call_and_validate(session=session, headers=key, excluded_checks=skipped)


def faults_of(operation: Operation, session: requests.Session, n: int) -> list[str]:
    """What is wrong with an operation, by boundary cases and by `n` random ones a mode."""
    found = []
    for case in islice(_boundaries(operation), 6 * n):
        try:
            check(case, session)
        except FailureGroup as failure:
            found.append(f"{operation.label}: {_told(failure)}")
    for mode in MODES:
        try:
            _fuzz(operation, mode, session, n)
        except FailureGroup as failure:
            found.append(f"{operation.label}: {_told(failure)}")
    return found


def _boundaries(operation: Operation) -> Iterator[Case[Any]]:
    """Cases at the edges of each field, in turn valid and not."""
    yield from operation.schema.iter_coverage_cases(
        operation, generation_modes=list(MODES), generation_config=GenerationConfig()
    )


def _fuzz(
    operation: Operation, mode: GenerationMode, session: requests.Session, n: int
) -> None:
    names = {"experiment_id": "hats", "variant_id": "v0"}
    there = {k: v for k, v in names.items() if f"{{{k}}}" in operation.path}

    @settings(
        max_examples=n,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(mode, path_parameters=there))
    def told(case: Case[Any]) -> None:
        check(case, session)

    with suppress(Unsatisfiable):  # some have nothing to get wrong
        told()


def _told(failure: FailureGroup) -> str:
    return "; ".join(f"{one.title}: {one.message}" for one in failure.exceptions)


def test_the_server_keeps_its_document(
    document: BaseSchema, session: requests.Session
) -> None:
    """Whatever is sent, valid or not: no 5xx, documented answers, bad data refused."""
    some = operations(document)
    assert len(some) > 15
    found = [fault for one in some for fault in faults_of(one, session, 3)]
    assert found == [], "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_server_keeps_its_document_widely(
    document: BaseSchema, session: requests.Session
) -> None:
    """The same with many more requests."""
    some = operations(document)
    found = [fault for one in some for fault in faults_of(one, session, 20)]
    assert found == [], "\n".join(found)
