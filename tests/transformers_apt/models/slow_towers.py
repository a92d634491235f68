"""Each family's vision tower as one would write it down: one image, one patch, one head at a time, in float64.

Linear layers, norms and convolutions are upstream's. Places, windows, attention, activations, the table of learned
positions and what a merger reads are worked out here, from the layout and by the formulas.
"""

import math

import torch

WINDOW_PX = 112


def rotated(vector, place, inv_freq):
    """One head's query or key, turned by hand: channel pairs (i, i + half), row angles first, then column angles."""
    angles = torch.cat([place[0] * inv_freq, place[1] * inv_freq])
    half = len(vector) // 2
    first, second = vector[:half], vector[half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin])


def centre(patch):
    row, col, size = patch
    return row + (size - 1) / 2, col + (size - 1) / 2


def order_of_windows(windows, grid):
    """Of the windows of an image's patches: upstream's where it is fully split, else shorter ones first."""
    mixed = len(windows) < grid[0] * grid[1]
    return sorted(set(windows), key=lambda window: (windows.count(window) if mixed else 0, window))


def window_of(patch, patch_size):
    """By the place of the patch's top-left pixel."""
    row, col, _ = patch
    return row * patch_size // WINDOW_PX, col * patch_size // WINDOW_PX


def attention(attn, hidden, patches, groups, heads):
    """Every patch attends to the patches of its group."""
    head_dim = hidden.shape[1] // heads
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float64) / (head_dim // 2))
    query, key, value = attn.qkv(hidden).view(len(patches), 3, heads, head_dim).unbind(1)
    mixed = torch.zeros_like(query)
    for head in range(heads):
        queries, keys = (
            [rotated(vector[head], centre(patch), inv_freq) for vector, patch in zip(part, patches, strict=True)]
            for part in (query, key)
        )
        for i, own in enumerate(groups):
            seen = [j for j, other in enumerate(groups) if other == own]
            scores = torch.stack([queries[i] @ keys[j] for j in seen]) / math.sqrt(head_dim)
            mixed[i, head] = torch.softmax(scores, dim=0) @ value[seen, head]
    return attn.proj(mixed.flatten(1))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def silu(x):
    return x * torch.sigmoid(x)


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def mlp(family, module, x):
    if family == "qwen2_vl":
        return module.fc2(quick_gelu(module.fc1(x)))
    if family == "qwen2_5_vl":
        return module.down_proj(silu(module.gate_proj(x)) * module.up_proj(x))
    return module.linear_fc2(tanh_gelu(module.linear_fc1(x)))


def learned_position(table, patch, grid):
    """The table is stretched over the image, corner on corner, and read at the patch's centre: every entry of the
    table counts as much as it is near, and none that is a whole entry away."""
    side = math.isqrt(len(table))
    y, x = (place / (cells - 1) * (side - 1) for place, cells in zip(centre(patch), grid, strict=True))
    found = torch.zeros_like(table[0])
    for i in range(side):
        for j in range(side):
            near = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
            if near:
                found = found + near * table[i * side + j]
    return found


def merged(family, merger, hidden, patches):
    """One language token for four base patches, or for one coarse patch read four times."""
    tokens, index = [], 0
    while index < len(patches):
        if patches[index][2] == 1:
            four, index = hidden[index : index + 4], index + 4
        else:
            four, index = hidden[index].expand(4, -1), index + 1
        if family in ("qwen2_vl", "qwen2_5_vl"):
            first, _, second = merger.mlp
            tokens.append(second(gelu(first(merger.ln_q(four).flatten()))))
        else:
            joined = merger.norm(four.flatten()) if merger.use_postshuffle_norm else merger.norm(four).flatten()
            tokens.append(merger.linear_fc2(gelu(merger.linear_fc1(joined))))
    return torch.stack(tokens)


def slow_tower(family, visual, rows, layout):
    """One image: the last hidden states in the order of upstream's tower, the tokens, and DeepStack's features."""
    family = family.removesuffix("_moe")
    patches = [tuple(patch) for patch in layout.patches.tolist()]
    hidden = visual.patch_embed(rows)
    if family in ("qwen3_vl", "qwen3_5"):
        table = visual.pos_embed.weight
        hidden = hidden + torch.stack([learned_position(table, patch, layout.grid) for patch in patches])
    windows = [window_of(patch, visual.config.patch_size) for patch in patches]
    features = []
    for number, block in enumerate(visual.blocks):
        windowed = family == "qwen2_5_vl" and number not in visual.config.fullatt_block_indexes
        groups = windows if windowed else [0] * len(patches)
        hidden = hidden + attention(block.attn, block.norm1(hidden), patches, groups, visual.config.num_heads)
        hidden = hidden + mlp(family, block.mlp, block.norm2(hidden))
        if family == "qwen3_vl" and number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            features.append(merged(family, merger, hidden, patches))
    tokens = merged(family, visual.merger, hidden, patches)
    if family == "qwen2_5_vl":  # they are left in the order of the windows
        places = {window: place for place, window in enumerate(order_of_windows(windows, layout.grid))}
        hidden = hidden[sorted(range(len(patches)), key=lambda index: (places[windows[index]], index))]
    return hidden, tokens, features
