"""Real logs as arms, rewards and features: Open Bandit, and bank marketing made a bandit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import yaml
from benchmarks._off_policy import Log
from numpy.typing import NDArray

from bandolero.experiment import CategoricalField
from bandolero.features import FeatureMap

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DATA = Path(__file__).parents[2] / "shared/data"
OPEN_BANDIT = DATA / "open-bandit"
BANK = DATA / "bank-marketing/bank_additional_full.parquet"

COMMON = 0.01
"""Levels of a field that fewer of the rows have go to "other"."""
AGE_BANDS = (25, 35, 50, 60)
BANK_FIELDS = ("age", "marital", "education", "default", "housing", "loan", "poutcome")
ITEM_FIELDS = ("item_feature_1", "item_feature_2", "item_feature_3", "quarter")
UNIT_FIELDS = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")


class Items(NamedTuple):
    """The items of Open Bandit's campaign "all", (80,) each.

    number
        Its one numeric feature.
    categories
        (80, 3), levels 0, 1, … of the others.
    alpha, beta
        Its production prior.
    """

    number: Floats
    categories: Ints
    alpha: Floats
    beta: Floats


def open_bandit(folder: Path = OPEN_BANDIT) -> Log:
    """The rows that the random policy logged, in order; an arm is an item."""
    names = ("item_id", "position", "click", "propensity_score", *UNIT_FIELDS)
    rows = pq.read_table(folder / "random_all.parquet", columns=list(names)).to_pydict()
    arms = np.array(rows["item_id"])
    n_arms = int(arms.max()) + 1
    if not np.allclose(rows["propensity_score"], 1.0 / n_arms):
        raise ValueError("propensity_score differs, must be that of a uniform log.")
    rows["position"] = [str(position) for position in rows["position"]]
    features = one_hot(rows, ("position", *UNIT_FIELDS))
    return Log(arms, np.array(rows["click"], np.float64), features, n_arms)


def open_bandit_items(folder: Path = OPEN_BANDIT) -> Items:
    """What is known of the items, by item."""
    rows = pq.read_table(folder / "item_context_random.parquet").to_pandas()
    rows = rows.sort_values("item_id")
    categories = [rows[f"item_feature_{i}"].factorize()[0] for i in (1, 2, 3)]
    prior = yaml.safe_load((folder / "prior_bts.yaml").read_text())["all"]
    return Items(
        rows["item_feature_0"].to_numpy(np.float64),
        np.stack(categories, axis=1),
        np.array(prior["alpha"]),
        np.array(prior["beta"]),
    )


def item_attributes(items: Items) -> list[dict[str, object]]:
    """Attributes of the items: categories, and a group of the number."""
    quarter = groups_of(items.number, 4)
    columns = np.column_stack([items.categories, quarter]).tolist()
    return [dict(zip(ITEM_FIELDS, row, strict=True)) for row in columns]


def grouped(log: Log, by: Floats, n_groups: int) -> Log:
    """The log with groups of items for arms: equally many each, in order of `by`.

    Choosing a group and then any item of it is a policy of its own, which a uniform log
    of the items can replay: it is uniform over groups of the same size, too.
    """
    return log._replace(arms=groups_of(by, n_groups)[log.arms], n_arms=n_groups)


def groups_of(by: Floats, n_groups: int) -> Ints:
    """Group of each item, (n_items,): equally many in each, in order of `by`.

    Raises
    ------
    ValueError
        When that does not come out even.
    """
    if len(by) % n_groups:
        raise ValueError(f"n_groups == {n_groups}, must divide {len(by)}.")
    group = np.empty(len(by), np.int64)
    group[np.argsort(by, kind="stable")] = np.arange(len(by)) * n_groups // len(by)
    return group


def bank(path: Path = BANK) -> tuple[Floats, Floats]:
    """Bank marketing as a bandit whose whole table of rewards is known.

    The usual conversion of labelled data: an arm is a class, here the client's job, and
    earns 1 where it is right. As if there was a creative for each trade, and a client
    answered to that of his own. Clients whose job is unknown are left out.

    Returns
    -------
    features (n, n_features), rewards of every arm (n, n_arms)
    """
    table = pq.read_table(path, columns=["job", *BANK_FIELDS])
    table = table.filter([job != "unknown" for job in table["job"].to_pylist()])
    rows = table.to_pydict()
    rows["age"] = [str(band) for band in np.digitize(rows["age"], AGE_BANDS)]
    jobs = sorted(set(rows["job"]))
    label = np.array([jobs.index(job) for job in rows["job"]])
    return one_hot(rows, BANK_FIELDS), np.eye(len(jobs))[label]


def uniform_log(features: Floats, table: Floats, seed: Sequence[int]) -> Log:
    """A log of arms drawn uniformly where the rewards of all are known."""
    n, n_arms = table.shape
    arms = np.random.default_rng(seed).integers(n_arms, size=(n,))
    return Log(arms, table[np.arange(n), arms], features, n_arms)


def one_hot(rows: dict[str, list[Any]], names: Sequence[str]) -> Floats:
    """Features of categorical columns as the engine makes them, (n, n_features)."""
    fields = [_field(name, rows[name]) for name in names]
    columns = zip(*(rows[name] for name in names), strict=True)
    contexts = [dict(zip(names, values, strict=True)) for values in columns]
    return FeatureMap(fields).encode_batch(contexts)


def _field(name: str, values: Sequence[str]) -> CategoricalField:
    """The field of a column, with its common levels."""
    found, counts = np.unique(np.array(values), return_counts=True)
    common = [str(x) for x in found[counts >= COMMON * len(values)]]
    return CategoricalField(kind="categorical", name=name, levels=common)
