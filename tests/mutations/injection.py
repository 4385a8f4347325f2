"""Mistakes put into running code: other text for a function, other code in the same function object."""

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class Edit:
    """Other text in one function. Whoever has imported it runs the other text too.

    Attributes:
        target: `module:function` or `module:Class.method`.
        changes: (text, other text), each found exactly once in the function's source.
    """

    target: str
    changes: tuple[tuple[str, str], ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The mistake, for as long as the block runs."""
        function = _function(self.target)
        kept = function.__code__
        function.__code__ = self.compiled()
        try:
            yield
        finally:
            function.__code__ = kept

    def compiled(self) -> CodeType:
        """Code of the function with the changes.

        Raises:
            ValueError: a text is not there once, so that the mistake no longer fits the code.
        """
        function = _function(self.target)
        source = textwrap.dedent(inspect.getsource(function))
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(f"{self.target} has {source.count(old)} times: {old}")
            source = source.replace(old, new)
        return _compiled(source, function)


@dataclass(frozen=True)
class Default:
    """Another default of one option.

    Attributes:
        target: `module:Class` of a dataclass with keyword fields.
    """

    target: str
    option: str
    value: Any

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The other default, for as long as the block runs."""
        defaults = _function(f"{self.target}.__init__").__kwdefaults__
        assert defaults is not None
        kept = defaults[self.option]
        assert kept != self.value
        defaults[self.option] = self.value
        try:
            yield
        finally:
            defaults[self.option] = kept


@contextmanager
def injected(edits: tuple[Edit | Default, ...]) -> Iterator[None]:
    """All of them at once. What components remember of calls before is forgotten, and what they do meanwhile."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied())
        _forget()
        stack.callback(_forget)
        yield


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("components."):
            for value in vars(module).values():
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()


def _function(target: str) -> Any:
    name, _, path = target.partition(":")
    found: Any = importlib.import_module(name)
    for part in path.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = inspect.unwrap(getattr(found, "__func__", found))
    return function


def _compiled(source: str, function: Any) -> CodeType:
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    free = function.__code__.co_freevars
    if free:
        # Names such as `__class__`, which `super()` needs, have to be free in the new code as well.
        outer = ast.parse("def outer():\n" + "".join(f"    {name} = None\n" for name in free)).body[0]
        assert isinstance(outer, ast.FunctionDef)
        outer.body.append(definition)
        definition = outer
    module = ast.fix_missing_locations(ast.Module(body=[definition], type_ignores=[]))
    code = _named(compile(module, f"<mistake in {function.__qualname__}>", "exec"), function.__name__)
    assert code.co_freevars == free, (code.co_freevars, free)
    return code


def _named(code: CodeType, name: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                return constant
            if constant.co_name == "outer":
                return _named(constant, name)
    raise ValueError(f"no function {name} in the text")
