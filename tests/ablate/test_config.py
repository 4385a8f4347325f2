"""Configuration: what composes, what is refused, and with which words."""

import threading
from pathlib import Path

import pytest

from ablate import config, schema
from ablate.errors import BadInputError
from components import registry


def _options(group: str) -> list[str]:
    return sorted(
        path.stem for path in (Path(str(config.__file__)).parent.parent / "sweeps" / group).glob("*.yaml")
    )


@pytest.mark.parametrize("sweep", _options("sweep"))
def test_every_shipped_sweep_composes_and_survives_a_snapshot(sweep: str) -> None:
    run = config.load([f"sweep={sweep}"])
    assert run.sweep.name == sweep
    assert run.sweep.question.endswith("?")
    assert schema.from_dict(schema.to_dict(run)) == run
    assert config.restore(config.snapshot(run)) == run


@pytest.mark.parametrize("model", _options("model"))
def test_every_shipped_model_composes(model: str) -> None:
    assert config.load([f"model={model}"], require_sweep=False).model.name == model


@pytest.mark.parametrize("slot", [*schema.SLOT_GROUPS, "optimizer"])
def test_registry_entries_are_options_of_their_slot(slot: str) -> None:
    for entry in registry.entries(slot):
        run = config.load([f"{slot}={entry.name}"], require_sweep=False)
        chosen = getattr(run, slot)
        assert chosen.name == entry.name
        assert entry.config(chosen.args) == entry.config()


def test_command_line_wins_over_the_sweep_and_an_option_replaces_all_of_its_group() -> None:
    run = config.load(["sweep=compress_ratios", "residual=prenorm", "model=tiny", "seed=3"])
    assert (run.residual.name, run.model.hidden_size, run.seed) == ("prenorm", 128, 3)
    assert "hc_mult" not in run.residual.args


def test_component_options_are_typed() -> None:
    assert (
        config.load(["residual=mhc", "residual.args.hc_mult=2"], require_sweep=False).residual.args["hc_mult"]
        == 2
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.compress_ratios=swa*2,(csa@4,hca@16)*2", "swa*2,(csa@4,hca@16)*2"),
        ("model.compress_ratios='swa*4'", "swa*4"),
        ("model.compress_ratios=[0,0,4,16]", [0, 0, 4, 16]),
        ("model.compress_ratios=[swa,csa@4:k32]", "swa,csa@4:k32"),
        ("budget.total=2 PFLOP", "2 PFLOP"),
        ("budget.total=3e15", "3e15"),
        ("data.files=[a/*.txt,b.txt]", ["a/*.txt", "b.txt"]),
        ("data.files=one.txt", ["one.txt"]),
        ("data.source=a (copy)", "a (copy)"),
        ("optimizer.args.beta2=1e-1", 0.1),
        ("trainer.batch_size=1e1", 10),
        ("tracking.uri=null", None),
        ("model={hidden_size: 32}", None),
    ],
)
def test_values_arrive_as_typed(override: str, value: object) -> None:
    values = schema.to_dict(config.load([override], require_sweep=False))
    if override.startswith("model={"):
        assert values["model"]["hidden_size"] == 32
        return
    for part in override.partition("=")[0].split("."):
        values = values[part]
    assert values == value


