"""Another name of `transformers_apt.engine.overlay`, from before it moved there."""

import sys

from transformers_apt.engine import overlay

sys.modules[__name__] = overlay
