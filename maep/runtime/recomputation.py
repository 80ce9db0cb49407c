"""What is computed twice, so that its activations need not be kept until the backward pass, keeps none of its own."""

from contextvars import ContextVar, Token

_COMPUTED_TWICE: ContextVar[bool] = ContextVar("computed_twice", default=False)


class ComputedTwice:
    """Within it `is_computed_twice`. For both times that something checkpointed is computed (`context_fn` of torch's
    checkpoint), the second of which comes again with each backward pass; so one may be entered again.
    """

    def __init__(self) -> None:
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(_COMPUTED_TWICE.set(True))

    def __exit__(self, *error: object) -> None:
        _COMPUTED_TWICE.reset(self._tokens.pop())


def is_computed_twice() -> bool:
    """Whether what is computed now is checkpointed: what it kept would lie beside all else that is."""
    return _COMPUTED_TWICE.get()
