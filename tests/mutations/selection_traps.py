"""Traps 14 to 22: selection, softmax, window and output projection."""

from mistakes import Mistake, Trap, edit
from places import ATTENTION, BEST, CAUSAL, CORE, CSA, INDEXER, LIGHTNING, SPLITS, TRUNK

_BEST = "highest(scores.detach().masked_fill(~seen, -torch.inf), self.topk) & seen"
_SINK = "None if sink is None else sink.unsqueeze(0)"

TRAPS = (
    Trap(
        14,
        "top-k before the causal mask",
        (
            Mistake(
                "chosen among all entries, invisible ones kept",
                (edit(f"{LIGHTNING}Lightning.forward", (_BEST, "highest(scores.detach(), self.topk)")),),
                (CAUSAL, BEST),
            ),
            Mistake(
                "chosen among all entries, invisible ones dropped",
                (
                    edit(
                        f"{LIGHTNING}Lightning.forward", (_BEST, "highest(scores.detach(), self.topk) & seen")
                    ),
                ),
                (CAUSAL, BEST),
            ),
        ),
    ),
    Trap(
        15,
        "choices of queries flattened into one list of keys",
        (
            Mistake(
                "what any query chose is seen by all that may",
                (
                    edit(
                        f"{CSA}.compress",
                        (
                            "return (entries, chosen), aux",
                            "may = torch.arange(entries.shape[1], device=x.device) < visible.unsqueeze(-1)\n"
                            "    return (entries, chosen.any(1, keepdim=True) & may), aux",
                        ),
                    ),
                ),
                (ATTENTION + "test_no_entry_that_a_query_has_not_chosen_reaches_it",),
            ),
        ),
    ),
    Trap(
        16,
        "sink forgotten, or in the numerator",
        (
            Mistake(
                "no sink in the softmax",
                (edit(f"{CORE}joint_softmax", ("if sink is not None:", "if False:")),),
                (ATTENTION + "test_a_sink_takes_everything_or_nothing",),
            ),
            Mistake(
                "the sink's share given to keys",
                (
                    edit(
                        f"{CORE}joint_softmax",
                        (
                            "return logits.softmax(dim=-1)[..., : keys.shape[1]]",
                            "shares = logits.softmax(dim=-1)\n    own = shares[..., : keys.shape[1]]\n    "
                            "return own + (1 - own.sum(-1, keepdim=True)) / keys.shape[1]",
                        ),
                    ),
                ),
                (ATTENTION + "test_a_sink_takes_everything_or_nothing",),
            ),
        ),
    ),
    Trap(
        17,
        "a softmax for the window and one for entries, added",
        (
            Mistake(
                "two softmaxes, each with the sink",
                (
                    edit(
                        f"{CORE}joint_attention",
                        (
                            f"out = attend(rows, keys, keys, mask, {_SINK}, added)",
                            f"n, s = blocks.keys, {_SINK}\n    "
                            "out = attend(rows, keys[:, :n], keys[:, :n], mask[..., :n], s)\n    "
                            "if keys.shape[1] > n:\n        "
                            "out = out + attend(rows, keys[:, n:], keys[:, n:], mask[..., n:], s)",
                        ),
                    ),
                ),
                (ATTENTION + "test_window_entries_and_sink_share_one_softmax",),
            ),
        ),
    ),
    Trap(
        18,
        "no norm of each head's queries",
        (
            Mistake(
                "queries as projected",
                (edit(f"{TRUNK}._project", ("rms_norm(queries, None, self.eps)", "queries")),),
                (ATTENTION + "test_scores_are_scaled_by_the_head_size_alone",),
            ),
        ),
    ),
    Trap(
        19,
        "indexer fed from the query latent before its norm",
        (
            Mistake(
                "latent without norm",
                (
                    edit(
                        f"{TRUNK}.forward",
                        (
                            "self.compress(x, latent, queries, kv, real)",
                            "self.compress(x, F.linear(x, self.q_a), queries, kv, real)",
                        ),
                    ),
                ),
                (ATTENTION + "test_the_indexer_reads_the_normed_query_latent",),
            ),
            Mistake(
                "latent with the norm but for its weight",
                (
                    edit(
                        f"{TRUNK}.forward",
                        (
                            "self.compress(x, latent, queries, kv, real)",
                            "self.compress(x, latent / self.q_a_norm, queries, kv, real)",
                        ),
                    ),
                ),
                (ATTENTION + "test_the_indexer_reads_the_normed_query_latent",),
            ),
        ),
    ),
    Trap(
        20,
        "indexer weights made positive, or no ReLU",
        tuple(
            Mistake(name, (edit(f"{LIGHTNING}Lightning._compare", change),), (test,))
            for name, change, test in (
                (
                    "absolute weights",
                    (
                        "F.linear(x, self.weights) * self.scale",
                        "F.linear(x, self.weights).abs() * self.scale",
                    ),
                    INDEXER + "test_weights_keep_their_sign",
                ),
                (
                    "softmax of weights",
                    (
                        "F.linear(x, self.weights) * self.scale",
                        "F.linear(x, self.weights).softmax(-1) * self.scale",
                    ),
                    BEST,
                ),
                ("products without ReLU", ("products.relu()", "products"), BEST),
            )
        ),
    ),
    Trap(
        21,
        "window one token too long",
        (
            Mistake(
                "W + 1 keys in one pass",
                (edit(f"{CORE}in_window", ("key > query - window", "key >= query - window")),),
                (ATTENTION + "test_the_window_ends_after_its_number_of_tokens",),
            ),
            Mistake(
                "W + 1 keys while decoding",
                (
                    edit(
                        f"{TRUNK}.step",
                        ("(back < self.window)", "(back <= self.window)"),
                        ("keys[:, -self.window :]", "keys[:, -self.window - 1 :]"),
                    ),
                ),
                (SPLITS,),
            ),
        ),
    ),
    Trap(
        22,
        "heads dealt out to output groups in turn",
        (
            Mistake(
                "head h in group h mod g",
                (
                    edit(
                        "components.output_projection.grouped:Grouped.forward",
                        (
                            "heads.reshape(batch * length, self.groups, -1)",
                            "heads.unflatten(2, (-1, self.groups)).transpose(2, 3)"
                            ".reshape(batch * length, self.groups, -1)",
                        ),
                    ),
                ),
                ("components/test_output_projection.py::test_groups_are_consecutive_heads",),
            ),
        ),
    ),
)
