"""Draw the pictures of the documentation from the bundled photos: `python docs/make_pictures.py`."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from torchvision.transforms.v2 import functional as tvF

from apt_code import PatchTokenizer
from apt_code.visualization import draw_tiling, reconstruct, to_picture

IMAGES = Path(__file__).parent / "images"
PATCH_SIZE = 14


def tiling(name: str, image: torch.Tensor, settings: list[dict[str, str]], scale: int = 2) -> None:
    """One row per setting: the photo with its tiling, and what the model sees."""
    rows = []
    for setting in settings:
        tokenizer = PatchTokenizer(patch_selection_method="budget", alpha=0.3, **setting)
        layout = tokenizer.select_layouts(image[None])[0]
        tiled = draw_tiling(image, layout, PATCH_SIZE, scale)
        seen = to_picture(reconstruct(image, layout, PATCH_SIZE)).resize(tiled.size, Image.Resampling.NEAREST)
        text = (
            f"{setting['importance_method']}, budget 0.3: {layout.num_patches} of {layout.grid[0] * layout.grid[1]} "
            f"vision patches, {layout.num_language_tokens} language tokens"
        )
        rows.append((text, tiled, seen))
    width, height = rows[0][1].size
    gap, head = 16, 44
    sheet = Image.new("RGB", (2 * width + gap, len(rows) * (height + head) + (len(rows) - 1) * gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=26)
    for index, (text, tiled, seen) in enumerate(rows):
        top = index * (height + head + gap)
        draw.text((4, top + 6), text, fill="black", font=font)
        draw.text((width + gap + 4, top + 6), "what the model sees", fill="black", font=font)
        sheet.paste(tiled, (0, top + head))
        sheet.paste(seen, (width + gap, top + head))
    sheet.save(IMAGES / f"{name}.jpg", quality=85)


def photo(name: str) -> torch.Tensor:
    """A bundled photo as `(3, H, W)` uint8, resized to multiples of 28 px."""
    image = torch.from_numpy(getattr(data, name)().copy())
    image = image.expand(3, -1, -1) if image.ndim == 2 else image[..., :3].permute(2, 0, 1)
    size = [round(side / 28) * 28 for side in image.shape[-2:]]
    return tvF.resize(image, size, interpolation=tvF.InterpolationMode.BICUBIC)


def main() -> None:
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    both = [{"importance_method": "entropy"}, {"importance_method": "upsample_mse"}]
    tiling("tiling_rocket", photo("rocket"), both[1:])
    tiling("tiling_page", photo("page"), both, scale=3)


if __name__ == "__main__":
    main()
