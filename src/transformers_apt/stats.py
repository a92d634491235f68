"""Another name of `transformers_apt.models.stats`, from before it moved there."""

import sys

from transformers_apt.models import stats

sys.modules[__name__] = stats
