"""Configuration: Hydra composes `sweeps/` and overrides into plain values, which are checked and typed here.

The only module that knows Hydra. Hydra does what it is good at (defaults lists, groups, packages, search
paths and the override grammar); every value then goes through `Tree.set`, whether it comes from YAML, from
the command line or from an arm, so that each mistake gets the same sentence: key, value, what is allowed,
nearest match, and where it stands.
"""

import copy
import re
import threading
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablate import open_search, schema
from ablate.errors import BadInputError
from ablate.locate import line_with, locate
from ablate.schema import PROBE
from ablate.tree import Tree, allowed_keys, apply_arm
from components import registry
from components.probing import Probe

GROUPS = ("model", "data", "budget", "optimizer", "trainer", "launcher", "tracking", "sweep")
"""Config groups whose options are YAML files; slots take theirs from the registry, and from YAML too."""

_REGISTERED = (*schema.SLOT_GROUPS, "optimizer")
"""Config groups whose options are entries of the registry."""

_FREE_TEXT = ("model.compress_ratios",)
_AMOUNTS = ("budget.total", "budget.per_trial")
__all__ = ["apply_arm", "file_of", "load", "options", "restore", "snapshot"]

_LOCK = threading.Lock()


def load(
    overrides: Sequence[str], config_dirs: Iterable[Path] = (), *, require_sweep: bool = True
) -> schema.Run:
    """Compose `sweeps/config.yaml` with `overrides` into a complete, typed and checked run.

    Args:
        overrides: `group=option`, `dotted.key=value`, `~sweep.arms.NAME` or `~sweep.factors.NAME`.
        config_dirs: folders with further group options, searched after ours.
        require_sweep: whether a sweep must be named; `show model=...` does without.

    Raises:
        BadInputError: an unknown key, group, option or component, or a value of the wrong type or range.
    """
    folders = [_existing(folder) for folder in config_dirs]
    parsed = [_parse(text) for text in overrides]
    _load_plugins(parsed, folders)
    choices = [o for o in parsed if _is_choice(o)]
    values, sources = _compose(choices, folders, require_sweep)

    tree = Tree(sources)
    for group in schema.SLOT_GROUPS:  # names before options: a name brings its own set of options
        if group in values:
            tree.set(group, values.pop(group))
    tree.merge("", values)
    for override in parsed:
        if not _is_choice(override):
            tree.sources = {}  # from here on the command line speaks, not a file
            _apply(tree, override)
    tree.design()
    run = tree.build(require_sweep)
    for name in run.sweep.arms:
        apply_arm(run, run.sweep.arms[name], name, locate(["sweep", "arms", name], {}, sources))
    if run.sweep.searches:
        open_search.check(run)
    return run


def changed(run: schema.Run, overrides: Sequence[str]) -> schema.Run:
    """`run` with overrides of single keys applied.

    Raises:
        BadInputError: as `load`.
    """
    tree = Tree({}, schema.to_dict(run))
    for text in overrides:
        _apply(tree, _parse(text))
    return tree.build(require_sweep=True)


def snapshot(run: schema.Run) -> str:
    """The whole configuration as YAML; `restore` is its inverse."""
    return OmegaConf.to_yaml(OmegaConf.create(schema.to_dict(run)))


def restore(text: str) -> schema.Run:
    """The run that `snapshot` wrote."""
    values = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(values, dict)
    tree = Tree({})
    tree.merge("", {str(key): value for key, value in values.items()})
    return tree.build(require_sweep=False)


def options(group: str, config_dirs: Iterable[Path] = ()) -> dict[str, str]:
    """Options of a config group to their first comment line; slots list the registry's entries too."""
    found: dict[str, str] = {}
    if group in _REGISTERED:
        found = {entry.name: entry.summary for entry in registry.entries(group)}
    for root in (_shipped(), *(Path(folder) for folder in config_dirs)):
        for path in sorted((root / group).glob("*.yaml")):
            found.setdefault(path.stem, _header(path))
    if group == "data":
        found |= {f"{PROBE}{entry.name}": entry.summary for entry in registry.entries("probe")}
    return found


