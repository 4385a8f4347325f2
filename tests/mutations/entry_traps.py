"""Traps 7 to 13: compressed entries, and which of them a query may see."""

from mistakes import Mistake, Trap, edit
from places import ATTENTION, BLOCKS, CAUSAL, COMPRESSOR, CORE, CSA, ENTRIES, GATED, HCA, TURNED

_VISIBLE = "torch.arange(1, x.shape[1] + 1, device=x.device) // self.ratio"
_ROTATED = "torch.arange(count, device=x.device) * self.ratio"

TRAPS = (
    Trap(
        7,
        "compressed keys turned at the block's number, at its end, or not at all",
        tuple(
            Mistake(name, (edit(f"{BLOCKS}BlockCompressor.forward", change),), (TURNED,))
            for name, change in (
                ("by the block's number", (_ROTATED, "torch.arange(count, device=x.device)")),
                ("at the block's last token", (_ROTATED, _ROTATED + " + self.ratio - 1")),
                ("not at all", (f"return position.rotate(entries, {_ROTATED})", "return entries")),
            )
        ),
    ),
    Trap(
        8,
        "halves of CSA's channels swapped, or no overlap",
        (
            Mistake(
                "first half to the own block",
                (
                    edit(
                        f"{BLOCKS}slots",
                        (
                            "following, own = blocks.chunk(2, dim=-1)",
                            "own, following = blocks.chunk(2, dim=-1)",
                        ),
                    ),
                ),
                (COMPRESSOR + "test_second_half_of_the_channels_goes_to_the_tokens_own_block",),
            ),
            Mistake(
                "nothing from the block before",
                (
                    edit(
                        f"{BLOCKS}slots",
                        (
                            "return torch.cat((previous, own), dim=2)",
                            "return torch.cat((torch.full_like(previous, missing), own), dim=2)",
                        ),
                    ),
                ),
                (COMPRESSOR + "test_second_half_of_the_channels_goes_to_the_tokens_own_block", ENTRIES),
            ),
        ),
    ),
    Trap(
        9,
        "one gate per token instead of one per channel",
        (
            Mistake(
                "softmax of the channels' mean",
                (edit(f"{GATED}.pool", (".softmax(dim=2)", ".mean(-1, keepdim=True).softmax(dim=2)")),),
                (ENTRIES,),
            ),
        ),
    ),
    Trap(
        10,
        "no norm of entries, or norm before pooling",
        (
            Mistake(
                "entries not normed",
                (
                    edit(
                        f"{BLOCKS}BlockCompressor._entries",
                        (
                            "return rms_norm(self.pool(blocks).to(dtype), self.norm, self.eps)",
                            "return self.pool(blocks).to(dtype)",
                        ),
                    ),
                ),
                (ENTRIES,),
            ),
            Mistake(
                "values normed, entries not",
                (
                    edit(
                        f"{BLOCKS}BlockCompressor._entries",
                        (
                            "return rms_norm(self.pool(blocks).to(dtype), self.norm, self.eps)",
                            "return self.pool(blocks).to(dtype)",
                        ),
                    ),
                    edit(
                        f"{GATED}.project",
                        (
                            "return F.linear(x, self.kv.to(x.dtype))",
                            "v = F.linear(x, self.kv.to(x.dtype)).unflatten(-1, (-1, len(self.norm))); "
                            "v = v * (v.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.norm; "
                            "return v.flatten(-2)",
                        ),
                    ),
                ),
                (ENTRIES,),
            ),
        ),
    ),
    *(
        Trap(
            number,
            title,
            tuple(
                Mistake(kind, (edit(f"{target}.compress", (_VISIBLE, new)),), tests)
                for kind, target in (("CSA", CSA), ("HCA", HCA))
            ),
        )
        for number, title, new, tests in (
            (
                11,
                "visibility s < t // m",
                "torch.arange(x.shape[1], device=x.device) // self.ratio",
                (ATTENTION + "test_the_token_that_ends_a_block_is_the_first_to_see_its_entry",),
            ),
            (
                12,
                "visibility s <= t // m, which leaks the future",
                "torch.arange(x.shape[1], device=x.device) // self.ratio + 1",
                (CAUSAL,),
            ),
        )
    ),
    Trap(
        13,
        "entries padded with zeros in the mask, which leaks the future",
        (
            Mistake(
                "every entry visible",
                (edit(f"{CORE}_grouped", ("grouped(seen)]", "grouped(torch.ones_like(seen))]")),),
                (CAUSAL,),
            ),
        ),
    ),
)
