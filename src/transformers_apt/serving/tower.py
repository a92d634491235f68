"""What vLLM's vision towers want to know of a mixed-scale sequence, in their own terms.

Axis legend: `n` patches of all images, `f` frequencies per axis.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention


def rotary(tower: Any, centres: Tensor) -> dict[str, Tensor]:
    """The blocks' rotary arguments at the patches' centres `(n, 2)`; vLLM's table has whole positions only."""
    rope = tower.rotary_pos_emb
    with torch.device(centres.device):
        frequencies = rope._compute_inv_freq(rope.base)
    angles = (centres.unsqueeze(-1) * frequencies).flatten(1)  # (n, 2, f) -> (n, 2 f)
    dtype = rope.cos_sin_cache.dtype
    return {"rotary_pos_emb_cos": angles.cos().to(dtype), "rotary_pos_emb_sin": angles.sin().to(dtype)}


def segments(tower: Any, lengths: Tensor) -> dict[str, Any]:
    """The blocks' arguments for attention within segments of these lengths, from Qwen2.5-VL on."""
    cu_seqlens = np.concatenate([[0], lengths.numpy()]).cumsum(dtype=np.int32)
    backend, device = tower.attn_backend, tower.device
    attention = MMEncoderAttention
    return {
        "max_seqlen": torch.tensor(attention.compute_max_seqlen(backend, cu_seqlens), dtype=torch.int32),
        "sequence_lengths": attention.maybe_compute_seq_lens(backend, cu_seqlens, device),
        "cu_seqlens": attention.maybe_recompute_cu_seqlens(
            backend,
            cu_seqlens,
            tower.hidden_size,
            tower.tp_size,
            device,
            fp8_padded_hidden_size=tower.fp8_padded_hidden_size,
        ),
    }
