"""What holds for all tests: no example of Hypothesis has to be done in a given time."""

from hypothesis import HealthCheck, settings

# A machine that does other things as well is slow now and then, which says nothing of the code.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")
