"""The model card of a saved branch."""

CARD = """\
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

To be written by who trained it: data, settings, and what was measured before and after.
"""
