"""The one folder that everything is written to."""

import os
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import BadInputError


@dataclass(frozen=True)
class Home:
    """Paths below the home folder (`runs/`, or `ABLATE_HOME`, or `home=`)."""

    root: Path

    @classmethod
    def at(cls, value: str | None = None) -> "Home":
        """The home that `value`, the environment or the current directory names; nothing is created."""
        return cls(Path(value or os.environ.get("ABLATE_HOME") or "runs").expanduser().resolve())

    def create(self) -> "Home":
        """Make the folder and prove that it can be written to.

        Raises:
            BadInputError: it cannot.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise BadInputError(
                f"home={self.root} cannot be written to ({error.strerror}). "
                "Set home=DIR or ABLATE_HOME to a folder that can."
            ) from error
        return self

    @property
    def database(self) -> Path:
        return self.root / "ablate.db"

    @property
    def optuna(self) -> Path:
        return self.root / "optuna.db"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        return self.root / "artifacts"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    def trial(self, study: str, number: int) -> Path:
        return self.root / "trials" / study / f"{number:05d}"

    def logs(self, study: str) -> Path:
        return self.root / "logs" / study

    def report(self, study: str) -> Path:
        return self.root / "reports" / study
