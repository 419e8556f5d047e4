from probe.open_unlearning.log import EvaluationLog as EvaluationLog
from probe.open_unlearning.log import read_log as read_log
from probe.open_unlearning.log import write_log as write_log
from probe.open_unlearning.recomputed import recomputed as recomputed
from probe.open_unlearning.recomputed import truth_ratios as truth_ratios
from probe.open_unlearning.samples import attack_samples as attack_samples
from probe.open_unlearning.samples import choice_samples as choice_samples
from probe.open_unlearning.samples import set_samples as set_samples