def file_of(group: str, option: str, config_dirs: Iterable[Path] = ()) -> Path | None:
    """The YAML file that defines an option, if it is one."""
    for root in (_shipped(), *(Path(folder) for folder in config_dirs)):
        path = root / group / f"{option}.yaml"
        if path.exists():
            return path
    return None


# ------------------------------------------------------------------------ overrides


def _parse(text: str) -> Override:
    """One command-line override; text that Hydra's grammar cannot read (schedules) is taken literally."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if key.startswith("+"):
        raise BadInputError(f"'{text}': keys cannot be added with '+'. Give an existing key as key=value.")
    if key.startswith("~"):
        if not key.startswith(("~sweep.arms.", "~sweep.factors.", "~sweep.space.")):
            raise BadInputError(
                f"'{text}': only arms, factors and keys of a space can be removed, as ~sweep.arms.NAME, "
                "~sweep.factors.NAME or ~sweep.space.KEY."
            )
    elif not equals:
        raise BadInputError(f"'{text}' is not an override. Allowed: group=option or dotted.key=value.")
    if key.lstrip("~").split(".")[0] == "hydra":
        raise BadInputError(f"'{text}': hydra.* has no effect here. {allowed_keys(key)}")
    if "@" in key:
        raise BadInputError(
            f"'{text}': packages (@) belong into a YAML file's defaults list, not on the command line."
        )
    parser = OverridesParser.create()
    quoted = value[:1] in ("'", '"')
    if key in _AMOUNTS and value != "null" and not quoted:
        return _literal(parser, key, value)  # so that messages show what was typed
    if key in _FREE_TEXT and not quoted and not re.fullmatch(r"\[[\d,\s]*\]", value):
        inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        return _literal(parser, key, inner)
    try:
        override = parser.parse_override(text)
    except HydraException:
        if value[:1] in "[{":
            raise BadInputError(
                f"{key}={value} cannot be read. Close brackets and quote text with commas."
            ) from None
        return _literal(parser, key, value)
    if override.is_sweep_override():
        raise BadInputError(
            f"{key}={value} names several values, but a run has one. To compare values, make them arms of a "
            f"sweep (sweep.arms); to give text with commas, quote it: {key}=\"'{value}'\"."
        )
    return override


def _apply(tree: Tree, override: Override) -> None:
    key = override.key_or_group
    if override.is_delete():
        tree.remove(key)
    else:
        tree.set(key, _unquoted(override.value()))


def _unquoted(value: Any) -> Any:
    """Hydra's parsed value without its marks for quoted strings."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {str(_unquoted(k)): _unquoted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unquoted(v) for v in value]
    return value


def _literal(parser: OverridesParser, key: str, value: str) -> Override:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return parser.parse_override(f"{key}='{escaped}'")


def _is_choice(override: Override) -> bool:
    return override.key_or_group in _groups() and not isinstance(override.value(), dict | list)


def _groups() -> tuple[str, ...]:
    return (*GROUPS, *schema.SLOT_GROUPS)


# ------------------------------------------------------------------------ composition


