"""The one folder that everything is written to."""

import os
from dataclasses import dataclass
from pathlib import Path

from ablate.errors import BadInputError

_STORAGE = "storage"


@dataclass(frozen=True)
class Home:
    """Paths below the home folder (`runs/`, or `ABLATE_HOME`, or `home=`).

    Attributes:
        storage: address of the PostgreSQL database that has the studies; None for a SQLite file in the folder.
    """

    root: Path
    storage: str | None = None

    @classmethod
    def at(cls, value: str | None = None, storage: str | None = None) -> "Home":
        """The home that `value`, the environment or the current directory names; nothing is created.

        Args:
            storage: of the configuration; else `ABLATE_DB`, else what `create` left in the folder, else SQLite.

        Raises:
            BadInputError: no such storage.
        """
        root = Path(value or os.environ.get("ABLATE_HOME") or "runs").expanduser().resolve()
        kept = root / _STORAGE
        named = (
            ("storage", storage),
            ("ABLATE_DB", os.environ.get("ABLATE_DB")),
            (str(kept), kept.read_text().strip() if kept.is_file() else None),
        )
        for key, address in named:
            if address:
                from ablate.storage import server

                return cls(root, server(address, key))
        return cls(root)

    @property
    def place(self) -> str:
        """Where the studies are, for messages."""
        return self.storage or str(self.root)

    def create(self) -> "Home":
        """Make the folder, prove that it can be written to, and note the storage for later commands.

        Raises:
            BadInputError: it cannot.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-test-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
            if self.storage:
                (self.root / _STORAGE).write_text(f"{self.storage}\n")
            else:
                (self.root / _STORAGE).unlink(missing_ok=True)
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
