from probe.verdict.judge import Judge as Judge
from probe.verdict.judge import Verdict as Verdict
from probe.verdict.judge import VerdictEvidence as VerdictEvidence
from probe.verdict.judge import load_judge as load_judge
from probe.verdict.logistic import fit_logistic as fit_logistic
from probe.verdict.verdict import check_models as check_models
from probe.verdict.verdict import verdict as verdict
