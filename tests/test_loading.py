"""`bandolero ingest`: other systems' files from anywhere, exit codes, and kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import fs

from bandolero.lake.catalog import Lake
from bandolero_service.commands import Place, UsageError, apply_experiments
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.loading import REMEDY, parse_share
from bandolero_service.settings import Settings
from ingest_files import export, sale, shown, take_in
from service_helpers import experiment, needs_server, short_folder
from strategies import START_MS
from test_cli import Run

ROOT = Path(__file__).parents[1]
OPEN_BANDIT = ROOT.parent / "shared" / "data" / "open-bandit"
MAPPINGS = ROOT / "data" / "open-bandit"

pytestmark = needs_server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands in this process."""
    return Run(monkeypatch, capsys)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose store knows acme's experiment `hats`."""
    file = tmp_path_factory.mktemp("spec") / "hats.yaml"
    file.write_text(yaml.safe_dump(experiment("hats")))
    with short_folder() as folder:
        server = EmbeddedStore(folder)  # or each command would start one
        server.start()
        place = Place(Settings(data_dir=folder))
        apply_experiments(place, [file], "acme", start=False)
        yield folder
        server.stop()


def made(**fields: Any) -> dict[str, Any]:
    """A decision of `hats` in the past, whatever the year."""
    return shown(decided_at_ms=1_700_000_000_000, variant_id="v0") | fields


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.25", 0.25), ("0", 0.0), ("100%", 1.0)]
)
def test_shares_are_read(text: str, share: float) -> None:
    """As a percentage or a fraction."""
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["1", "2", "-1%", "nan", "1%%", "few", "101%", ""])
def test_other_shares_are_refused(text: str) -> None:
    """With the value and the rule."""
    with pytest.raises(UsageError, match=r"max-refused == .*, must be a share, such"):
        parse_share(text)


def test_what_became_of_files_is_told(run: Run, home: Path, tmp_path: Path) -> None:
    """Rows in, refused by rule, and left out; again, nothing is added."""
    rows = [made(), made(variant_id="v9"), made(experiment_id="caps"), made(mode="x")]
    path = export(tmp_path / "a.parquet", rows)
    where = ("--data-dir", str(home))
    done = run("ingest", "decisions", str(path), *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{path}: 1 row in, 3 refused",
        "  1 refused: variant_id == 'v9', must be a variant of its experiment.",
        "  1 refused: experiment_id == 'caps', must be an experiment of its tenant.",
        "  1 refused: mode == 'x', must be one of explore, holdout, fixed, fallback.",
        "1 row in, 3 refused to quarantine, 0 files refused",
        REMEDY,
    ]
    again = run("ingest", "decisions", str(path), *where)
    left = "3 rows are refused still: see quarantine/decisions/"
    assert again.stdout.startswith(f"{path}: is in already, {left}\n0 rows in")


def test_the_limit_of_refused_rows_is_exit_code_4(
    run: Run, home: Path, tmp_path: Path
) -> None:
    """Nothing of the file is in, and within the limit it is."""
    rows = [made(decision_id=f"limit-{i}") for i in range(9)] + [made(mode="x")]
    path = export(tmp_path / "a.parquet", rows)
    where = ("--data-dir", str(home), "--max-refused")
    done = run("ingest", "decisions", str(path), *where, "1%")
    assert done.returncode == 4
    assert "1 of 10 rows are refused, must be <= 1 %." in done.stdout
    assert done.stderr == "bandolero: more is refused than may be; see quarantine/.\n"
    done = run("ingest", "decisions", str(path), *where, "0.1")
    assert (done.returncode, done.stdout.split()[1]) == (0, "9")


def test_a_file_refused_whole_is_a_failure(
    run: Run, home: Path, tmp_path: Path
) -> None:
    """Exit code 1, whatever the limit of refused rows; the other files are in."""
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    export(tmp_path / "good.parquet", [sale(at_ms=1_700_000_000_000)])
    where = ("--data-dir", str(home))
    done = run("ingest", "events", str(tmp_path), *where)
    assert done.returncode == 1
    assert "1 row in, 0 refused to quarantine, 1 file refused" in done.stdout
    done = run("ingest", "events", str(tmp_path), "--max-refused", "5%", *where)
    assert done.returncode == 1
    assert done.stderr == "bandolero: 1 file is refused; see quarantine/.\n"


