"""Practice on coarse patches that cannot change an answer at full resolution: the zero-initialised branch.

`models/branch.py` says what a branch computes. The images' coarse patches have to come at full resolution as well:
`processor.image_processor.patch_parts = True`.
"""

from transformers_apt.training.branch import add_branch, load, remove, save

__all__ = ["add_branch", "load", "remove", "save"]
