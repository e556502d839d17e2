"""What a policy that did not serve would have earned: off-policy evaluation.

intervals    how sure a value is: bootstrap, empirical Bernstein
support      whether the log can say anything: weights and limits on them
difference   two policies on one log, paired
"""

from bandolero.evaluate.difference import Difference, difference
from bandolero.evaluate.intervals import Interval
from bandolero.evaluate.support import NotEnoughSupport, Weights

__all__ = ["Difference", "Interval", "NotEnoughSupport", "Weights", "difference"]
