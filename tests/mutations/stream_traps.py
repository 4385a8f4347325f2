"""Traps 23 to 29: residual streams."""

from injection import Default
from mistakes import Mistake, Trap, edit

RESIDUAL = "components/test_residual.py::"
FORMULA = RESIDUAL + "test_mhc_is_the_formula"
SINKHORN = "components/test_sinkhorn.py::"
READ = "components.residual.mhc:ManifoldHyperConnections.read"
BALANCE = "components.residual.sinkhorn:_Balance."
MAPPING = "components.residual.mapping:Mapping."
COLLAPSE = "components.residual.collapse:LearnedCollapse.forward"

_SWAPPED = (".sum(step % 2, keepdim=True)", ".sum(1 - step % 2, keepdim=True)")

TRAPS = (
    Trap(
        23,
        "comb not transposed",
        (
            Mistake(
                "streams carried against C",
                (
                    edit(
                        READ,
                        (
                            "torch.cat([comb, post.unsqueeze(0)])",
                            "torch.cat([comb.transpose(0, 1), post.unsqueeze(0)])",
                        ),
                    ),
                ),
                (RESIDUAL + "test_trap_23_comb_leads_from_rows_to_columns",),
            ),
        ),
    ),
    Trap(
        24,
        "Sinkhorn's axes in the other order",
        (
            Mistake(
                "outputs divided last",
                (edit(f"{BALANCE}forward", _SWAPPED), edit(f"{BALANCE}backward", _SWAPPED)),
                (SINKHORN + "test_trap_24_outputs_sum_to_one_and_inputs_only_nearly",),
            ),
            Mistake(
                "softmax over inputs",
                (
                    edit(
                        "components.residual.sinkhorn:sinkhorn",
                        ("torch.softmax(logits, dim=1)", "torch.softmax(logits, dim=0)"),
                    ),
                ),
                (SINKHORN + "test_forward_and_backward_are_exact",),
            ),
        ),
    ),
    Trap(
        25,
        "too few Sinkhorn iterations",
        (
            Mistake(
                "three, whatever is asked for",
                (
                    edit(
                        f"{BALANCE}forward",
                        ("range(2 * iterations - 1)", "range(2 * min(iterations, 3) - 1)"),
                    ),
                ),
                (SINKHORN + "test_forward_and_backward_are_exact",),
            ),
            Mistake(
                "three unless asked for more",
                (Default("components.residual.mhc:MHCConfig", "hc_sinkhorn_iters", 3),),
                ("components/test_mtp.py::test_logits_losses_and_acceptance_follow_the_definition",),
            ),
        ),
    ),
    Trap(
        26,
        "post without its factor, or with epsilon; pre without epsilon",
        tuple(
            Mistake(
                name,
                (edit(READ, change),),
                (RESIDUAL + "test_trap_26_zero_weights_give_half_plus_eps_and_one",),
            )
            for name, change in (
                ("post without the factor 2", ("post = 2 * torch.sigmoid", "post = torch.sigmoid")),
                (
                    "post with epsilon",
                    ("+ base[n : 2 * n])", "+ base[n : 2 * n]) + eps"),
                ),
                ("pre without epsilon", ("+ base[:n]) + eps", "+ base[:n])")),
            )
        ),
    ),
    Trap(
        27,
        "one root mean square per stream",
        (
            Mistake(
                "each stream by its own",
                (
                    edit(
                        f"{MAPPING}logits",
                        (
                            "flat = at_least_float32(state).flatten(2).flatten(0, 1)",
                            "wide = at_least_float32(state)\n    flat = (wide * (wide.square().mean(-1, "
                            "keepdim=True) + self.eps).rsqrt()).flatten(2).flatten(0, 1)",
                        ),
                    ),
                ),
                (RESIDUAL + "test_trap_27_one_root_mean_square_over_all_streams",),
            ),
        ),
    ),
    Trap(
        28,
        "streams ended by their mean or sum",
        tuple(
            Mistake(
                name,
                (
                    edit(
                        COLLAPSE,
                        ("return read_streams(state, weights.T.contiguous())", f"return state.{name}(2)"),
                    ),
                ),
                (RESIDUAL + "test_trap_28_collapse_is_learned",),
            )
            for name in ("mean", "sum")
        ),
    ),
    Trap(
        29,
        "equal streams that never separate",
        (
            Mistake(
                "fn starts at zero",
                (edit(f"{MAPPING}__init__", (".normal_(0.0, site.dims.initializer_range)", ".zero_()")),),
                (
                    RESIDUAL + "test_trap_29_streams_separate",
                    "ablate/test_model.py::test_streams_are_apart_after_one_step",
                ),
            ),
        ),
    ),
)
