"""Does this architectural component help, at equal compute, and how sure are we?

The Python interface: `load`, `plan`, `run`, `build_model`; heavy imports wait until one is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.api import load, plan, run
    from ablate.model import build_model

__all__ = ["build_model", "load", "plan", "run"]


def _refuse_strangers() -> None:
    """Make sure that no other distribution has overwritten one of our plainly named packages."""
    for name in ("sweeps", "dashboards", "components"):
        package = import_module(name)
        if getattr(package, "DISTRIBUTION", None) != "ablate":
            raise ImportError(
                f"the package '{name}' at {getattr(package, '__file__', None) or list(package.__path__)} "
                "is not ablate's: another distribution installed the same top-level name. "
                "Install ablate in its own environment."
            )


_refuse_strangers()


def __getattr__(name: str) -> Any:
    if name == "build_model":
        return import_module("ablate.model").build_model
    if name in __all__:
        return getattr(import_module("ablate.api"), name)
    raise AttributeError(f"module 'ablate' has no attribute '{name}'")
