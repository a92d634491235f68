"""Adaptive patches in vLLM: a plugin that vLLM finds by itself.

`plugin.py` is what vLLM calls at its start; it checks what it finds (`contracts.py`) before it registers anything. The
rest is imported by vLLM where it needs the models: what every family's processor and model do differently is in
`processing.py`, `modeling.py`, `tower.py` and `lora.py`, and `models/` has one short file per file of vLLM's.
"""
