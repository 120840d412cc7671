"""`edge-agent model tune`: how a model runs on this board, each way measured, the best remembered.

The daemon measures for itself what it has not seen yet, in a hurry. This takes its time, shows
everything, and stores the choice where the daemon looks for it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.choices import CHOICES_FILE, Choice, add_choices, most_threads
from agent.config import Config, ModelConfig
from agent.errors import EXIT_OK, ModelError
from agent.vision.accelerate import explain
from agent.vision.model_files import read_model
from agent.vision.trial import choice_key, try_model


class Tuned(Struct, frozen=True, kw_only=True):
    """The document that `--json` prints."""

    model: str
    sha256: str
    most_threads: int
    choice: Choice
    stored_in: str | None
    not_stored: str | None  # why


def run_tune(config: Config, given: ModelConfig, *, as_json: bool) -> int:
    """Measure the model that `given` names, store and print what is best; return the exit code.

    Raises:
        ModelError: it runs in no way.
    """
    section = section_of(config, given)
    files = read_model(section.path)
    # As the daemon shares the cores out, so that it finds what is stored here.
    threads = most_threads(len({camera.model for camera in config.camera}))
    try:
        choice = try_model(files, section, most_threads=threads, is_thorough=True, say=_say)
    except ModelError as error:
        raise explain(error, files) from error
    path = Path(config.device.state_dir) / CHOICES_FILE
    not_stored = _store(path, choice_key(files, section, threads), choice)
    tuned = Tuned(
        model=files.where,
        sha256=files.plain.sha256,
        most_threads=threads,
        choice=choice,
        stored_in=None if not_stored else str(path),
        not_stored=not_stored,
    )
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(tuned), indent=2).decode())
    else:
        _print(tuned, path)
    return EXIT_OK


def section_of(config: Config, given: ModelConfig) -> ModelConfig:
    """Return the settings that the daemon has for this model, with what was given in their place.

    given.path may be the name of a section in [models].
    """
    base = config.models.get(given.path)
    if base is None:
        sections = (config.model, *config.models.values())
        base = next((each for each in sections if each.path == given.path), given)
    usual = ModelConfig(path=given.path)
    changes = {
        name: value
        for name in ModelConfig.__struct_fields__
        if (value := getattr(given, name)) != getattr(usual, name)
    }
    return msgspec.structs.replace(base, **changes)


def _store(path: Path, key: str, choice: Choice) -> str | None:
    """Remember the choice; return why not, where it cannot be written."""
    try:
        add_choices(path, {key: choice})
    except OSError as error:
        return error.strerror or str(error)
    return None


def _say(what: str) -> None:
    print(f"edge-agent: {what}", file=sys.stderr, flush=True)


def _print(tuned: Tuned, path: Path) -> None:
    print(f"{tuned.model}: sha256 {tuned.sha256[:12]}, at most {tuned.most_threads} threads\n")
    print(f"  {'runtime':<22} {'XNNPACK':<8} {'threads':>7} {'ms':>10}")
    chosen = tuned.choice.chosen()
    for each in tuned.choice.candidates:
        mark = "*" if each == chosen else " "
        ms = f"{each.invoke_ms:.2f}" if each.invoke_ms is not None else "-"
        kernels = "yes" if each.xnnpack else "no"
        refused = f"  refused: {each.refused}" if each.refused else ""
        print(f"{mark} {each.runtime:<22} {kernels:<8} {each.threads:>7} {ms:>10}{refused}")
    print(f"\n* chosen: {chosen.way()}")
    if tuned.not_stored:
        print(
            f"not stored: {path}: {tuned.not_stored}; the daemon will measure for itself "
            "(run this as its user, or give --config)"
        )
    else:
        print(f"stored in {path}; the daemon uses it from its next start")
