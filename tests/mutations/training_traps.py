"""Traps 36 to 38, 41 and 43 to 45: what is trained, in which precision, and by which update."""

from injection import Default
from mistakes import Mistake, Trap, edit

LIGHTNING = "components.indexer.lightning:Lightning."
TRAINING = "components/test_indexer_training.py::"
OWN = TRAINING + "test_each_loss_moves_its_own_parameters_alone"
LEARNING = "ablate/test_training_losses.py::"
PRECISION = "components/test_precision.py::"
OPTIMIZER = "components/test_optimizer.py::"
MTP = "components/test_mtp.py::test_logits_losses_and_acceptance_follow_the_definition"

TRAPS = (
    Trap(
        36,
        "indexer silently untrained, or its gradient in the trunk",
        (
            Mistake(
                "its loss never made", (edit(f"{LIGHTNING}forward", ("if learns:", "if False:")),), (OWN,)
            ),
            Mistake(
                "its loss never added",
                (
                    edit(
                        "ablate.training:_Trial.training_step",
                        ('if key.startswith("loss/")', 'if key.startswith("loss/mtp")'),
                    ),
                ),
                (LEARNING + "test_indexers_learn_where_they_should_and_prediction_layers_learn",),
            ),
            Mistake(
                "gradient to the layer's input",
                (edit(f"{LIGHTNING}forward", ("self.scores(x.detach(),", "self.scores(x,")),),
                (OWN,),
            ),
            Mistake(
                "gradient to the query latent",
                (edit(f"{LIGHTNING}forward", ("query_latent.detach()", "query_latent")),),
                (OWN,),
            ),
            Mistake(
                "gradient through the teacher",
                (
                    edit(
                        "components.attention.csa:CompressedSparseAttention.compress",
                        ("return entry_mass(", "return entry_mass.__wrapped__("),
                    ),
                ),
                (OWN,),
            ),
        ),
    ),
    Trap(
        37,
        "the indexer's teacher normalised over entries alone",
        (
            Mistake(
                "each head by itself",
                (
                    edit(
                        "components.attention.core:entry_mass",
                        (
                            "return weights[..., blocks.keys :].sum(2)",
                            "own = weights[..., blocks.keys :]\n    "
                            "own = own / own.sum(-1, keepdim=True).clamp_min(1e-30)\n    return own.sum(2)",
                        ),
                    ),
                ),
                (TRAINING + "test_no_head_is_normalised_by_itself",),
            ),
            Mistake(
                "without window and sink",
                (
                    edit(
                        "components.attention.core:_weights",
                        (
                            "return joint_softmax(rows, keys, mask, "
                            "None if sink is None else sink.unsqueeze(0), added)",
                            "n = blocks.keys\n    reach = mask[..., n:].any(-1, keepdim=True)\n    "
                            "own = joint_softmax(rows, keys[:, n:], mask[..., n:] | ~reach, None)\n    "
                            "return F.pad(own * reach.unsqueeze(2), (n, 0))",
                        ),
                    ),
                ),
                (TRAINING + "test_loss_its_gradient_and_recall_follow_the_definition",),
            ),
        ),
    ),
    Trap(
        38,
        "MTP on the collapsed state, on the schedule's next entry, or without mHC",
        (
            Mistake(
                "collapsed state",
                (
                    edit(
                        "components.mtp.v4:StreamMTP.forward",
                        ("rms_norm(state,", "rms_norm(hidden.unsqueeze(2).expand_as(state),"),
                    ),
                ),
                (MTP,),
            ),
            Mistake(
                "attention of the last layer",
                (
                    edit(
                        "ablate.variant:_from_run",
                        (
                            'window = Layer(index=len(layers), attention="sliding_window")',
                            "window = dataclasses.replace(layers[-1], index=len(layers))",
                        ),
                    ),
                ),
                ("ablate/test_variant.py::test_published_parameter_counts_with_a_prediction_layer",),
            ),
            Mistake(
                "equal streams in its block",
                (
                    edit(
                        "ablate.prediction:PredictionLayer.forward",
                        (
                            "self.join(state, hidden, embedded)",
                            "self.join(state, hidden, embedded).mean(2, keepdim=True).expand_as(state)",
                        ),
                    ),
                ),
                (MTP,),
            ),
            Mistake(
                "embedding of the token itself",
                (
                    edit(
                        "ablate.prediction:Prediction.forward",
                        ("F.embedding(tokens, embedding)", "F.embedding(input_ids[:, :-known], embedding)"),
                    ),
                ),
                (MTP,),
            ),
        ),
    ),
    Trap(
        41,
        "mHC, norm, softmax, router or compressor in half precision",
        (
            *(
                Mistake(
                    f"{part} under mixed precision", (edit(target, (old, "if True:")),), (PRECISION + test,)
                )
                for part, target, old, test in (
                    (
                        "mHC's mapping",
                        "components.residual.mapping:Mapping.logits",
                        "with full_precision(flat):",
                        "test_mixed_precision_changes_nothing_of_a_residual",
                    ),
                    (
                        "streams",
                        "components.residual.streams:write_streams",
                        "with full_precision(sources):",
                        "test_mixed_precision_changes_nothing_of_a_residual",
                    ),
                    (
                        "router scores",
                        "components.router.scores:Gate.scores",
                        "with full_precision(x):",
                        "test_mixed_precision_changes_no_score_of_a_router",
                    ),
                    (
                        "compressors",
                        "components.compressor.gated:Gated.project",
                        "with full_precision(x):",
                        "test_mixed_precision_changes_nothing_of_a_compressor",
                    ),
                )
            ),
            Mistake(
                "norms of half precision",
                (edit("components.functional:rms_norm", ("wide = at_least_float32(x)", "wide = x")),),
                (PRECISION + "test_softmax_and_norm_of_half_precision_are_computed_in_single",),
            ),
            Mistake(
                "softmax of half precision",
                (
                    edit(
                        "components.attention.core:joint_softmax",
                        ("logits = at_least_float32(", "logits = ("),
                    ),
                ),
                (PRECISION + "test_softmax_and_norm_of_half_precision_are_computed_in_single",),
            ),
            Mistake(
                "angles in the model's precision",
                (
                    edit(
                        "components.position.rotary:Rotary._turn",
                        (
                            "rates = self._rates_for(x.shape[-1], wide)",
                            "rates = self._rates_for(x.shape[-1], wide).bfloat16().to(wide.dtype)",
                        ),
                    ),
                ),
                ("components/test_position.py::test_half_precision_of_the_model_does_not_reach_the_angles",),
            ),
            Mistake(
                "fused kernels under mixed precision",
                (
                    edit(
                        "components.native:takes",
                        (' and not torch.is_autocast_enabled("cpu")', ""),
                    ),
                ),
                (PRECISION + "test_fused_kernels_stand_back_under_mixed_precision",),
            ),
            *(
                Mistake(
                    f"{part} cast with the model",
                    (edit("ablate.model:_needs_32_bits", change),),
                    (
                        PRECISION
                        + "test_a_model_in_half_precision_keeps_32_bits_where_small_updates_count[residual/mhc]",
                    ),
                )
                for part, change in (
                    ("vectors", ("tensor.ndim < 2 or ", "")),
                    ("mHC's mapping", (' or name in getattr(module, "wide", ())', "")),
                )
            ),
        ),
    ),
    Trap(
        43,
        "stacked experts or fused projections orthogonalised as one matrix",
        (
            Mistake(
                "gate and up as one",
                (
                    edit(
                        "components.ffn.moe:MixtureOfExperts.__init__",
                        (
                            'self.row_blocks = {"gate_up": rows(kind, f) // columns(kind, f)}',
                            "self.row_blocks = {}",
                        ),
                    ),
                ),
                (OPTIMIZER + "test_muon_is_the_naive_loop_over_matrices_and_adamw_on_the_rest",),
            ),
            Mistake(
                "experts as one",
                (
                    edit(
                        "components.optimizer.matrices:as_matrices",
                        (
                            "x.reshape(-1, x.shape[-2] // blocks, x.shape[-1])",
                            "x.reshape(1, -1, x.shape[-1])",
                        ),
                    ),
                    edit(
                        "components.optimizer.muon:equalised",
                        (
                            "tall = direction.shape[-2] // count > direction.shape[-1]",
                            "tall = direction.numel() // direction.shape[-1] > direction.shape[-1]",
                        ),
                    ),
                ),
                (OPTIMIZER + "test_muon_is_the_naive_loop_over_matrices_and_adamw_on_the_rest",),
            ),
        ),
    ),
    Trap(
        44,
        "updates of root mean square 1.0 or 0.2",
        tuple(
            Mistake(
                str(value),
                (Default("components.optimizer.muon:MuonConfig", "update_rms", value),),
                (OPTIMIZER + "test_hybrid_ends_with_singular_values_of_one_and_the_stated_update",),
            )
            for value in (1.0, 0.2)
        ),
    ),
    Trap(
        45,
        "weight decay on norms by accident",
        (
            Mistake(
                "everything decays",
                (
                    edit(
                        "components.optimizer.decay:decay_groups",
                        ('if decayed == "all" or p.ndim >= 2]', "]"),
                        ('if decayed == "matrices" and p.ndim < 2]', "if False]"),
                    ),
                ),
                (OPTIMIZER + "test_weight_decay_acts_on_matrices_or_on_everything",),
            ),
            Mistake(
                "matrices alone decay, whatever is asked for",
                (
                    edit(
                        "components.optimizer.decay:decay_groups",
                        ('if decayed == "all" or p.ndim >= 2]', "if p.ndim >= 2]"),
                        ('if decayed == "matrices" and p.ndim < 2]', "if p.ndim < 2]"),
                    ),
                ),
                (OPTIMIZER + "test_weight_decay_acts_on_matrices_or_on_everything",),
            ),
        ),
    ),
)
