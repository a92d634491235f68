"""Draw the pictures of the documentation from the bundled photos: `python docs/make_pictures.py`."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from torchvision.transforms.v2 import functional as tvF

from apt_code import PatchTokenizer
from apt_code.dropping import drop_repeats, inherited_pixels
from apt_code.visualization import draw_tiling, reconstruct, to_picture
from transformers_apt.models.settings import METHOD, RECOMMENDED

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


def slide() -> torch.Tensor:
    """A document and a photo in one: `(3, H, W)` uint8, sides multiples of 28 px."""
    page = Image.new("RGB", (1008, 700), "white")
    page.paste(Image.fromarray(data.chelsea()).resize((450, 300), Image.Resampling.BICUBIC), (504, 190))
    draw = ImageDraw.Draw(page)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    draw.text((56, 56), "Where the tokens go", "black", ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 44))
    lines = [
        "Text keeps every pixel.",
        "Fur and whiskers too.",
        "A plain wall is coarse.",
        "An empty margin is left out.",
    ]
    for row, line in enumerate(lines):
        draw.text((56, 200 + 56 * row), line, (40, 40, 40), ImageFont.truetype(fonts / "DejaVuSans.ttf", 26))
    draw.text((56, 600), "Figure 1: a cat, 2011.", (90, 90, 90), ImageFont.truetype(fonts / "DejaVuSans.ttf", 16))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1)


def recommended(name: str, image: torch.Tensor) -> None:
    """The recommended setting in three pictures side by side: what is sent, what is kept, what the model sees."""
    tolerances = {key: value for key, value in RECOMMENDED.items() if key.endswith("_tolerance")}
    options = {key: value for key, value in RECOMMENDED.items() if key not in (METHOD, *tolerances)}
    (tiling,) = PatchTokenizer(patch_selection_method=RECOMMENDED[METHOD], **options).select_layouts(image[None])
    (kept,) = drop_repeats(image[None], [tiling], PATCH_SIZE, **tolerances)
    inherited = inherited_pixels(image, tiling, PATCH_SIZE, **tolerances)
    full = tiling.grid[0] * tiling.grid[1]
    panels = (
        (f"sent: {full:,} patches, {full // 4:,} language tokens", to_picture(image)),
        (f"kept: {kept.num_patches:,} patches, {kept.num_language_tokens:,} language tokens",
         draw_tiling(image, kept, PATCH_SIZE, 2).resize((image.shape[2], image.shape[1]), Image.Resampling.LANCZOS)),
        ("what the model sees", to_picture(reconstruct(image, kept, PATCH_SIZE, inherited=inherited))),
    )  # fmt: skip
    width, height, gap, head = image.shape[2], image.shape[1], 20, 52
    sheet = Image.new("RGB", (3 * width + 2 * gap, height + head), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (text, picture) in enumerate(panels):
        draw.text((index * (width + gap) + 4, 6), text, fill="black", font=ImageFont.load_default(size=34))
        sheet.paste(picture, (index * (width + gap), head))
        draw.rectangle(
            [index * (width + gap), head, index * (width + gap) + width - 1, head + height - 1], outline="grey"
        )
    sheet.save(IMAGES / f"{name}.jpg", quality=85)


def main() -> None:
    """Write every picture."""
    IMAGES.mkdir(exist_ok=True)
    both = [{"importance_method": "entropy"}, {"importance_method": "upsample_mse"}]
    tiling("tiling_rocket", photo("rocket"), both[1:])
    tiling("tiling_page", photo("page"), both, scale=3)
    recommended("recommended", slide())


if __name__ == "__main__":
    main()
