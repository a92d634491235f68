"""Slow, obvious references for `apt_code`, written for the tests, and the random material that feeds both.

Pixels are Python integers or fractions and every sum is exact, so a reference has no rounding of its own until its
last line. A tiling is a set of `(row, col, size)` in base cells. Nothing here imports `apt_code`.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

import numpy as np
import torch

PAD = 1e6

Patch = tuple[int, int, int]
Grid = tuple[int, int]


# -------------------------------------------------------------------- importance maps


def exact_pixels(image: torch.Tensor) -> list:
    """`(c, H, W)` tensor -> nested lists of exact numbers."""
    if not image.is_floating_point():
        return image.tolist()
    return [[[Fraction(value) for value in row] for row in channel] for channel in image.double().tolist()]


def grey_levels(pixels: list) -> list:
    """0.2989 R + 0.5870 G + 0.1140 B, exactly, in ten-thousandths."""
    red, green, blue = pixels if len(pixels) == 3 else pixels * 3
    return [
        [2989 * r + 5870 * g + 1140 * b for r, g, b in zip(*rows, strict=True)]
        for rows in zip(red, green, blue, strict=True)
    ]


def importance_map(image: torch.Tensor, side: int, cell_value: Callable[[list, int, int], float]) -> np.ndarray:
    """One value per cell of `side` pixels; cells that stick out get `PAD`."""
    height, width = image.shape[-2:]
    result = np.full((math.ceil(height / side), math.ceil(width / side)), PAD, dtype=np.float64)
    pixels = exact_pixels(image)
    for row, col in np.ndindex(*result.shape):
        if (row + 1) * side <= height and (col + 1) * side <= width:
            result[row, col] = cell_value(pixels, row * side, col * side)
    return result


def entropy_of_cell(pixels: list, top: int, left: int, side: int, bins: int) -> float:
    """Shannon entropy in bits of the grey level histogram of one cell."""
    grey = grey_levels([[row[left : left + side] for row in channel[top : top + side]] for channel in pixels])
    counts: Counter[int] = Counter()
    for level in itertools.chain.from_iterable(grey):
        counts[min(max(math.floor(Fraction(level) * bins / 2_550_000), 0), bins - 1)] += 1
    area = side * side
    return math.fsum(-count / area * math.log2(count / area) for count in counts.values())


def laplacian_of_cell(pixels: list, top: int, left: int, side: int) -> float:
    """Mean absolute 4-neighbour Laplacian of the grey level; the image's border is repeated."""
    grey = grey_levels(pixels)
    height, width = len(grey), len(grey[0])

    def at(row: int, col: int):
        return grey[min(max(row, 0), height - 1)][min(max(col, 0), width - 1)]

    total = Fraction(0)
    for row, col in itertools.product(range(top, top + side), range(left, left + side)):
        around = at(row - 1, col) + at(row + 1, col) + at(row, col - 1) + at(row, col + 1)
        total += abs(around - 4 * at(row, col))
    return float(total / (10_000 * side * side))


def upsampling_errors_of_cell(pixels: list, top: int, left: int, side: int, size: int) -> list[Fraction]:
    """One cell's pixels less its area average scaled back up, bilinear, edges clamped to the cell; all channels."""
    coarse_side = side // size
    # per output pixel: its centre in coarse pixels, the two coarse pixels around it, and how far it is between them
    taps = []
    for place in range(side):
        centre = Fraction(2 * place + 1, 2 * size) - Fraction(1, 2)
        low = math.floor(centre)
        taps.append((max(low, 0), min(low + 1, coarse_side - 1), centre - low))
    errors = []
    for channel in pixels:
        coarse = [
            [
                Fraction(sum(sum(row[left + n * size : left + (n + 1) * size]) for row in rows), size * size)
                for n in range(coarse_side)
            ]
            for m in range(coarse_side)
            for rows in [channel[top + m * size : top + (m + 1) * size]]
        ]
        for row, (up, down, dy) in enumerate(taps):
            # one row between two coarse rows, then its pixels
            between = [(1 - dy) * a + dy * b for a, b in zip(coarse[up], coarse[down], strict=True)]
            for col, (west, east, dx) in enumerate(taps):
                restored = (1 - dx) * between[west] + dx * between[east]
                errors.append(channel[top + row][left + col] - restored)
    return errors


