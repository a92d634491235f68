"""What all tests share."""

from hypothesis import settings

# Repeatable by default, so that a failing run can be run again. To search further:
# pytest --hypothesis-profile=explore, or make fuzz
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.register_profile("fuzz", deadline=None, max_examples=3000)
settings.load_profile("ci")
