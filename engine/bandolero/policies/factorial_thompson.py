"""Thompson sampling over listed variants that are combinations of attribute values.

The regression of `shared_linear_thompson`, with effects of single values and of pairs of
values: what Hill et al. model. Context multiplies both. A listed variant has 1 + A +
A (A - 1) / 2 effects with A attributes, so its features come from
`bandolero.attributes.paired_features`. Where all combinations compete and are too many to
list, see `product_thompson`.

References
----------
Hill et al. (2017), An Efficient Bandit Algorithm for Realtime Multivariate Optimization:
the model with pairwise interactions (there probit, here linear).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from bandolero.attributes import paired_features
from bandolero.policies.shared_linear_thompson import SharedLinearThompson


@dataclass(frozen=True)
class FactorialThompson(SharedLinearThompson):
    """`SharedLinearThompson` whose features hold pairs of attribute values.

    Examples
    --------
    >>> variants = [{"tone": "calm", "offer": "sale"}, {"tone": "calm", "offer": "gift"}]
    >>> FactorialThompson.of(variants, n_features=1).arm_features
    ((1.0, 1.0, 1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0, 1.0, 1.0))
    """

    kind = "factorial_thompson"

    @classmethod
    def of(cls, variants: Sequence[Mapping[str, object]], n_features: int) -> Self:
        """The policy for variants with these attributes."""
        matrix = paired_features(variants).matrix.tolist()
        return cls(n_features, tuple(tuple(row) for row in matrix))