def upsample_mse_of_cell(pixels: list, top: int, left: int, side: int, size: int) -> float:
    """Mean squared error of one cell against its area average scaled back up."""
    errors = upsampling_errors_of_cell(pixels, top, left, side, size)
    return float(sum(error**2 for error in errors) / len(errors))


def upsample_l4_of_cell(pixels: list, top: int, left: int, side: int, size: int) -> float:
    """Root of the mean fourth power of the same errors, each rounded to sixteenths of a grey level, halves upwards."""
    errors = upsampling_errors_of_cell(pixels, top, left, side, size)
    sixteenths = [math.floor(16 * abs(error) + Fraction(1, 2)) for error in errors]
    return math.sqrt(Fraction(sum(value**4 for value in sixteenths), 16**4 * len(errors)))


# -------------------------------------------------------------------- selection, one image at a time


def tile(maps: Mapping[int, np.ndarray], whole: Callable[[int, int, int], bool]) -> set[Patch]:
    """Top down: a complete cell stays whole where `whole(side, row, col)` says so, else its children decide."""
    sides = sorted(maps)

    def visit(level: int, row: int, col: int) -> Iterator[Patch]:
        side = sides[level]
        if level == 0 or (maps[side][row, col] < PAD and whole(side, row, col)):
            yield row * 2**level, col * 2**level, 2**level
            return
        rows, cols = maps[sides[level - 1]].shape
        for child_row, child_col in itertools.product((2 * row, 2 * row + 1), (2 * col, 2 * col + 1)):
            if child_row < rows and child_col < cols:
                yield from visit(level - 1, child_row, child_col)

    top = len(sides) - 1
    return {patch for row, col in np.ndindex(*maps[sides[top]].shape) for patch in visit(top, row, col)}


def select_v1(maps: Mapping[int, np.ndarray], thresholds: list[float]) -> set[Patch]:
    threshold = dict(zip(sorted(maps)[1:], thresholds, strict=True))
    return tile(maps, lambda side, row, col: maps[side][row, col] < threshold[side])


def select_v2(maps: Mapping[int, np.ndarray], alpha: float) -> set[Patch]:
    for side in sorted(maps, reverse=True)[:-1]:
        complete = [value for value in maps[side].flatten().tolist() if value < PAD]
        if complete:
            threshold = alpha * (math.fsum(complete) / len(complete))
            break
    else:
        return tile(maps, lambda side, row, col: False)
    return tile(maps, lambda side, row, col: maps[side][row, col] < threshold)


def select_budget(maps: Mapping[int, np.ndarray], alpha: float, coarse_scores: bool) -> tuple[set[Patch], int]:
    """Greedy, one split at a time, with a heap of the cells that could be split next. Also returns the splits made."""
    sides = sorted(maps)

    def score(level: int, row: int, col: int) -> Fraction:
        if coarse_scores:
            own = Fraction(float(maps[sides[level]][row, col]))
        else:
            size = 2**level
            cells = maps[sides[0]][row * size : (row + 1) * size, col * size : (col + 1) * size]
            own = sum(Fraction(value) for value in cells.flatten().tolist()) / size**2
        if level == 1:
            return own
        children = itertools.product((2 * row, 2 * row + 1), (2 * col, 2 * col + 1))
        return max(own, *(score(level - 1, *child) for child in children))

    return _split_greedily(maps, alpha, score)


