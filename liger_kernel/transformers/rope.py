"""Rotary position embedding with the signatures of Hugging Face's apply_rotary_pos_emb."""

from ..ops.rope import LigerRopeFunction

__all__ = ["liger_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss"]
FUNCTIONAL = ("liger_rope",)


def liger_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
    """(q, k) rotated: y = x * cos + rotate_half(x) * sin in each head's first rotary_dim columns.

    q: (batch, n_q_heads, seq_len, head_dim), k: with n_kv_heads; heads after seq_len with unsqueeze_dim=2.
    cos, sin: (seq_len, w), (1 or batch, seq_len, w), or 4-D with a heads dimension of 1; position_ids index
    a (T, w) table. Any float dtypes; see `LigerRopeFunction` for strides, options and what is raised.
    Source: arXiv:2104.09864; LlamaAttention in transformers.
    """
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim)


liger_rope = liger_rotary_pos_emb


def liger_rotary_pos_emb_gpt_oss(q, k, cos, sin):
    """liger_rotary_pos_emb for tables that hold each angle once, head_dim / 2 wide, as GPT-OSS has them."""
    return LigerRopeFunction.apply(q, k, cos, sin, None, 1, q.shape[-1])
