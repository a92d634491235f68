"""Qwen2-VL's forward pass for pictures of one size, written for training a small model on one CPU core or a GPU.

It computes what `Qwen2VLForConditionalGeneration` computes, with the same parameters (a test compares them); the
difference is speed: attention runs batched over pictures, products run in bfloat16, both frames of a still picture go
through one product, and the softmax over the vocabulary is taken at answer tokens only.

Axes: b picture, n patches, m merged cells, l tokens, e vision channels, d text channels, k heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.quality.collate import Batch

if TYPE_CHECKING:
    from transformers import Qwen2VLForConditionalGeneration

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Weights = dict[str, Tensor]


def weights(model: Qwen2VLForConditionalGeneration, dtype: torch.dtype) -> Weights:
    """The parameters by name in `dtype`; gradients flow back to the model's own."""
    return {name: parameter.to(dtype) for name, parameter in model.named_parameters()}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; cos and sin hold each frequency once."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _uniform_centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(n, 2) rows and columns of a uniform grid in canonical order."""
    height, width = grid
    row, col = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    # (h/2, 2, w/2, 2) -> (h/2, w/2, 2, 2)
    row, col = (x.reshape(height // 2, 2, width // 2, 2).transpose(1, 2).reshape(-1) for x in (row, col))
    return torch.stack([row, col], -1).float()


def _vision_angles(centres: Tensor, head_dim: int, theta: float) -> Tensor:
    """(..., n, 2) centres -> (..., n, head_dim/2) angles of 2-D RoPE: first those of the rows, then the columns."""
    half = head_dim // 2
    frequency = 1.0 / theta ** (torch.arange(0, half, 2, device=centres.device).float() / half)
    return (centres[..., None] * frequency).flatten(-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as two batched products: in bfloat16 on a CPU faster than the fused kernel, backward above all."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))  # (b, k, n, n)
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), v)


def _vision_block(
    x: Tensor, cos: Tensor, sin: Tensor, p: list[Tensor], heads: int, mask: Tensor | None = None
) -> Tensor:
    n1w, n1b, qkv_w, qkv_b, out_w, out_b, n2w, n2b, up_w, up_b, down_w, down_b = p
    b, n, e = x.shape
    y = F.linear(F.layer_norm(x, (e,), n1w, n1b, 1e-6), qkv_w, qkv_b)
    q, k, v = y.view(b, n, 3, heads, e // heads).permute(2, 0, 3, 1, 4).unbind(0)  # each (b, k, n, e/k)
    y = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, mask)
    x = x + F.linear(y.transpose(1, 2).reshape(b, n, e), out_w, out_b)
    y = F.linear(F.layer_norm(x, (e,), n2w, n2b, 1e-6), up_w, up_b)
    return x + F.linear(y * torch.sigmoid(1.702 * y), down_w, down_b)


_VISION_NAMES = [
    f"{part}.{kind}"
    for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]
_TEXT_NAMES = [
    "input_layernorm.weight",
    *[f"self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")],
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    *[f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")],
]


def tower(w: Weights, config, batch: Batch, proportional: bool = False) -> Tensor:
    """(b, n, 588) patch rows -> (b, m, d) merged tokens, or (b, t, d) of mixed-scale pictures.

    `proportional` lets a coarse patch weigh in attention as the 14-px patches it stands for (a trial, see trials.py).
    """
    vision, kernel = config.vision_config, w["model.visual.patch_embed.proj.weight"]
    patches, mixed = batch.patches, batch.mixed
    b, n, _ = patches.shape
    dtype, device = kernel.dtype, patches.device
    mean, std = torch.tensor(_MEAN, device=device), torch.tensor(_STD, device=device)
    scale, shift = 1 / 255 / std, -mean / std
    pixels = patches.to(torch.float32).view(b, n, 3, -1) * scale[:, None] + shift[:, None]
    # the frames of a still picture are equal: (e, c, t, p, p) -> (e, c·p·p)
    x = F.linear(pixels.to(dtype).flatten(2), kernel.sum(2).flatten(1))
    head_dim = vision.embed_dim // vision.num_heads
    centres = (
        _uniform_centres(batch.grid, device) if mixed is None else mixed.centres[:, None]
    )  # (n, 2) or (b, 1, n, 2)
    angles = _vision_angles(centres, head_dim, vision.rope_parameters["rope_theta"])
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    mask = None
    if mixed is not None and (proportional or not mixed.valid.all()):
        weight = 2 * mixed.sizes.float().log() if proportional else torch.zeros((), device=device)
        mask = torch.where(mixed.valid, weight, -1e4)[:, None, None].to(dtype)  # (b, 1, 1, n)
    for index in range(vision.depth):
        p = [w[f"model.visual.blocks.{index}.{name}"] for name in _VISION_NAMES]
        x = _vision_block(x, cos, sin, p, vision.num_heads, mask)
    name = "model.visual.merger."
    x = F.layer_norm(x, x.shape[-1:], w[name + "ln_q.weight"], w[name + "ln_q.bias"], 1e-6)
    if mixed is None:
        x = x.view(b, n // 4, -1)
    else:  # (b, n, e) -> (b, t, 4, e): a coarse patch stands in all four places
        x = x[torch.arange(b, device=device)[:, None, None], mixed.sources].flatten(2)
    x = F.gelu(F.linear(x, w[name + "mlp.0.weight"], w[name + "mlp.0.bias"]))
    return F.linear(x, w[name + "mlp.2.weight"], w[name + "mlp.2.bias"])


def _text_angles(positions: Tensor, head_dim: int, rope: dict) -> Tensor:
    """(3, b, l) positions -> (b, 1, l, head_dim/2) angles, frequencies shared out between time, row and column."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    frequency = 1.0 / rope["rope_theta"] ** exponents
    parts = (positions[..., None].float() * frequency).split(rope["mrope_section"], -1)
    return torch.cat([part[index % 3] for index, part in enumerate(parts)], -1)[:, None]


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def _text_block(
    x: Tensor, cos: Tensor, sin: Tensor, p: list[Tensor], heads: int, kv: int, eps: float, mask: Tensor
) -> Tensor:
    n1, qw, qb, kw, kb, vw, vb, ow, n2, gate, up, down = p
    b, length, _ = x.shape
    y = _rms(x, n1, eps)
    q = F.linear(y, qw, qb).view(b, length, heads, -1).transpose(1, 2)
    k = F.linear(y, kw, kb).view(b, length, kv, -1).transpose(1, 2)
    v = F.linear(y, vw, vb).view(b, length, kv, -1).transpose(1, 2)
    k, v = (z.repeat_interleave(heads // kv, 1) if heads != kv else z for z in (_rotate(k, cos, sin), v))
    y = _attend(_rotate(q, cos, sin), k, v, mask)
    x = x + F.linear(y.transpose(1, 2).reshape(b, length, -1), ow)
    y = _rms(x, n2, eps)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def answer_logits(
    w: Weights, config, merged: Tensor, batch: Batch, proportional: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) in float32 and the tokens they should name, over the whole batch.

    `proportional` lets the token of a 56-px patch weigh as the four it stands for (a trial, see trials.py).
    """
    text, name = config.text_config, "model.language_model."
    if batch.ids is None or batch.labels is None or batch.positions is None:
        raise ValueError("the batch has no questions: collate it with a prompter")
    x = F.embedding(batch.ids, w[name + "embed_tokens.weight"])
    if batch.mixed is None:
        start = int((batch.ids[0] == config.image_token_id).nonzero()[0])
        x = torch.cat([x[:, :start], merged, x[:, start + merged.shape[1] :]], 1)
    else:
        places = (batch.ids == config.image_token_id).nonzero(as_tuple=True)
        x = x.index_put(places, merged[batch.mixed.tokens])
    length = batch.ids.shape[1]
    mask = torch.full((length, length), -1e4, dtype=x.dtype, device=x.device).triu(1)
    if proportional and batch.mixed is not None:
        sizes = batch.mixed.sizes.gather(1, batch.mixed.sources[..., 0])[batch.mixed.tokens]
        weight = torch.zeros(batch.ids.shape, device=x.device).index_put(
            places, 2 * (sizes.float() / 2).clamp(min=1).log()
        )
        mask = mask + weight[:, None, None].to(x.dtype)  # (b, 1, l, l)
    angles = _text_angles(batch.positions, text.hidden_size // text.num_attention_heads, text.rope_parameters)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    for index in range(text.num_hidden_layers):
        p = [w[f"{name}layers.{index}.{part}"] for part in _TEXT_NAMES]
        x = _text_block(x, cos, sin, p, text.num_attention_heads, text.num_key_value_heads, text.rms_norm_eps, mask)
    keep = batch.labels >= 0
    x = _rms(x[keep], w[name + "norm.weight"], text.rms_norm_eps)
    return F.linear(x, w["lm_head.weight"]).float(), batch.labels[keep]
