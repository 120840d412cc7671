"""Whether a model may be loaded in this process, and how it runs best: remembered, else tried.

The first time a board sees a model, or anything the answer depends on has changed, a child
loads and measures it (`agent.vision.trial`). The worker loads only what a child has survived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agent.choices import Choice
from agent.config import ModelConfig
from agent.vision.model_files import ModelFiles
from agent.vision.trial import accelerator_key, choice_key, try_accelerator, try_model


class FirstLook:
    """A worker's `Chooser`."""

    def __init__(
        self,
        known: Mapping[str, Choice],
        most_threads: int,
        learn: Callable[[str, Choice], None],
        opening: Callable[[], None] = lambda: None,  # an accelerator, in this very process
    ) -> None:
        self._known = dict(known)
        self.most_threads = most_threads
        self._learn = learn
        self._opening = opening
        self.measured_ms: float | None = None  # of what was chosen last

    def on_processor(self, files: ModelFiles, config: ModelConfig) -> Choice:
        """Return how the processor runs the plain model best.

        Raises:
            ModelError: a child could not load or run it.
        """
        key = choice_key(files, config, self.most_threads)
        if key not in self._known:
            self._keep(key, try_model(files, config, most_threads=self.most_threads))
        choice = self._known[key]
        self.measured_ms = choice.invoke_ms
        return choice

    def on_accelerator(self, files: ModelFiles, config: ModelConfig) -> None:
        """Let a child open the wanted accelerator and run the model on it.

        Raises:
            DelegateError: it could not.
        """
        key = accelerator_key(files, config)
        if key not in self._known:
            self._keep(key, try_accelerator(files, config))
        self.measured_ms = self._known[key].invoke_ms
        self._opening()

    def _keep(self, key: str, choice: Choice) -> None:
        self._known[key] = choice
        self._learn(key, choice)
