"""Another name of `transformers_apt.engine.startup`, from before it moved there: a `.pth` file may still name it."""

import sys

from transformers_apt.engine import startup

sys.modules[__name__] = startup
