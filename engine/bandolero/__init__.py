"""Bandolero: which ad creative to show, learned by Thompson sampling, told honestly.

experiment    what competes, for what: the specification and its faults
policies      functions from a state into the simplex, and `choose`
snapshot      what is served: immutable, versioned; `decide` draws from it
settle, fold  decisions and events into rewards, rewards into states and rollups
lake          the log as Parquet: catalog, ingest, refresh
inference     what may be concluded
report        a report as data, then as text, HTML, files
"""

from importlib.metadata import version

from bandolero.draws import draws, experiment_key
from bandolero.experiment import (
    Experiment,
    ExperimentRecord,
    InvalidExperimentError,
    load_experiment,
    parse_experiment,
)
from bandolero.policies import policy_of
from bandolero.settle import settle
from bandolero.snapshot import Drawn, Snapshot, build_snapshot, decide

__version__ = version("bandolero")

__all__ = [
    "Drawn",
    "Experiment",
    "ExperimentRecord",
    "InvalidExperimentError",
    "Snapshot",
    "__version__",
    "build_snapshot",
    "decide",
    "draws",
    "experiment_key",
    "load_experiment",
    "parse_experiment",
    "policy_of",
    "settle",
]
