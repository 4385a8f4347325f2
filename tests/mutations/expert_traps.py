"""Traps 30 to 35: routers and experts."""

from mistakes import Mistake, Trap, edit

ROUTING = "components/test_routing.py::"
GATE = "components.router.scores:Gate."
HASH = "components.router.hash:"
ACTIVATION = "components.ffn.activation:"
WEIGHTS = ROUTING + "test_trap_30_weights_are_renormalised_scores_and_the_bias_only_selects"
CLAMPS = ROUTING + "test_trap_34_clamps_before_silu_above_only_for_gate_on_both_kinds"
TABLES = ROUTING + "test_trap_32_hash_tables_are_distinct_seeded_and_saved"
LEARNED = ROUTING + "test_trap_31_hash_choice_is_fixed_but_weights_are_learned"
IDS = "ablate/test_model.py::test_hash_routing_follows_each_token_itself"

_CLAMPED = "gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)"
_TABLE = "return torch.rand(tokens, experts, generator=generator"
_HASHED = "self.weights(scores, chosen), chosen"

TRAPS = (
    Trap(
        30,
        "no square root; bias in weights; weights not normalised or not scaled",
        (
            Mistake(
                "softplus alone",
                (edit(f"{GATE}score", ("F.softplus(logits).sqrt()", "F.softplus(logits)")),),
                (WEIGHTS,),
            ),
            Mistake(
                "bias in the weights",
                (
                    edit(
                        "components.router.balanced:BalancedRouter.forward",
                        (
                            "self.weights(scores.flatten(0, 1), chosen)",
                            "self.weights((scores + self.e_score_correction_bias).flatten(0, 1), chosen)",
                        ),
                    ),
                ),
                (WEIGHTS,),
            ),
            Mistake(
                "weights not normalised",
                (edit(f"{GATE}weights", (" / (picked.sum(-1, keepdim=True) + 1e-20)", "")),),
                (WEIGHTS,),
            ),
            Mistake(
                "weights not scaled",
                (edit(f"{GATE}weights", ("self.routed_scaling_factor /", "1.0 /")),),
                (WEIGHTS,),
            ),
        ),
    ),
    Trap(
        31,
        "hash layers with uniform or one-hot weights",
        tuple(
            Mistake(name, (edit(f"{HASH}HashRouter.forward", (_HASHED, f"{weights}, chosen")),), (LEARNED,))
            for name, weights in (
                (
                    "uniform",
                    "0 * self.weights(scores, chosen) + self.routed_scaling_factor / chosen.shape[1]",
                ),
                (
                    "one-hot",
                    "0 * self.weights(scores, chosen) + self.routed_scaling_factor "
                    "* torch.eye(chosen.shape[1], dtype=scores.dtype)[:1].expand(len(chosen), -1)",
                ),
            )
        ),
    ),
    Trap(
        32,
        "hash tables of zeros, with duplicates, different by process, or not saved",
        (
            Mistake(
                "zeros",
                (
                    edit(
                        f"{HASH}make_table",
                        (_TABLE, "return 0 * torch.rand(tokens, experts, generator=generator"),
                    ),
                ),
                (TABLES,),
            ),
            Mistake(
                "experts drawn with replacement",
                (
                    edit(
                        f"{HASH}make_table",
                        (
                            _TABLE,
                            "return torch.randint(experts, (tokens, k), generator=generator)\n    " + _TABLE,
                        ),
                    ),
                ),
                (TABLES,),
            ),
            Mistake(
                "drawn from the global generator",
                (edit(f"{HASH}make_table", (_TABLE, "return torch.rand(tokens, experts")),),
                (TABLES,),
            ),
            Mistake(
                "one table for all layers",
                (edit(f"{HASH}make_table", ("{config.table_seed}/{layer}", "{config.table_seed}")),),
                (TABLES,),
            ),
            Mistake(
                "buffer not saved",
                (
                    edit(
                        f"{HASH}HashRouter.__init__",
                        (
                            'self.register_buffer("tid2eid", table)',
                            'self.register_buffer("tid2eid", table, False)',
                        ),
                    ),
                ),
                (TABLES,),
            ),
        ),
    ),
    Trap(
        33,
        "token ids missing or out of step in hash layers",
        (
            Mistake(
                "ids of the token before",
                (
                    edit(
                        "ablate.model:Block._sites",
                        (
                            "self.ffn(self.ffn_norm(x), token_ids)",
                            "self.ffn(self.ffn_norm(x), token_ids.roll(1, -1))",
                        ),
                    ),
                ),
                (IDS,),
            ),
            Mistake(
                "ids in prediction layers one token late",
                (
                    edit(
                        "ablate.prediction:Prediction.forward",
                        ("embedded, tokens, documents)", "embedded, input_ids[:, :-known], documents)"),
                    ),
                ),
                (IDS,),
            ),
        ),
        without=(
            "embeddings in place of ids: the model takes ids alone",
            "pipeline stages and sequence parallelism: a model is not split over processes",
        ),
    ),
    Trap(
        34,
        "clamp after SiLU, gate clamped on both sides, experts not clamped",
        (
            Mistake(
                "clamp after SiLU",
                (
                    edit(
                        f"{ACTIVATION}clamped_swiglu",
                        (_CLAMPED, "return F.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)"),
                    ),
                ),
                (ROUTING + "test_moe_is_the_sum_over_chosen_experts", CLAMPS),
            ),
            Mistake(
                "gate clamped on both sides",
                (
                    edit(
                        f"{ACTIVATION}clamped_swiglu", ("gate.clamp(max=limit)", "gate.clamp(-limit, limit)")
                    ),
                ),
                (CLAMPS,),
            ),
            Mistake(
                "shared expert not clamped",
                (edit(f"{ACTIVATION}Expert.forward", ("self.kind, self.limit)", "self.kind, 0.0)")),),
                (CLAMPS,),
            ),
            Mistake(
                "routed experts not clamped",
                (
                    edit(
                        "components.ffn.moe:MixtureOfExperts._routed",
                        ("activated(hidden, self.kind, self.limit)", "activated(hidden, self.kind, 0.0)"),
                    ),
                ),
                (CLAMPS,),
            ),
        ),
    ),
    Trap(
        35,
        "w1 and w3 in the other order",
        (
            Mistake(
                "gate taken from the second half",
                (
                    edit(
                        f"{ACTIVATION}clamped_swiglu",
                        ("gate, up = gate_up.chunk(2, dim=-1)", "up, gate = gate_up.chunk(2, dim=-1)"),
                    ),
                ),
                (ROUTING + "test_trap_35_gate_rows_come_first",),
            ),
            Mistake(
                "shared expert read from transformers the other way round",
                (
                    edit(
                        "ablate.interop.layout:_layer",
                        (
                            '(f"{shared}gate_proj.weight", f"{shared}up_proj.weight")',
                            '(f"{shared}up_proj.weight", f"{shared}gate_proj.weight")',
                        ),
                    ),
                ),
                ("ablate/test_interop_hf.py::test_same_logits",),
            ),
        ),
    ),
)
