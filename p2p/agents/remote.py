"""The client's side of the real-time protocol: frames out, actions back, over a Unix or a TCP socket.

It knows docs/protocol.md and nothing of the policy behind the socket.
"""

import math
import select
import socket
import time
from types import TracebackType
from typing import Self

from p2p.actions import Action
from p2p.environments.game import Frame, Info
from p2p.gate import printable
from p2p.protocol import MessageReader, encode_frame, next_frame_id, parse_action
from p2p.sockets import check_peer, connect

TEXT_SUFFIX = ".text"  # beside the socket of a server lies the one that takes instructions
TEXT_TIMEOUT_S = 120.0  # the first instruction loads a language model
_CHUNK_BYTES = 1 << 16
_MAX_READS = 16  # in a row: a server that floods must not keep its client from the clock
_MAX_LINE_BYTES = 1 << 16
_MAX_ACTION_BYTES = 1 << 20  # of an answer; it holds a few names and numbers


def tell(address: str, instruction: str, any_user: bool = False) -> None:
    """Put an instruction in force (empty: none) in the server at `address`, over its text socket, ADDRESS.text.

    Raises:
        ValueError: when the server has no such socket, is another user's (unless `any_user`), or cannot use the
            instruction.
    """
    path = address + TEXT_SUFFIX
    if instruction.startswith("/") or "\n" in instruction:
        raise ValueError(f"--text {instruction!r}: expected one line that does not begin with /")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TEXT_TIMEOUT_S)
            connection.connect(path)
            if not any_user:
                check_peer(connection, path)
            connection.sendall(instruction.encode() + b"\n")
            line = connection.makefile("rb").readline(_MAX_LINE_BYTES)
    except OSError as error:
        raise ValueError(
            f"{path}: nobody takes instructions there ({error.strerror or error}); "
            f"start the server with --text-socket {path}"
        ) from error
    answer = printable(line.decode(errors="replace").strip())
    if not answer.startswith("instruction:"):
        raise ValueError(f"{address}: --text {instruction!r}: {answer.removeprefix('error: ') or 'no answer'}")


class Client:
    """One session: the server keeps one player's history for as long as the connection lives.

    Args:
        any_user: play with whoever listens at the address, not only with a server of this user or root.
    """

    def __init__(self, address: str, timeout_s: float = 30.0, any_user: bool = False) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._socket = connect(address, timeout_s, any_user)
        self._readable = select.poll()  # unlike select, for any number of open files
        self._readable.register(self._socket, select.POLLIN)
        self._reader = MessageReader(_MAX_ACTION_BYTES)
        self._next_id = 0

    def send(self, frame: Frame) -> int:
        """Send a frame uint8 [Y, X, 3]; returns its id, which the answer will carry."""
        frame_id, self._next_id = self._next_id, next_frame_id(self._next_id)
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(encode_frame(frame, frame_id))
        except OSError as error:
            raise ValueError(f"{self._address}: the server does not take frames any more ({error})") from error
        return frame_id

    def answers(self, deadline_s: float = -math.inf) -> list[tuple[Action, int]]:
        """The answers (action, frame id) that have come; waits for the first one until `deadline_s` (monotonic).

        At most the first `_MAX_READS` pieces of them: those of a server that sends more are for the next call.
        """
        found: list[tuple[Action, int]] = []
        for _ in range(_MAX_READS):
            wait_s = max(0.0, deadline_s - time.monotonic()) if not found else 0.0
            if not self._readable.poll(math.ceil(1000 * wait_s)):
                return found
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except OSError as error:
                raise ValueError(f"{self._address}: the connection broke ({error})") from error
            if not data and found:  # what came before the end counts; the next call reports the end
                return found
            if not data:
                raise ValueError(f"{self._address}: the server closed the connection; its log says why")
            found += [parse_action(payload) for payload in self._reader.feed(data)]
        return found

    def ask(self, frame: Frame) -> Action:
        """Send a frame and wait for its own answer."""
        frame_id = self.send(frame)
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s:
            for action, answered in self.answers(deadline_s):
                if answered == frame_id:
                    return action
        raise ValueError(f"{self._address}: no answer to frame {frame_id} within {self._timeout_s:g} s")

    def close(self) -> None:
        """End the session."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RemoteAgent:
    """A policy behind a socket; each episode is a session of its own.

    Args:
        any_user: as of `Client`.
        one_session: all episodes are one session, for a program in which they follow each other without an end.
    """

    def __init__(
        self, address: str, timeout_s: float = 30.0, any_user: bool = False, one_session: bool = False
    ) -> None:
        self._address, self._timeout_s, self._any_user = address, timeout_s, any_user
        self._one_session = one_session
        self._client: Client | None = None
        self.text: str | None = None  # what it is told before each episode; None: whatever it was told last

    def reset(self, seed: int = 0) -> None:
        """A new session; the server draws by a seed of its own."""
        if self._client is not None and self._one_session:
            return
        self.close()
        if self.text is not None:
            tell(self._address, self.text, self._any_user)
        self._client = Client(self._address, self._timeout_s, self._any_user)

    def act(self, observation: Frame, info: Info) -> Action:
        """Send the picture, and wait for its own answer."""
        return self._session.ask(observation)

    def send(self, observation: Frame, info: Info) -> int:
        """As `Client.send`: for a clock that does not wait."""
        return self._session.send(observation)

    def answers(self, deadline_s: float) -> list[tuple[Action, int]]:
        """As `Client.answers`."""
        return self._session.answers(deadline_s)

    @property
    def _session(self) -> Client:
        assert self._client is not None, "reset() comes first"
        return self._client

    def close(self) -> None:
        """End the session, if one is open."""
        if self._client is not None:
            self._client.close()
            self._client = None
