from probe.evaluation.ask import Evaluation as Evaluation
from probe.evaluation.ask import EvaluationSettings as EvaluationSettings
from probe.evaluation.ask import evaluate as evaluate
from probe.evaluation.ask import reference_log as reference_log
from probe.evaluation.data import RowSets as RowSets
from probe.evaluation.data import read_sets as read_sets
