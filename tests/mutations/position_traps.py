"""Traps 1 to 6: rotary positions."""

from mistakes import Mistake, Trap, edit
from places import ATTENTION, EQUATIONS, PARITY, POSITION, RATES, ROTARY, TRUNK

_KV = "kv = self.position.rotate(rms_norm(F.linear(x, self.kv)"
_PAIRS = "pairs = torch.view_as_complex(wide.contiguous().unflatten(-1, (-1, 2)))"
_TURNED = "return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)"

TRAPS = (
    Trap(
        1,
        "half-split RoPE instead of interleaved pairs",
        (
            Mistake(
                "rotate_half over the rotary channels",
                (
                    edit(
                        f"{ROTARY}._turn",
                        (
                            _PAIRS,
                            "r = 2 * len(self.rates); still, turning = wide[..., :wide.shape[-1] - r], "
                            "wide[..., wide.shape[-1] - r:]\n    wide = torch.cat((still, "
                            "turning.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)), -1)\n    "
                            + _PAIRS,
                        ),
                        (
                            _TURNED,
                            "y = torch.view_as_real(pairs * turns).flatten(-2)\n    still, turned = "
                            "y[..., :y.shape[-1] - r], y[..., y.shape[-1] - r:]\n    "
                            "return torch.cat((still, "
                            "turned.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)), -1).to(x.dtype)",
                        ),
                    ),
                ),
                (POSITION + "test_pairs_are_interleaved_and_only_the_last_channels_turn",),
            ),
        ),
    ),
    Trap(
        2,
        "RoPE on the first instead of the last channels",
        (
            Mistake(
                "rates first, zeros last",
                (
                    edit(
                        f"{ROTARY}._rates_for",
                        ("[0.0] * still + rates", "rates + [0.0] * still"),
                    ),
                ),
                (POSITION + "test_pairs_are_interleaved_and_only_the_last_channels_turn",),
            ),
        ),
    ),
    Trap(
        3,
        "no inverse rotation of the output, or by another base",
        (
            Mistake(
                "output left as it is",
                (
                    edit(
                        "components.position.rope:Rope.unrotate",
                        ("return self._turn(x, positions, direction=-1)", "return x"),
                    ),
                ),
                (POSITION + "test_with_the_inverse_only_distances_matter",),
            ),
            Mistake(
                "output turned back at the rates of another base",
                (
                    edit(
                        "components.position.rope:Rope.unrotate",
                        (
                            "return self._turn(x, positions, direction=-1)",
                            "kept = self.rates, self._padded\n    self.rates, self._padded = "
                            "[w ** 0.77 for w in self.rates], {}\n    y = self._turn(x, positions, -1)\n    "
                            "self.rates, self._padded = kept\n    return y",
                        ),
                    ),
                ),
                (POSITION + "test_with_the_inverse_only_distances_matter",),
            ),
        ),
    ),
    Trap(
        4,
        "one theta for all layers; YaRN on sliding layers",
        (
            Mistake(
                "rope_theta everywhere",
                (
                    edit(
                        RATES,
                        (
                            "config.compress_rope_theta if compresses else config.rope_theta",
                            "config.rope_theta",
                        ),
                    ),
                ),
                (POSITION + "test_each_kind_of_layer_has_one_base_and_only_compressing_ones_have_yarn",),
            ),
            Mistake(
                "YaRN in every layer",
                (
                    edit(
                        RATES, ("if not compresses or config.yarn_factor == 1", "if config.yarn_factor == 1")
                    ),
                ),
                (POSITION + "test_each_kind_of_layer_has_one_base_and_only_compressing_ones_have_yarn",),
            ),
        ),
    ),
    Trap(
        5,
        "window branch of compressing layers at the main theta",
        (
            Mistake(
                "window keys turned by a table of their own",
                (
                    edit(
                        f"{TRUNK}.__init__",
                        (
                            "self.position = position",
                            "self.position = position\n    from dataclasses import replace\n    main = "
                            "replace(site, layer=replace(site.layer, ratio=0))\n    self.main = "
                            "type(position)(type(position).Config(), main)",
                        ),
                    ),
                    edit(f"{TRUNK}._project", (_KV, _KV.replace("self.position", "self.main"))),
                ),
                (EQUATIONS, PARITY + "test_outputs_are_those_of_transformers"),
            ),
        ),
    ),
    Trap(
        6,
        "YaRN's mscale on the softmax scale, or on cosine and sine",
        (
            Mistake(
                "queries scaled under YaRN",
                (
                    edit(
                        f"{ROTARY}.__init__",
                        (
                            "self.rates = rates(config, site)",
                            "self.rates = rates(config, site)\n    self.mscale = 0.1 * "
                            "math.log(config.yarn_factor) + 1 if site.layer.ratio else 1.0",
                        ),
                    ),
                    edit(
                        f"{TRUNK}._project",
                        (
                            "self.position.rotate(rms_norm(queries, None, self.eps), positions)",
                            "self.position.rotate(rms_norm(queries, None, self.eps), positions) * "
                            "self.position.mscale",
                        ),
                    ),
                ),
                (ATTENTION + "test_scores_are_scaled_by_the_head_size_alone",),
            ),
            Mistake(
                "cosine and sine scaled under YaRN",
                (
                    edit(
                        f"{ROTARY}.__init__",
                        (
                            "self.rates = rates(config, site)",
                            "self.rates = rates(config, site)\n    self.mscale = 0.1 * "
                            "math.log(config.yarn_factor) + 1 if site.layer.ratio else 1.0",
                        ),
                    ),
                    edit(
                        f"{ROTARY}._turn",
                        (
                            "torch.ones_like(angles)",
                            "torch.where(rates != 0, self.mscale, 1.0).to(angles.dtype).expand_as(angles)",
                        ),
                    ),
                ),
                (POSITION + "test_lengths_stay_and_products_depend_on_distance_only",),
            ),
        ),
    ),
)
