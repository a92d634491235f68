"""How much of a picture two pretrained readers still read under each setting: `python -m benchmarks.reading`."""