BAD = [
    (["sweep=compress_ratois"], ["sweep=compress_ratois", "Did you mean 'compress_ratios'", "smoke"]),
    (["sweep=smoke", "modle=micro"], ["modle=micro", "Did you mean 'model'"]),
    (
        ["sweep=smoke", "model.hiden_size=2"],
        ["model.hiden_size=2", "Did you mean 'model.hidden_size'", "head_dim"],
    ),
    (["sweep=smoke", "budget.toal=1e10"], ["budget.toal", "Did you mean 'budget.total'"]),
    (["sweep=smoke", "residual=mch"], ["residual=mch", "Did you mean 'mhc'", "prenorm"]),
    (
        ["sweep=smoke", "residual=mhc", "residual.args.hc_mul=2"],
        ["residual.args.hc_mul=2", "'residual.args.hc_mult'"],
    ),
    (
        ["sweep=smoke", "residual=mhc", "residual.args.hc_mult=two"],
        ["residual.args.hc_mult=two", "an integer"],
    ),
    (
        ["sweep=smoke", "residual=prenorm", "residual.args.hc_mult=2"],
        ["residual.args.hc_mult=2", "residual/prenorm"],
    ),
    (["sweep=smoke", "+model.new=1"], ["+model.new=1", "cannot be added"]),
    (["sweep=smoke", "++model.hidden_size=1"], ["cannot be added"]),
    (["sweep=smoke", "hydra.run.dir=x"], ["hydra.run.dir=x", "no effect"]),
    (["sweep=smoke", "model._target_=os.system"], ["model._target_=os.system", "hidden_size"]),
    (["sweep=smoke", "~data"], ["~data", "only arms"]),
    (["sweep=smoke", "~sweep.arms.cas"], ["Did you mean 'csa'"]),
    (["sweep=smoke,residual"], ["sweep=smoke,residual", "several values"]),
    (["sweep=smoke", "seed=range(1,3)"], ["seed=range(1,3)", "several values"]),
    (["sweep=smoke", "model.hidden_size=-3"], ["model.hidden_size=-3", "at least 1"]),
    (["sweep=smoke", "model.hidden_size=2.5"], ["model.hidden_size=2.5", "an integer"]),
    (["sweep=smoke", "optimizer=moun"], ["optimizer=moun", "'muon'", "adamw"]),
    (
        ["sweep=smoke", "optimizer=muon", "optimizer.args.momentom=0.9"],
        ["optimizer.args.momentom=0.9", "'optimizer.args.momentum'"],
    ),
    (["sweep=smoke", "optimizer.args.newton_schulz=hybrid"], ["newton_schulz=hybrid", "optimizer/adamw"]),
    (["sweep=smoke", "optimizer=muon", "optimizer.args.momentum=1"], ["momentum=1.0", "below 1"]),
    (["sweep=smoke", "optimizer=muon", "optimizer.args.newton_schulz=cubic"], ["'cubic'", "hybrid, quintic"]),
    (["sweep=smoke", "sweep.arms.x={optimizer: moun}"], ["optimizer=moun", "arm 'x'", "'muon'"]),
    (["sweep=smoke", "sweep.arms.x={optimizer.lr: 1.0}"], ["optimizer.lr=1.0", "arm 'x'", "tuned"]),
    (["sweep=smoke", "optimizer.lr=nan"], ["optimizer.lr=nan", "finite"]),
    (["sweep=smoke", "optimizer.lr=[1,2"], ["optimizer.lr=[1,2", "cannot be read"]),
    (["sweep=smoke", "tracking.enabled=3"], ["tracking.enabled=3", "true or false"]),
    (["sweep=smoke", "sweep.search.points=4"], ["sweep.search.points=4", "at least 5"]),
    (["sweep=smoke", "sweep.baseline=none"], ["sweep.baseline=none", "csa"]),
    (["sweep=smoke", "sweep.arms.x={residual: prenrm}"], ["residual=prenrm", "arm 'x'", "'prenorm'"]),
    (
        ["sweep=smoke", "sweep.arms.x={data.source: y}"],
        ["data.source=y", "arm 'x'", "cannot differ between arms"],
    ),
    (["sweep=smoke", "sweep.arms.x=5"], ["sweep.arms.x=5", "mapping"]),
    (["sweep=smoke", "budget.match=memory"], ["budget.match=memory", "flops, tokens", "kv_bytes"]),
    (["sweep=smoke", "trainer.device=gpu"], ["trainer.device=gpu", "cuda"]),
    (["sweep=smoke", "plugins=[no_such_package]"], ["plugins", "no_such_package"]),
    (["sweep=smoke", "model.hidden_size"], ["model.hidden_size", "not an override"]),
    (["sweep=smoke", "model.hidden_size="], ["model.hidden_size", "an integer"]),
    ([], ["sweep=NAME", "compress_ratios"]),
]


