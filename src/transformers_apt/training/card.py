"""The model card of a saved branch."""

import re

UNWRITTEN = "To be written by who trained it: data, settings, and what was measured before and after."
"""What stands in a new card in place of the figures."""

CARD = (
    """\
---
base_model: {base_model_name_or_path}
library_name: transformers
tags:
- transformers-apt
- adaptive-patches
---

# A branch for coarse patches

With it, the base model reads the coarse patches of transformers-apt at full resolution. Base patches do not pass it,
so answers at full resolution stay the base model's, to the bit.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers_apt import training

model = AutoModelForImageTextToText.from_pretrained("{base_model_name_or_path}")
processor = AutoProcessor.from_pretrained("{base_model_name_or_path}")
training.load(model, "THIS FOLDER", processor)
```

Family `{family}`, patches of {patch_size} px, width {width}, formula {formula}; saved by transformers-apt
{transformers_apt_version}.

## Training and evaluation

"""
    + UNWRITTEN
    + "\n"
)

BEGIN, END = "<!-- by transformers-apt practise, which writes it anew -->", "<!-- end -->"

MEASURED = """\
{steps} steps of `transformers-apt practise`, {batch} prompts each, every picture read {views} times under random
settings. The base model at full resolution was the teacher. On prompts that were held out, before → after:

{table}
"""
"""What `practise` writes there."""


def complete(card: str, **measured: object) -> str:
    """A card with the figures of `MEASURED`, in place of older ones; the same card where somebody else wrote them."""
    found = f"{BEGIN}\n{MEASURED.format(**measured)}{END}"
    return re.sub(f"{BEGIN}.*?{END}|{re.escape(UNWRITTEN)}", lambda _: found, card, count=1, flags=re.DOTALL)
