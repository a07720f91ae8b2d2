"""How a fetch can end badly: one exception with the contract's status and what to say about it."""

from __future__ import annotations

STATUSES = ("ok", "opt_out", "fetch_permanent", "fetch_transient", "too_large", "not_allowed", "timeout", "hash_mismatch")


class Fault(Exception):
    """`status` is one of STATUSES and decides whether asking again may help. `wait` is what the server asked us to wait, in seconds;
    `http` its status code, if it came to that."""

    def __init__(self, status: str, detail: str, *, wait: float = 0.0, http: int | None = None) -> None:
        assert status in STATUSES, status
        super().__init__(status, detail)
        self.status, self.detail, self.wait, self.http = status, detail, wait, http

    @property
    def again(self) -> bool:
        """Whether the fault may have passed by the next time."""
        return self.status in ("fetch_transient", "timeout")
