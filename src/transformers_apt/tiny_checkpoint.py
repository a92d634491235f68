"""Another name of `transformers_apt.embedded.tiny_checkpoint`, from before it moved there."""

import sys

from transformers_apt.embedded import tiny_checkpoint

sys.modules[__name__] = tiny_checkpoint
