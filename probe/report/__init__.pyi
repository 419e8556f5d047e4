from probe.report.run import redraw as redraw
from probe.report.run import report as report
from probe.report.settings import TESTBED_METHODS as TESTBED_METHODS
from probe.report.settings import Settings as Settings
