"""Rotary position embedding with the signatures of Hugging Face's apply_rotary_pos_emb."""

from ..ops.rope import LigerRopeFunction

__all__ = ["liger_rotary_pos_emb", "liger_rotary_pos_emb_gpt_oss", "liger_rotary_pos_emb_vision"]
FUNCTIONAL = ("liger_rope",)


def liger_rotary_pos_emb(
    q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None, interleaved=False
):
    """(q, k) rotated: y = x * cos + rotate_half(x) * sin in each head's first rotary_dim columns.

    With interleaved=True neighbouring columns turn together, as in GPT-J, GLM and Cohere.

    q: (batch, n_q_heads, seq_len, head_dim), k: with n_kv_heads; heads after seq_len with unsqueeze_dim=2.
    cos, sin: (seq_len, w), (1 or batch, seq_len, w), or 4-D with a heads dimension of 1; position_ids index
    a (T, w) table. Any float dtypes; see `LigerRopeFunction` for strides, options and what is raised.
    Source: arXiv:2104.09864; LlamaAttention in transformers.
    """
    return LigerRopeFunction.apply(q, k, cos, sin, position_ids, unsqueeze_dim, rotary_dim, interleaved)


liger_rope = liger_rotary_pos_emb


def liger_rotary_pos_emb_gpt_oss(q, k, cos, sin):
    """liger_rotary_pos_emb for tables that hold each angle once, head_dim / 2 wide, as GPT-OSS has them."""
    return LigerRopeFunction.apply(q, k, cos, sin, None, 1, q.shape[-1])


def liger_rotary_pos_emb_vision(q, k, cos, sin):
    """(q, k) of a vision tower rotated: y = x * cos + rotate_half(x) * sin.

    q, k: (seq_len, n_heads, head_dim) or with a batch in front; cos, sin: (seq_len, head_dim), or (batch,
    seq_len, head_dim). Any float dtypes, computed in fp32. Raises ValueError for another rank of q or k; see
    `LigerRopeFunction`. Source: apply_rotary_pos_emb_vision in transformers' modeling_qwen2_vl.py.
    """
    if q.dim() not in (3, 4) or k.dim() != q.dim():
        raise ValueError(
            f"q and k have shapes {tuple(q.shape)} and {tuple(k.shape)}, "
            "expected (seq_len, n_heads, head_dim)"
        )
    one = q.dim() == 3
    if one:
        q, k = q.unsqueeze(0), k.unsqueeze(0)
    q, k = LigerRopeFunction.apply(q, k, cos, sin, None, 2, q.shape[-1])
    return (q.squeeze(0), k.squeeze(0)) if one else (q, k)
