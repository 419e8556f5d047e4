from probe.study.layer_scores import layer_scores as layer_scores
from probe.study.loading import load_study as load_study
from probe.study.loading import open as open
from probe.study.loading import read_split as read_split
from probe.study.loading import testbed as testbed
from probe.study.study import Study as Study
