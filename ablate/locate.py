"""Where in the YAML files a value stands, for error messages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def locate(path: Sequence[str], value: Any, sources: Mapping[str, Path]) -> str:
    """`file:line` of the dotted `path`, or an empty text where no file holds it.

    Args:
        value: what was composed there; a file that holds another value at that place is not the one.
        sources: config group to the file of its chosen option; `""` is the root configuration.
    """
    for group in dict.fromkeys(["sweep", path[0], "", *sources]):
        if group in sources:
            file = sources[group]
            mark = _find(file, group, path, value)
            if mark is not None:
                return f"{file}:{mark.line + 1}"
    return ""


def _find(file: Path, group: str, path: Sequence[str], value: Any) -> Any:
    text = file.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    if group and "@package _global_" not in text:
        if path[0] != group:
            return None
        path = path[1:]
    mark = None
    for part in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, below) for key, below in pairs if key.value == part), None)
        if found is None:
            return None
        mark, node = found[0].start_mark, found[1]
    scalar = isinstance(node, yaml.ScalarNode) and not isinstance(value, Mapping)
    return None if scalar and not _same(node.value, value) else mark


def _same(written: str, value: Any) -> bool:
    """Whether a scalar of a file reads as `value`; the two YAML readers differ on `1e12` and the like."""
    if written == str(value) or value is None or isinstance(value, bool):
        return True
    try:
        return float(written) == float(value)
    except (TypeError, ValueError):
        return False


def line_with(pattern: str, files: Iterable[Path]) -> str:
    """`file:line` of the first line that a regular expression finds, or an empty text."""
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, line):
                return f"{file}:{number}"
    return ""