def _compose(
    choices: list[Override], folders: list[Path], require_sweep: bool
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Values of all chosen options, and the YAML file of each group's choice."""
    texts = []
    for override in choices:
        group, option = override.key_or_group, str(override.value())
        known = options(group, folders)
        if option not in known and "/" not in option:
            raise BadInputError(f"{group}={option}: {registry.unknown(group, option, known)}")
        texts.append(f"{group}={option}")
    if require_sweep and not any(text.startswith("sweep=") for text in texts):
        raise BadInputError(
            f"no sweep named. Give sweep=NAME. Allowed: {', '.join(options('sweep', folders))}."
        )
    if folders:
        texts.append("hydra.searchpath=[" + ",".join(f"'file://{folder}'" for folder in folders) + "]")
    with _LOCK:
        store, outer = ConfigStore.instance(), GlobalHydra.instance().hydra
        had = {slot: copy.copy(store.repo.get(slot)) for slot in (*_REGISTERED, "data")}
        GlobalHydra.instance().clear()
        try:
            for slot in _REGISTERED:
                store.repo.pop(slot, None)
                for entry in registry.entries(slot):
                    if file_of(slot, entry.name, folders) is None:
                        store.store(group=slot, name=entry.name, node={"name": entry.name, "args": {}})
            for entry in registry.entries("probe"):
                node = {
                    "source": f"{PROBE}{entry.name}",
                    "vocab_size": cast(type[Probe], entry.cls).vocab_size,
                }
                store.store(group=f"data/{PROBE.rstrip('/')}", name=entry.name, node=node)
            with initialize_config_module(config_module="sweeps", version_base="1.3"):
                composed = compose(config_name="config", overrides=texts, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, OSError) as error:
            raise _composition_error(error, choices, folders) from error
        finally:
            GlobalHydra.instance().hydra = outer
            for slot, nodes in had.items():
                store.repo.pop(slot, None)
                if nodes is not None:
                    store.repo[slot] = nodes
    chosen = {
        str(k): str(v) for k, v in composed.hydra.runtime.choices.items() if not str(k).startswith("hydra/")
    }
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise BadInputError(f"The configuration cannot be resolved: {_first_line(error)}") from error
    assert isinstance(values, dict)
    named: dict[str, Any] = {str(key): value for key, value in values.items()}
    sources = {}
    for group, option in chosen.items():
        path = file_of(group, option, folders)
        if path:
            sources[group] = path
        if group in GROUPS and group != "trainer" and option != "None" and isinstance(named.get(group), dict):
            preset = named[group].get("name") if group == "optimizer" else None  # of a component with options
            named[group]["name"] = preset or option
    if named.get("sweep") is None:
        named.pop("sweep", None)
    return named, {"": _shipped() / "config.yaml", **sources}


def _composition_error(error: Exception, choices: list[Override], folders: list[Path]) -> BadInputError:
    """Hydra's complaint about a YAML file or defaults list in our form."""
    text = str(error)
    files = [file_of(o.key_or_group, str(o.value()), folders) for o in choices]
    candidates = [path for path in files if path]
    missing = re.search(r"Could not find '([\w.-]+)/([^']+)'", text)
    if missing:
        group, option = missing[1], missing[2]
        line = line_with(rf"\b{re.escape(group)}\s*:\s*['\"]?{re.escape(option)}\b", candidates)
        kinds, name, known = (
            (group, option, list(options(group, folders)))
            if group in _groups()
            else ("config group", group, list(_groups()))
        )
        where = f" ({line})" if line else ""
        return BadInputError(f"{group}={option}{where}: {registry.unknown(kinds, name, known)}")
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        group = override[1].split("@")[0]
        line = line_with(rf"\b{re.escape(group)}\s*:", candidates)
        where = f" ({line})" if line else ""
        return BadInputError(f"override {group}{where}: {registry.unknown('config group', group, _groups())}")
    known_place = getattr(error, "problem_mark", None) is not None
    return BadInputError(
        f"The configuration cannot be composed: {text if known_place else _first_line(error)}"
    )


def _load_plugins(parsed: list[Override], folders: list[Path]) -> None:
    """Import the packages that bring components, before their groups are asked for."""
    names: list[str] = []
    for override in parsed:
        if override.key_or_group == "plugins":
            value = override.value()
            names += [str(v) for v in (value if isinstance(value, list) else [value])]
        if override.key_or_group == "sweep":
            path = file_of("sweep", str(override.value()), folders)
            if path:
                names += [str(n) for n in (_yaml(path).get("plugins") or [])]
    try:
        registry.load(names)
    except registry.PluginError as error:
        raise BadInputError(str(error)) from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # yaml raises its own family of errors; all mean the same here
        raise BadInputError(f"{path} is not readable YAML: {error}") from error
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def _shipped() -> Path:
    return Path(str(files("sweeps")))


def _existing(folder: Path) -> Path:
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise BadInputError(f"--config-dir {folder} is not a folder.")
    return folder


def _header(path: Path) -> str:
    """First comment line of a YAML file that is not a Hydra directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ").strip()
    return ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
