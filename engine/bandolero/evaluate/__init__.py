"""What a policy that did not serve would have earned: off-policy evaluation.

trials       what is known of a log: trials, and the situations they were made in
models       predictions of rewards, each from other trials
estimators   ips, snips, dm, dr, switch_dr, dros
intervals    how sure a value is: bootstrap, empirical Bernstein
support      whether the log can say anything: diagnostics and limits on them
evaluation   all of these together: `evaluate`
reading      trials of an experiment from the lake, without what is left_out
targets      policies, served snapshots and tables as probabilities of every arm
answer       an experiment's log and a target put together; `telling` says it
"""

from bandolero.evaluate.evaluation import Estimate, Evaluation, evaluate
from bandolero.evaluate.intervals import Interval
from bandolero.evaluate.support import Support, Weights
from bandolero.evaluate.trials import Situations, Trials

__all__ = [
    "Estimate",
    "Evaluation",
    "Interval",
    "Situations",
    "Support",
    "Trials",
    "Weights",
    "evaluate",
]