def select_joint(
    maps: Mapping[int, np.ndarray], alpha: float, coarse_scores: bool, token_price: int
) -> tuple[set[Patch], int]:
    """As `select_budget`, by gain per patch and language token: every set of children is tried."""
    sides = sorted(maps)

    def loss(level: int, row: int, col: int) -> Fraction:
        if level == 0:
            return Fraction(0)
        size = 2**level
        if coarse_scores:
            return Fraction(float(maps[sides[level]][row, col])) * size**2
        cells = maps[sides[0]][row * size : (row + 1) * size, col * size : (col + 1) * size]
        return sum(Fraction(value) for value in cells.flatten().tolist())

    def children(row: int, col: int) -> list[tuple[int, int]]:
        return list(itertools.product((2 * row, 2 * row + 1), (2 * col, 2 * col + 1)))

    @functools.cache
    def best(level: int, row: int, col: int) -> tuple[Fraction, int]:
        """Gain and cost of the cheapest of the best sets of splits that begin with this cell's."""
        gain = loss(level, row, col) - sum(loss(level - 1, *child) for child in children(row, col))
        cost = 3 + (3 * token_price if level > 1 else 0)
        found = [(gain, cost)]
        below = [best(level - 1, *child) for child in children(row, col)] if level > 1 else []
        for size in range(1, len(below) + 1):
            for chosen in itertools.combinations(below, size):
                found.append((gain + sum(g for g, _ in chosen), cost + sum(c for _, c in chosen)))
        return max(found, key=lambda pair: (pair[0] / pair[1], -pair[1]))

    def score(level: int, row: int, col: int) -> Fraction:
        gain, cost = best(level, row, col)
        own = gain / cost
        whole = level + 1 < len(sides) and maps[sides[level + 1]][row // 2, col // 2] < PAD
        return min(own, score(level + 1, row // 2, col // 2)) if whole else own

    return _split_greedily(maps, alpha, score)


def _split_greedily(
    maps: Mapping[int, np.ndarray], alpha: float, score: Callable[[int, int, int], Fraction]
) -> tuple[set[Patch], int]:
    def candidate(level: int, row: int, col: int) -> tuple:
        return -score(level, row, col), -level, row, col  # best first, then coarser, then raster order

    sides = sorted(maps)
    tiling = tile(maps, lambda side, row, col: True)
    heap = [candidate(size.bit_length() - 1, row // size, col // size) for row, col, size in tiling if size > 1]
    heapq.heapify(heap)
    budget = round(alpha * maps[sides[0]].size)
    splits = 0
    while heap and len(tiling) + 3 <= budget:
        _, negative_level, row, col = heapq.heappop(heap)
        level = -negative_level
        size = 2**level
        half = size // 2
        tiling.remove((row * size, col * size, size))
        for down, right in itertools.product((0, 1), (0, 1)):
            tiling.add((row * size + down * half, col * size + right * half, half))
            if level > 1:
                heapq.heappush(heap, candidate(level - 1, 2 * row + down, 2 * col + right))
        splits += 1
    return tiling, splits


def tiling_of_masks(masks: Mapping[int, torch.Tensor]) -> set[Patch]:
    """The patches that one image's masks `{side: (rows, cols)}` switch on."""
    base = min(masks)
    return {
        (row * (side // base), col * (side // base), side // base)
        for side, mask in masks.items()
        for row, col in mask.nonzero().tolist()
    }


# -------------------------------------------------------------------- layouts


def times_covered(patches: list[Patch] | set[Patch], grid: Grid) -> Counter[tuple[int, int]]:
    """How often each base cell is covered, cells outside the grid included."""
    covered: Counter[tuple[int, int]] = Counter(dict.fromkeys(np.ndindex(*grid), 0))
    for row, col, size in patches:
        covered.update(itertools.product(range(row, row + size), range(col, col + size)))
    return covered


def canonical(patches: list[Patch] | set[Patch]) -> list[Patch]:
    """Raster order of the 2×2 merge cell of the top-left corner; row-major inside it."""
    return sorted(patches, key=lambda patch: (patch[0] // 2, patch[1] // 2, patch[0] % 2, patch[1] % 2))


def is_layout(patches: list[Patch], grid: Grid, whole: bool = True) -> bool:
    """Whether a list of patches is a tiling of the grid in canonical order; if not `whole`, of some of its merge
    cells, the first among them."""
    if any(size not in (1, 2, 4, 8, 16, 32) or row % size or col % size for row, col, size in patches):
        return False
    covered = times_covered(patches, grid)
    if not whole and all(covered.get(cell) for cell in ((0, 0), (0, 1), (1, 0), (1, 1))):
        merge_cells = [[(row + i, col + j) for i in range(2) for j in range(2)] for row, col in covered]
        for cells in (cells for cells in merge_cells if cells[0][0] % 2 == cells[0][1] % 2 == 0):
            if not any(covered.get(cell) for cell in cells):
                covered.update(dict.fromkeys(cells, 1))
    return (
        all(covered[cell] == 1 for cell in covered)
        and len(covered) == math.prod(grid)
        and (patches == canonical(patches))
    )


def language_tokens(patches: list[Patch]) -> list[tuple[tuple[int, int], list[int]]]:
    """Per language token, its merge cell and the four tower rows it is made of; patches in canonical order."""
    tokens: list[tuple[tuple[int, int], list[int]]] = []
    for index, (row, col, size) in enumerate(patches):
        if size > 1:
            tokens.append(((row // 2, col // 2), [index] * 4))
        elif row % 2 == 0 and col % 2 == 0:
            tokens.append(((row // 2, col // 2), [index]))
        else:
            tokens[-1][1].append(index)
    return tokens


# -------------------------------------------------------------------- random material


def random_tiling(grid: Grid, num_scales: int, chance: float, seed: int) -> set[Patch]:
    """Every complete cell stays whole with probability `chance`, from the coarsest down."""
    rng = random.Random(seed)
    h, w = grid
    maps = {}
    for size in (2**scale for scale in range(num_scales)):
        rows, cols = np.arange(math.ceil(h / size)) + 1, np.arange(math.ceil(w / size)) + 1
        maps[size] = np.where((rows[:, None] * size <= h) & (cols * size <= w), 0.0, PAD)
    return tile(maps, lambda side, row, col: rng.random() < chance)


def random_maps(height: int, width: int, patch: int, num_scales: int, batch: int, levels: int, seed: int) -> dict:
    """Importance maps of images of `height × width` px; few `levels` give many ties, 0 gives none.

    Values are multiples of 2⁻¹⁰ below 8, so that sums and means of them are exact in float64.
    """
    rng = np.random.default_rng(seed)
    maps = {}
    for side in (patch * 2**scale for scale in range(num_scales)):
        shape = (batch, math.ceil(height / side), math.ceil(width / side))
        values = rng.integers(0, 8192, shape) / 1024 if levels == 0 else rng.integers(0, levels, shape) / 2
        values[:, height // side :] = PAD
        values[:, :, width // side :] = PAD
        maps[side] = torch.from_numpy(values).float()
    return maps


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """`(c, H, W)` uint8 with flat, smooth and noisy parts, so that every range of entropy occurs."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    image = np.stack([np.roll(ramp, 7 * channel) for channel in range(channels)])
    image[:, : height // 2, : width // 3] = rng.integers(0, 256)
    noisy = image[:, height // 3 :, width // 2 :]
    noisy[...] = rng.integers(0, 256, noisy.shape)
    return torch.from_numpy(image.astype(np.uint8))


def pictures(height: int, width: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    """`(batch, c, H, W)`, each another picture."""
    return torch.stack([picture(height, width, channels, seed) for seed in range(batch)])


def assert_same_maps(got: dict[int, torch.Tensor], expected: dict[int, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for side in got:
        assert torch.equal(got[side], expected[side]), f"{side} px"
