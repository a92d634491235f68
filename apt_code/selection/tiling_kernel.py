"""The compiled form of `tiling`, over maps on the CPU; tests hold it equal to `PatchLayout.from_masks_of_batch`.

Axis legend: `b` images of one shape, `n` patches of all of them, `rows cols` cells of one scale, `h w` base grid.
"""

from __future__ import annotations

from apt_code.compilation import compiled


@compiled
def canonical_patches(whole, height, width, patches, counts):  # type: ignore[no-untyped-def]
    """The tiling that keeps cells whole where asked to, largest first, in canonical order.

    Args:
        whole: tuple of `(b, rows, cols)` bool, one per coarse scale, finest first: where a cell inside the image is to
            stay whole.
        height, width: of the base grid.
        patches: `(at least n, 3)` int64, written: `(row, col, size)` of all images.
        counts: `(b,)` int64, written: how many each image has.
    """
    n = 0
    for image in range(counts.shape[0]):
        before = n
        for row in range(0, height, 2):  # merge cells in raster order
            for col in range(0, width, 2):
                scale = len(whole)
                while scale > 0 and not whole[scale - 1][image, row >> scale, col >> scale]:
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