@pytest.mark.parametrize(("overrides", "words"), BAD, ids=[" ".join(o[-1:]) or "nothing" for o, _ in BAD])
def test_bad_input_names_key_value_allowed_and_nearest(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        config.load(overrides)
    for word in words:
        assert word in str(caught.value)
    assert "To append to your config" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle: micro", ["modle=micro", "mine.yaml:6", "Did you mean 'model'"]),
        ("budget: {toal: 1e12}", ["budget.toal", "mine.yaml:6", "Did you mean 'budget.total'"]),
        ("model:\n  hidden_size: big", ["model.hidden_size=big", "mine.yaml:7", "an integer"]),
        ("residual: {args: {hc_mul: 2}}", ["residual.args.hc_mul=2", "mine.yaml:6"]),
        ("defaults: [{override /model: mirco}]", ["model=mirco", "sweep/mine", "Did you mean 'micro'"]),
        ("defaults: [{override /modle: micro}]", ["modle", "Did you mean 'model'"]),
        ("model:\n  hidden_size: ${nothing}", ["nothing"]),
        ("  arms: {}", ["mine.yaml"]),
        ("a: [1,", ["mine.yaml"]),
    ],
)
def test_mistakes_in_a_users_file_are_found_with_their_line(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    (tmp_path / "sweep").mkdir()
    header = "# @package _global_\nsweep:\n  question: q?\n  baseline: a\n  arms: {a: {}, b: {residual: prenorm}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(header + text + "\n")
    with pytest.raises(BadInputError) as caught:
        config.load(["sweep=mine"], [tmp_path])
    for word in words:
        assert word in str(caught.value)


def test_a_users_folder_adds_options_and_may_inherit_ours(tmp_path: Path) -> None:
    for group in ("sweep", "model"):
        (tmp_path / group).mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# @package _global_\n# My question.\ndefaults: [smoke, _self_]\n"
        "sweep:\n  arms: {other: {model.sliding_window: 8}}\n"
    )
    (tmp_path / "model" / "thin.yaml").write_text("# Thin.\ndefaults: [micro, _self_]\nhidden_size: 32\n")
    run = config.load(["sweep=mine", "model=thin"], [tmp_path])
    assert (run.sweep.name, run.model.name, run.model.hidden_size) == ("mine", "thin", 32)
    assert set(run.sweep.arms) == {"sliding_window", "csa", "other"}
    assert config.options("sweep", [tmp_path])["mine"] == "My question."
    with pytest.raises(BadInputError, match="not a folder"):
        config.load(["sweep=mine"], [tmp_path / "nowhere"])


def test_arms_apply_names_before_options() -> None:
    run = config.load(["residual=prenorm"], require_sweep=False)
    arm = config.apply_arm(
        run, {"residual.args.hc_mult": 2, "residual": "mhc", "model.compress_ratios": "swa*4"}
    )
    assert (arm.residual.name, arm.residual.args["hc_mult"], arm.model.compress_ratios) == ("mhc", 2, "swa*4")
    assert run.residual.name == "prenorm"
    nested = config.apply_arm(
        run, {"residual": {"name": "mhc", "args": {"hc_mult": 2}}, "model": {"sliding_window": 8}}
    )
    assert (nested.residual, nested.model.sliding_window) == (arm.residual, 8)


def test_an_arm_changes_the_optimizer_and_keeps_what_all_share() -> None:
    run = config.load(["optimizer.lr=0.02", "optimizer.args.beta1=0.8"], require_sweep=False)
    arm = config.apply_arm(
        run, {"optimizer": "muon", "optimizer.args.momentum": 0.9, "optimizer.warmup": 0.1}
    )
    assert (arm.optimizer.name, arm.optimizer.lr, arm.optimizer.warmup) == ("muon", 0.02, 0.1)
    assert (arm.optimizer.args["momentum"], arm.optimizer.args["beta1"]) == (0.9, 0.9)
    nested = config.apply_arm(run, {"optimizer": {"warmup": 0.1, "args": {"momentum": 0.9}, "name": "muon"}})
    assert nested.optimizer == arm.optimizer
    assert run.optimizer.args["beta1"] == 0.8


def test_a_users_preset_names_its_optimizer(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "short.yaml").write_text(
        "name: muon\nargs: {newton_schulz: quintic}\nlr: 0.01\n"
    )
    settings = config.load(["optimizer=short"], [tmp_path], require_sweep=False).optimizer
    assert (settings.name, settings.args["newton_schulz"], settings.lr) == ("muon", "quintic", 0.01)
    assert settings.args["momentum"] == 0.95  # the component's default


def test_composition_leaves_a_surrounding_hydra_application_alone() -> None:
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group="residual", name="theirs", node={"x": 1})
    with initialize_config_module(config_module="sweeps", version_base="1.3"):
        config.load(["sweep=smoke"])
        assert compose(overrides=["+residual=theirs"]).residual.x == 1


def test_threads_may_compose_at_the_same_time() -> None:
    results: list[schema.Run] = []
    threads = [
        threading.Thread(target=lambda: results.append(config.load(["sweep=smoke"]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(run == results[0] for run in results)
