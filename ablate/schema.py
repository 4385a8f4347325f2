"""The typed description of a whole run. Plain dataclasses; `ablate.config` fills them from YAML and overrides.

Keys are what a user types (`model.hidden_size=128`), so they follow the official `config.json` where it has a name.
Ranges that need no other knowledge are checked here; what needs the registry or the data is checked in `ablate.plan`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SLOT_GROUPS = (
    "residual",
    "norm",
    "post_norm",
    "position",
    "sink",
    "output_projection",
    "compressor",
    "indexer",
    "ffn",
    "router",
    "mtp",
)
"""Slots that are chosen once per model, each a top-level config group; `attention` is chosen per layer, by the
schedule."""


PROBE = "probe/"
"""Beginning of `data.source` where a probe takes the place of text."""


@dataclass
class Slot:
    """A component and its options; `args` is complete after composition."""

    name: str = "???"
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Model:
    """Sizes of a model and its per-layer schedules.

    Attributes:
        compress_ratios: schedule, as grammar text `swa*2,(csa@4,hca@128)*3`, a list of such tokens, or the official
            list of integers (0 sliding window, 4 CSA, any other HCA).
        num_hash_layers: leading layers whose router is `hash`.
    """

    name: str = "???"
    vocab_size: int = 0
    """0 means: as many as the tokenizer has."""
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    """Heads of keys and values in `dense` attention; 0 means as many as query heads."""
    head_dim: int = 0
    qk_rope_head_dim: int = 0
    q_lora_rank: int = 0
    o_groups: int = 1
    o_lora_rank: int = 0
    sliding_window: int = 0
    compress_ratios: Any = "???"
    index_n_heads: int = 1
    index_head_dim: int = 0
    index_topk: int = 0
    moe_intermediate_size: int = 0
    n_routed_experts: int = 1
    n_shared_experts: int = 0
    num_experts_per_tok: int = 1
    num_hash_layers: int = 0
    routed_scaling_factor: float = 1.5
    num_nextn_predict_layers: int = 0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 1048576


@dataclass
class Data:
    """Where text comes from and how it becomes tokens, or which probe takes its place.

    Attributes:
        source: `stdlib` (the Python standard library's own source text), or anything `datasets.load_dataset` takes as
            its first argument: a hub name, or a builder such as `text`, `json`, `parquet` together with `files`. Or
            `probe/NAME`: sequences that an entry of the slot `probe` generates, labelled where something is asked.
        args: options of the probe, complete after composition.
        files: paths or globs for a builder.
        tokenizer: `bpe` (trained on the corpus), `bytes`, or a directory or file holding a `tokenizer.json`.
        val_fraction: share of documents held out, chosen by document.
        val_tokens: tokens of the held-out text that every evaluation uses.
        document_mask: whether documents that share a sequence see nothing of each other. What follows an end token is
            then not predicted, in training nor in evaluations: it belongs to another document. Compute is charged as
            for whole sequences, an upper bound that does not depend on the text.
    """

    name: str = "???"
    source: str = "stdlib"
    args: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    config_name: str | None = None
    split: str = "train"
    text_column: str = "text"
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    val_fraction: float = 0.05
    val_tokens: int = 32768
    max_bytes: int = 0
    """0 means all of it."""
    document_mask: bool = False

    @property
    def is_probe(self) -> bool:
        """Whether sequences are generated, with right answers."""
        return self.source.startswith(PROBE)


@dataclass
class Budget:
    """Compute. Amounts are FLOPs, as a number or text such as `3e15` or `2 PFLOP`, or times such as `20 min`.

    A time (`20 min`, `2 gpu-hours`, `1 cpu-hour`) becomes FLOPs by the speed of every arm on this machine, which
    is measured once, charged to phase `calibrate` and kept.

    Attributes:
        total: bound of the whole study; null means what the planned trials and their evaluations need plus
            contingency.
        per_trial: training of one trial; null means an equal share of what `total` leaves beside evaluations.
        match: what is equal between arms. With `params`, `active_params` and `kv_bytes` (of a cache as long as
            `trainer.seq_len`) sizes of the other arms are re-solved to the baseline's amount, and steps follow
            from equal FLOPs. With `wall_clock` steps follow from measured speeds.
        tolerance: share by which an arm may miss the baseline's amount.
        resolve: keys of `model` that may be re-solved, such as `[moe_intermediate_size, head_dim]`, or `auto`.
        contingency: share of `total` kept for work that faults made necessary twice.
    """

    name: str = "???"
    total: Any = None
    per_trial: Any = None
    match: str = "flops"
    tolerance: float = 0.01
    resolve: Any = "auto"
    contingency: float = 0.05


@dataclass
class Optimizer:
    """How one trial is optimised: an entry of the slot `optimizer`, its options, and what all entries share."""

    name: str = "???"
    args: dict[str, Any] = field(default_factory=dict)
    """Options of the component, complete after composition."""
    lr: float = 3e-3
    """Peak learning rate; the centre of the grid when the sweep tunes it."""
    grad_clip: float = 1.0
    warmup: float = 0.05
    """Share of the allowance over which the rate rises linearly."""
    decay: float = 0.3
    """Share of the allowance over which it falls to zero at the end (1 - sqrt)."""


@dataclass
class Stretch:
    """A part of a trial's training.

    Attributes:
        share: of the trial's compute.
        seq_len: tokens per sequence, a divisor of `trainer.seq_len`; 0 means that itself. A shorter sequence is a
            piece of a whole one, so a step has as many tokens as any other.
        attention: what layers with an indexer do. `sparse`: as configured. `dense`: they read all entries that
            they see, and the indexer neither runs nor learns. `warmup`: they read all entries too, and only the
            indexer learns, from its own loss; all else is frozen.
    """

    share: float
    seq_len: int = 0
    attention: str = "sparse"


@dataclass
class Trainer:
    """How one trial runs.

    Attributes:
        curriculum: stretches in their order, each with the fields of `Stretch`, such as
            `[{share: 0.3, seq_len: 64}, {share: 0.7}]`; shares sum to 1, and the last one trains as configured.
            Empty means all of it as configured. Arms may differ in it.
    """

    device: str = "auto"
    precision: str = "32-true"
    seq_len: int = 0
    batch_size: int = 0
    """Sequences per optimizer step."""
    evals: int = 8
    """Evaluations per trial, at equal shares of its allowance; the last one is the result."""
    watch_tokens: int = 1024
    """Held-out tokens on which components are asked for all their diagnostics; 0 means never."""
    watch_every: int = 1
    """Evaluations from one probe to the next; the last evaluation has one whatever the interval."""
    curriculum: list[dict[str, Any]] = field(default_factory=list)
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int = 0
    """Also a checkpoint every so many steps; no more than those are then done again after a crash. 0 means none."""
    keep_weights: str = "confirm"
    """Trials whose final weights are kept: those of phase `search` or `confirm`, `all`, or `none`."""


@dataclass
class Search:
    """Tuning of every arm with equal compute, and before it, with `design: search`, the search for arms.

    Attributes:
        points: learning rates per arm in the first round, spaced by `factor` around `optimizer.lr`; at least 5.
        extensions: further rounds of one point per arm, spent on the edge side of an arm whose optimum is at the edge.
        trials: different models that an open search trains, each once, with equal compute.
        sampler: who proposes them.
        control: share of the proposals drawn at random, whatever the sampler.
        finalists: best of them that become arms, are tuned, and confirmed on fresh seeds.
        objectives: `loss`, and known costs (`kv_bytes_per_token`, `train_flops_per_token`, `decode_flops`, `params`,
            `active_params`) to be made small together.
        constraints: known cost to its largest allowed value; a proposal beyond it is not trained.
        warm_start: study of the same space and settings whose results the sampler begins with.
    """

    points: int = 5
    factor: float = 2.0
    extensions: int = 2
    trials: int = 40
    sampler: str = "tpe"
    control: float = 0.0
    finalists: int = 3
    objectives: list[str] = field(default_factory=lambda: ["loss"])
    constraints: dict[str, Any] = field(default_factory=dict)
    warm_start: str | None = None


@dataclass
class Confirm:
    """Fresh paired seeds on which verdicts stand.

    Attributes:
        replicates: seeds per arm, where there are no looks.
        looks: seeds at which arms are looked at, such as `[3, 5, 8]`; an arm that is decided gets no more.
        margin: nats within which a difference counts as equivalent.
        alpha: family-wise error rate over the sweep's contrasts.
    """

    replicates: int = 6
    looks: list[int] = field(default_factory=list)
    margin: float = 0.01
    alpha: float = 0.05

    @property
    def seeds(self) -> int:
        """Seeds per arm at most."""
        return self.looks[-1] if self.looks else self.replicates


@dataclass
class Sweep:
    """One question: which arms, against which baseline.

    Attributes:
        design: `arms` (those named), or what generates further arms from `factors`: `one_factor`,
            `leave_one_out`, `add_one_in`, `full_factorial`, `fractional_factorial`; or `search`, which finds them in
            `space`.
        baseline: an arm; a design has one of its own unless this says another.
        arms: arm name to overrides of the configuration, such as `{residual: prenorm}` or
            `{model.compress_ratios: csa@4*6}`.
        factors: factor name to the overrides of its two levels, `{without: {residual: prenorm}}`; with
            `one_factor`, a key with a list of its values, or a name with levels by name.
        space: keys of the configuration to what they are drawn from, for `design: search` (`ablate.space`).
        ladder: overrides of each smaller size, such as `[budget.per_trial=200 GFLOP]`; the sweep itself is the
            largest. A study per size, and together the compute multiplier of every arm.
        resolution: lowest that a fraction may have. At 5 main effects and two-way interactions are clear of
            each other, at 4 main effects are clear of two-way interactions.
    """

    name: str = "???"
    question: str = ""
    design: str = "arms"
    baseline: str = "???"
    arms: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    resolution: int = 5
    ladder: list[list[str]] = field(default_factory=list)
    search: Search = field(default_factory=Search)
    confirm: Confirm = field(default_factory=Confirm)

    @property
    def searches(self) -> bool:
        """Whether arms are searched for."""
        return self.design == "search"

    @property
    def contrasts(self) -> int:
        """Arms that are compared with the baseline, those that a search will find among them."""
        return len(self.arms) - 1 + (self.search.finalists if self.searches else 0)


@dataclass
class Launcher:
    """Where trials run. `workers` 0 means one per core on CPU, one per GPU otherwise."""

    name: str = "???"
    workers: int = 0
    threads: int = 1
    lease_seconds: float = 60.0
    max_attempts: int = 3


@dataclass
class Tracking:
    """The MLflow mirror. `uri` null means a SQLite store in the home folder."""

    name: str = "???"
    enabled: bool = True
    uri: str | None = None
    seconds: float = 10.0
    """Time between exports while a study runs."""


@dataclass
class Run:
    """Everything that decides a study."""

    sweep: Sweep = field(default_factory=Sweep)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    budget: Budget = field(default_factory=Budget)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)
    launcher: Launcher = field(default_factory=Launcher)
    tracking: Tracking = field(default_factory=Tracking)
    residual: Slot = field(default_factory=Slot)
    norm: Slot = field(default_factory=Slot)
    post_norm: Slot = field(default_factory=Slot)
    position: Slot = field(default_factory=Slot)
    sink: Slot = field(default_factory=Slot)
    output_projection: Slot = field(default_factory=Slot)
    compressor: Slot = field(default_factory=Slot)
    indexer: Slot = field(default_factory=Slot)
    ffn: Slot = field(default_factory=Slot)
    router: Slot = field(default_factory=Slot)
    mtp: Slot = field(default_factory=Slot)
    attention: dict[str, Any] = field(default_factory=dict)
    """Options by entry, such as `attention.mla.kv_lora_rank`. Which layer has which entry says the schedule."""
    seed: int = 0
    home: str | None = None
    storage: str | None = None
    """Address of a PostgreSQL database in place of a SQLite file in the home folder."""
    plugins: list[str] = field(default_factory=list)


def to_dict(run: Run) -> dict[str, Any]:
    """JSON-able form; `from_dict` is its inverse."""
    return dataclasses.asdict(run)


def from_dict(values: dict[str, Any]) -> Run:
    """A `Run` from the form that `to_dict` writes."""
    return _build(Run, values)


def _build(cls: type, values: dict[str, Any]) -> Any:
    nested = {f.name: f.type for f in dataclasses.fields(cls) if isinstance(f.type, type)}
    return cls(
        **{
            key: _build(nested[key], value) if dataclasses.is_dataclass(nested.get(key)) else value
            for key, value in values.items()
        }
    )
