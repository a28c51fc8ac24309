"""Why a recording was not converted."""

from __future__ import annotations


class Rejected(ValueError):  # noqa: N818  a verdict on a recording, not a failure of the program
    """A recording that cannot be used.

    `reason` is one of a few fixed phrases, by which rejections are counted; the message says where and what.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        return type(self), (self.reason, self.message)
