"""Coverage-guided fuzzing: from a file's bytes to a layout, and back through `unpack`.

    pip install atheris; python tests/fuzz/fuzz_layout.py -max_total_time=300

Not a test: atheris runs until it finds something, or is told to stop. A find goes into `test_bad_images.py` or
`test_bad_layouts.py`.
"""

import io
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["apt_code", "transformers_apt", "PIL"]):
    import numpy as np
    import torch
    from PIL import Image
    from transformers import Qwen2VLImageProcessor, Qwen2VLImageProcessorPil

    import transformers_apt
    from apt_code import InvalidLayoutError, PatchLayout

METHODS = ("v1", "v2", "budget", "joint")
MAPS = ("entropy", "laplacian", "upsample_l4", "upsample_mse")


def decode_to_layout(data: atheris.FuzzedDataProvider) -> None:
    """A damaged file, or raw pixels, with any settings: refused, or tiled exactly."""
    backend = (Qwen2VLImageProcessor, Qwen2VLImageProcessorPil)[data.ConsumeIntInRange(0, 1)]
    settings = {
        "patch_selection_method": METHODS[data.ConsumeIntInRange(0, 3)],
        "importance_method": MAPS[data.ConsumeIntInRange(0, 2)],
        "alpha": data.ConsumeProbability(),
    }
    if data.ConsumeBool():
        height, width = data.ConsumeIntInRange(1, 90), data.ConsumeIntInRange(1, 90)
        raw = data.ConsumeBytes(height * width * 3).ljust(height * width * 3, b"\0")
        image = np.frombuffer(raw, dtype=np.uint8).reshape(height, width, 3)
    else:
        try:
            image = Image.open(io.BytesIO(data.ConsumeBytes(sys.maxsize)))
            if image.width * image.height > 10**6:
                return
            image.load()
        except Exception:
            return  # Pillow's to refuse
    try:
        found = backend()(images=image, return_tensors="pt", **settings)
    except ValueError as refusal:
        assert str(refusal)
        return
    (layout,) = PatchLayout.unpack(found["image_patch_layout"], found["image_grid_thw"])
    assert layout.num_patches == len(found["pixel_values"]) and bool(found["pixel_values"].isfinite().all())


def unpack(data: atheris.FuzzedDataProvider) -> None:
    """Any numbers as a layout: refused, or a tiling of the grid."""
    h, w = 2 * data.ConsumeIntInRange(1, 6), 2 * data.ConsumeIntInRange(1, 6)
    rows = [
        [data.ConsumeIntInRange(-1, 12), data.ConsumeIntInRange(-1, 12), data.ConsumeIntInRange(0, 5)]
        for _ in range(data.ConsumeIntInRange(0, 40))
    ]
    packed = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
    try:
        PatchLayout.unpack(packed, [(1, h, w)])
    except InvalidLayoutError:
        return
    covered = np.zeros((h, w), dtype=int)
    for row, col, size in rows:
        covered[row : row + size, col : col + size] += 1
    assert (covered == 1).all() and min(min(row[:2]) for row in rows) >= 0


def one_input(raw: bytes) -> None:
    """atheris's entry."""
    data = atheris.FuzzedDataProvider(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (decode_to_layout if data.ConsumeBool() else unpack)(data)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers_apt.apply()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
