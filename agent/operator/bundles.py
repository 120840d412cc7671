"""A bundle as the operator sees it: examined like on a board, before it is signed for.

Its manifest says all that the repository says of it; nothing is typed in twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError, UnavailableError
from agent.ota import bundle as bundles
from agent.ota.jobs import Custom
from agent.ota.refusal import RefusalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle's file, and what boards will read of it before they download it."""

    path: Path
    sha256: str
    size: int
    custom: Custom

    @property
    def name(self) -> str:
        """Return the model's name."""
        return self.custom.name

    @property
    def version(self) -> str:
        """Return its version."""
        return self.custom.version

    @property
    def title(self) -> str:
        """Return name@version."""
        return f"{self.name}@{self.version}"

    @property
    def target_path(self) -> str:
        """Return where clients look for it in targets.json."""
        return f"{self.name}/{self.version}.tar"


def examine(path: Path) -> Bundle:
    """Read all of a bundle as a board does, and hash the very bytes that were read.

    Raises:
        AgentError: a board would refuse it; with its code.
        UnavailableError: the file cannot be read.
    """
    try:
        found = bundles.examine(path)
    except RefusalError as error:
        raise AgentError(f"{path}: boards would refuse it: {error.code}: {error}") from error
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror}") from error
    manifest = found.manifest
    return Bundle(
        path=path,
        sha256=found.sha256,
        size=found.size,
        custom=Custom(
            name=manifest.name,
            version=manifest.version,
            release_counter=manifest.release_counter,
            security_floor=manifest.security_floor,
            boards=list(manifest.boards),
            min_agent=manifest.min_agent,
        ),
    )
