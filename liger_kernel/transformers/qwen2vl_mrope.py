"""Multimodal rotary position embedding with the signature of Qwen2-VL's apply_multimodal_rotary_pos_emb."""

from ..ops.qwen2vl_mrope import LigerQwen2VLMRopeFunction

__all__ = ["liger_multimodal_rotary_pos_emb"]
FUNCTIONAL = ("liger_qwen2vl_mrope",)


def liger_multimodal_rotary_pos_emb(q, k, cos, sin, mrope_section, unsqueeze_dim=1):
    """(q, k) rotated by angles of time, height and width, mrope_section[i] columns of each.

    q: (batch, n_q_heads, seq_len, head_dim), k: with n_kv_heads; heads after seq_len with unsqueeze_dim=2.
    cos, sin: (3, 1 or batch, seq_len, head_dim). Any float dtypes; see `LigerQwen2VLMRopeFunction` for
    strides and what is raised. Source: arXiv:2409.12191; modeling_qwen2_vl.py of transformers 4.57.
    """
    return LigerQwen2VLMRopeFunction.apply(q, k, cos, sin, mrope_section, unsqueeze_dim)


liger_qwen2vl_mrope = liger_multimodal_rotary_pos_emb
