"""Practice on coarse patches that cannot change an answer at full resolution: the zero-initialised branch.

`models/branch.py` says what a branch computes. The images' coarse patches have to come at full resolution as well, for
which the processor is told.
"""

from transformers_apt.training.branch import FOLDER, add_branch, load, remove, save

__all__ = ["FOLDER", "add_branch", "load", "remove", "save"]
