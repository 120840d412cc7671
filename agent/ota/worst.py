"""Of several mirrors' refusals the one to report: the rest may have been the network's fault."""

from __future__ import annotations

from collections.abc import Sequence

from agent.ota.refusal import Code, RefusalError

# What an honest mirror never causes first, what any network causes last.
ORDER: tuple[Code, ...] = (
    "E_COMPAT", "E_ROLLBACK", "E_SIG", "E_HASH", "E_SIZE", "E_JSON",
    "E_DESIRED", "E_FREEZE", "E_CLOCK", "E_SPACE", "E_SYSTEM", "E_SLOW", "E_NET",
)  # fmt: skip
MOST_CHARACTERS = 1000


def worst(refusals: Sequence[RefusalError]) -> RefusalError:
    """Return one refusal with the code that says most, and all that was said."""
    if not refusals:
        return RefusalError("E_NET", "there is no mirror to ask")
    if len(refusals) == 1:
        return refusals[0]
    chosen = min(
        refusals,
        key=lambda refusal: ORDER.index(refusal.code) if refusal.code in ORDER else len(ORDER),
    )
    message = "; ".join(dict.fromkeys(str(refusal) for refusal in refusals))
    return RefusalError(chosen.code, message[:MOST_CHARACTERS], is_final=chosen.is_final)
