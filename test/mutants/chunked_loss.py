"""Faults in the preference and policy-gradient losses."""

FOLDER = "liger_kernel/chunked_loss/"
PREFERENCE, PPO = FOLDER + "fused_linear_preference.py", FOLDER + "fused_linear_ppo.py"
DPO, GRPO, TERMS = FOLDER + "dpo_loss.py", FOLDER + "grpo_loss.py", FOLDER + "_grpo_terms.py"


def tests(what):
    return ["test/test_chunked_loss.py", "-k", what]


VALUES = "test_within_eagers_error and not fp64 and not bf16"

MUTANTS = [
    (
        "distillation_hard_loss_of_weight_0",
        FOLDER + "fused_linear_distillation.py",
        "return f() if return_soft_hard_loss else None, 0.0",
        "return f(), 0.0",
        ["test/test_chunked_distillation.py", "-k", "weight_0"],
    ),
    (
        "distillation_student_padded_by_its_last_row",
        FOLDER + "fused_linear_distillation.py",
        "head, bias = F.pad(head, (0, 0, 0, more)), ",
        "head, bias = torch.cat((head, head[-more:])), ",
        ["test/test_chunked_distillation.py", "-k", "larger_teacher"],
    ),
    (
        "distillation_jsd_without_the_teachers_bias",
        FOLDER + "jsd_loss.py",
        "*student, *teacher, target",
        "*student, *teacher[:2], None, target",
        ["test/test_chunked_distillation.py", "-k", "weight_0"],
    ),
    (
        "distillation_cosine_of_ignored_rows",
        FOLDER + "cosine_similarity_loss.py",
        "if target is not None:",
        "if False:",
        ["test/test_chunked_distillation.py", "-k", "sum_over_rows"],
    ),
    (
        "dpo_average_over_all_positions",
        PREFERENCE,
        "lengths = valid.sum(-1).clamp(min=1)",
        "lengths = target.shape[1]",
        tests(f"{VALUES} and dpo-average"),
    ),
    (
        "dpo_nll_of_both_halves",
        PREFERENCE,
        "nll = -masked_mean(per_token[:n_pairs], valid[:n_pairs])",
        "nll = -masked_mean(per_token, valid)",
        tests(f"{VALUES} and dpo-nll"),
    ),
    (
        "dpo_reference_gets_no_bias",
        PREFERENCE,
        "linear_logprob(ref_input, ref_weight, target, ref_bias, **options)",
        "linear_logprob(ref_input, ref_weight, target, None, **options)",
        tests(f"{VALUES} and dpo-base"),
    ),
    (
        "dpo_second_pass_for_the_nll",
        PREFERENCE,
        "            nll = -masked_mean(per_token[:n_pairs], valid[:n_pairs])",
        "            again = linear_logprob(_input, weight, labels, bias, **options).logprob\n"
        "            nll = -masked_mean(again[:n_pairs], valid[:n_pairs])",
        tests("test_one_pass"),
    ),
    (
        "dpo_label_smoothing_ignored",
        DPO,
        "    return -(1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)\n",
        "    return -F.logsigmoid(h)\n",
        tests(f"{VALUES} and dpo-smoothed"),
    ),
    (
        "dpo_bco_signs",
        DPO,
        "-F.logsigmoid(beta * a) - F.logsigmoid(-beta * b)",
        "-F.logsigmoid(beta * a) - F.logsigmoid(beta * b)",
        tests(f"{VALUES} and dpo-bco"),
    ),
    (
        "grpo_reference_without_temperature",
        PPO,
        "linear_logprob(ref_input, ref_weight, ids, ref_bias, **options).logprob",
        'linear_logprob(ref_input, ref_weight, ids, ref_bias, **{**options, "temperature": 1.0}).logprob',
        tests(f"{VALUES} and grpo-temperature"),
    ),
    (
        "grpo_masked_ids_are_looked_up",
        PPO,
        "selected_token_ids.masked_fill(attention_mask == 0, IGNORED)",
        "selected_token_ids",
        tests("test_nothing_outside"),
    ),
    (
        "grpo_reference_unmasked",
        GRPO,
        "return torch.where(inside, per_token_logps - other.detach(), 0.0)",
        "return per_token_logps - other.detach()",
        tests("test_nothing_outside"),
    ),
    (
        "grpo_two_sided_clipping_lost",
        GRPO,
        "bounded = ratio if delta is None else ratio.clamp(max=delta)",
        "bounded = ratio",
        tests(f"{VALUES} and grpo-grpo-delta"),
    ),
    (
        "grpo_cispo_ratio_has_a_gradient",
        TERMS,
        "return coef.clamp(max=epsilon_high).detach(), nowhere",
        "return coef.clamp(max=epsilon_high), nowhere",
        tests(f"{VALUES} and grpo-cispo"),
    ),
    (
        "grpo_luspo_over_all_tokens",
        TERMS,
        '    if loss_type == "luspo":\n        return by_sequence.sum() / batch',
        '    if loss_type == "luspo":\n        return (losses * mask.sum(-1, keepdim=True)).mean()',
        tests(f"{VALUES} and grpo-luspo"),
    ),
    (
        "grpo_tokens_of_one_process",
        TERMS,
        "return at_least_1 / n_processes",
        "return at_least_1",
        tests("test_tokens_of_all_processes"),
    ),
    (
        "grpo_kl_loses_its_digits",
        TERMS,
        "return torch.expm1(d) - d ",
        "return torch.exp(d) - 1 - d ",
        tests("test_k3"),
    ),
]