@pytest.mark.parametrize(
    ("mapping", "arguments", "told"),
    [
        ("columns: {typ: x}", (), "columns.typ is not a column of events"),
        ("columns: {tenant_id: t}", ("--tenant", "a"), "leave it or --tenant out."),
        ("{}", ("--tenant", "a b"), "tenant == 'a b'"),
    ],
)
def test_a_wrong_mapping_is_a_usage_error(
    run: Run,
    home: Path,
    tmp_path: Path,
    mapping: str,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    """Exit code 2 with field, value and rule, and nothing is read."""
    (tmp_path / "m.yaml").write_text(mapping)
    done = run(
        *("ingest", "events", "nowhere", "--data-dir", str(home)),
        *("--mapping", str(tmp_path / "m.yaml"), *arguments),
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_rows_may_be_said_to_be_of_a_tenant(
    run: Run, home: Path, tmp_path: Path
) -> None:
    """A file that does not know tenants, in CSV, is taken in as one's."""
    head = "decision_id,experiment_id,variant_id,decided_at_ms,propensity,mode"
    (tmp_path / "a.csv").write_text(f"{head}\nd-csv,hats,v0,1700000000000,0.5,fixed\n")
    where = ("--data-dir", str(home), "--tenant", "acme")
    done = run("ingest", "decisions", str(tmp_path / "a.csv"), *where)
    assert done.returncode == 0, done.stdout
    rows = Lake(home / "lake").read("decisions")[0].to_pylist()
    assert [r["tenant_id"] for r in rows if r["decision_id"] == "d-csv"] == ["acme"]


@pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="no Open Bandit beside the tests")
@pytest.mark.skipif(not MAPPINGS.is_dir(), reason="no mappings beside the tests")
def test_open_bandit_loads_with_a_mapping(run: Run, tmp_path: Path) -> None:
    """Both logs as decisions and clicks, every row, with their propensities."""
    variants = [{"id": str(item)} for item in range(80)]
    spec = {"experiment": "open-bandit", "tenant": "zozo", "variants": variants}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec | {"objective": {}}))
    with short_folder() as folder:
        where = ("--data-dir", str(folder / "d"))
        assert run("experiment", "apply", str(tmp_path / "spec.yaml"), *where)[0] == 0
        logs = [str(OPEN_BANDIT / f"{name}_all.parquet") for name in ("random", "bts")]
        for table in ("decisions", "events"):
            mapping = str(MAPPINGS / f"{table}.yaml")
            done = run("ingest", table, *logs, "--mapping", mapping, *where)
            assert done.returncode == 0, done.stdout
        lake = Lake(folder / "d" / "lake")
        decisions, events = (lake.read(t)[0] for t in ("decisions", "events"))
    assert len(set(decisions["decision_id"].to_pylist())) == 20_000
    theirs = [pq.read_table(log, columns=["propensity_score", "click"]) for log in logs]
    both = pa.concat_tables(theirs)
    ours = sorted(decisions["propensity"].to_pylist())
    assert ours == sorted(both["propensity_score"].to_pylist())
    assert len(events) == sum(both["click"].to_pylist())
    assert set(events["decision_id"].to_pylist()) < set(
        decisions["decision_id"].to_pylist()
    )
    assert json.loads(decisions["context"][0].as_py())["position"] in {"1", "2", "3"}


# --- elsewhere, and killed ------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3-compatible server on loopback: what follows `s3://`."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    query = f"endpoint_override={host}:{port}&scheme=http&allow_bucket_creation=true"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://exports/?{query}")
    filesystem.create_dir("exports")
    yield query
    server.stop()


@pytest.mark.slow
def test_files_and_lakes_in_a_bucket(
    run: Run, home: Path, tmp_path: Path, bucket: str
) -> None:
    """A folder of a bucket is read like one of a disk, into a lake in a bucket, too."""
    filesystem, _ = fs.FileSystem.from_uri(f"s3://exports/?{bucket}")
    for i in range(2):
        path = export(tmp_path / "a.parquet", [made(decision_id=f"s3-{i}")] * 3)
        with filesystem.open_output_stream(f"exports/june/{i}.parquet") as sink:
            sink.write(path.read_bytes())
    with filesystem.open_output_stream("exports/june/_SUCCESS") as sink:
        sink.write(b"")
    lake = f"s3://exports/lake?{bucket}"
    arguments = ("ingest", "decisions", f"s3://exports/june?{bucket}", "--lake", lake)
    for n_rows in (6, 0):
        done = run(*arguments, "--data-dir", str(home))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"{n_rows} rows in, 0 refused")
    assert "s3://exports/june/0.parquet: is in already" in done.stdout
    assert bucket not in done.stdout
    rows, bad = Lake(lake).read("decisions")
    assert (rows.num_rows, bad) == (6, [])


@pytest.mark.slow
def test_a_killed_run_is_run_again(tmp_path: Path) -> None:
    """Killed at any moment, nothing of the file is in the lake; run again, all is, once."""
    n = 200_000
    table = pa.table(
        {name: [sale()[name]] * n for name in ("tenant_id", "decision_id", "type")}
        | {"event_id": [f"e{i}" for i in range(n)], "at_ms": [START_MS] * n}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    code = (
        "import sys, time\nfrom bandolero.lake import drafts, ingest\n"
        "from bandolero.lake.catalog import Lake\n"
        "class Slow(Lake):\n"
        "    def write_part(self, *given):\n"
        "        files = super().write_part(*given)\n"
        "        time.sleep(0.3)\n"
        "        return files\n"
        "drafts.ROWS_PER_FILE = 30_000\n"
        f"terms = ingest.Terms(now_ms={START_MS})\n"
        "ingest.ingest(Slow(sys.argv[1]), 'events', [sys.argv[2]], terms)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(tmp_path / "l"),
        str(path),
    ]
    lake = Lake(tmp_path / "l")
    with subprocess.Popen(command, start_new_session=True) as child:
        while child.poll() is None and len(list(lake.paths("events", ""))) < 2:
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert lake.commits() == []
    assert len(list(lake.paths("events", ""))) >= 2
    assert [take_in(lake, "events", [path]).accepted for _ in range(2)] == [n, 0]
    assert lake.read("events")[0].num_rows == n
