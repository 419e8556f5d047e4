from probe.testing.checks import Check as Check
from probe.testing.checks import CheckReport as CheckReport
from probe.testing.intervention import check_intervention as check_intervention
from probe.testing.model import check_model as check_model
