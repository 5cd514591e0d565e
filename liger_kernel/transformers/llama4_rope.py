"""Rotary position embedding with the signatures of Llama 4's apply_rotary_emb and vision_apply_rotary_emb."""

from ..ops.llama4_rope import LigerLlama4RopeFunction

__all__ = ["liger_llama4_text_rotary_pos_emb", "liger_llama4_vision_rotary_pos_emb"]


def liger_llama4_text_rotary_pos_emb(xq, xk, freqs_cis):
    """(xq, xk), neighbouring columns multiplied as complex numbers by freqs_cis.

    xq: (batch, seq_len, n_q_heads, head_dim), xk: with n_kv_heads. freqs_cis: complex, (1 or batch, seq_len,
    head_dim / 2). Any float dtypes, computed in fp32; see `LigerLlama4RopeFunction` for other tables, strides
    and what is raised. Source: arXiv:2104.09864; Llama4TextAttention in transformers.
    """
    return LigerLlama4RopeFunction.apply(xq, xk, freqs_cis)


def liger_llama4_vision_rotary_pos_emb(query, key, freqs_ci):
    """(query, key), neighbouring columns multiplied as complex numbers by freqs_ci.

    query, key: (batch, seq_len, n_heads, head_dim). freqs_ci: (seq_len, head_dim / 2), (seq_len, 1,
    head_dim / 2), (1, seq_len, head_dim / 2) or (1, seq_len, 1, head_dim / 2), complex (or real, as a model
    whose buffers were cast has it: then the imaginary part is 0), on any device. Raises
    ValueError for another rank; see `LigerLlama4RopeFunction`. Source: Llama4VisionAttention in transformers.
    """
    if freqs_ci.dim() not in (2, 3, 4):
        raise ValueError(
            f"freqs_ci has shape {tuple(freqs_ci.shape)}, expected two, three or four dimensions"
        )
    return LigerLlama4RopeFunction.apply(query, key, freqs_ci.to(query.device))


def apply_liger_llama4_rope_full(modeling_module):
    """Sets both functions of transformers' modeling_llama4 (or a module like it) to ours."""
    modeling_module.apply_rotary_emb = liger_llama4_text_rotary_pos_emb
    modeling_module.vision_apply_rotary_emb = liger_llama4_vision_rotary_pos_emb
