"""The compiled form of `tiling`, over maps on the CPU; tests hold it equal to `PatchLayout.from_masks_of_batch`.

Axis legend: `b` images of one shape, `n` patches of all of them, `rows cols` cells of one scale, `h w` base grid.
"""

from __future__ import annotations

from apt_code.compilation import compiled


@compiled
def canonical_patches(maps, whole, pad_value, patches, counts):  # type: ignore[no-untyped-def]
    """The tiling that keeps cells whole where asked to, largest first, in canonical order.

    Args:
        maps: tuple of `(b, rows, cols)` float32 importance maps, finest first.
        whole: tuple of `(b, rows, cols)` bool, one per coarse scale: where a rule would keep a cell whole.
        pad_value: the importance from which on a cell sticks out of the image, and is split.
        patches: `(at least n, 3)` int64, written: `(row, col, size)` of all images.
        counts: `(b,)` int64, written: how many each image has.
    """
    batch, height, width = maps[0].shape
    n = 0
    for image in range(batch):
        before = n
        for row in range(0, height, 2):  # merge cells in raster order
            for col in range(0, width, 2):
                scale = len(maps) - 1
                while scale > 0:
                    r, c = row >> scale, col >> scale
                    if whole[scale - 1][image, r, c] and maps[scale][image, r, c] < pad_value:
                        break
                    scale -= 1
                if scale > 0:
                    if row % (1 << scale) == 0 and col % (1 << scale) == 0:
                        patches[n, 0], patches[n, 1], patches[n, 2] = row, col, 1 << scale
                        n += 1
                    continue
                for y in range(row, min(row + 2, height)):
                    for x in range(col, min(col + 2, width)):
                        patches[n, 0], patches[n, 1], patches[n, 2] = y, x, 1
                        n += 1
        counts[image] = n - before
