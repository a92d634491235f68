"""Another name of `transformers_apt.engine.patching`, from before it moved there."""

import sys

from transformers_apt.engine import patching

sys.modules[__name__] = patching
