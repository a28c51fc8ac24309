"""A policy behind a Unix or a TCP socket: frames out, actions back.

It knows docs/protocol.md and nothing of the policy behind the socket.
"""

import math
import select
import socket
import time

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


class RemoteAgent:
    """A policy behind a socket. The server keeps one player's history for as long as the connection lives.

    Args:
        timeout_s: how long an answer may take.
        any_user: play with whoever listens at the address, not only with a server of this user or root.
        one_session: all episodes are one session, for a program in which they follow each other without an end;
            otherwise each is one of its own.

    `text` is what the policy is told before each session; None: whatever its server was told last.
    """

    def __init__(
        self, address: str, timeout_s: float = 30.0, any_user: bool = False, one_session: bool = False
    ) -> None:
        self._address, self._timeout_s, self._any_user = address, timeout_s, any_user
        self._one_session = one_session
        self.text: str | None = None
        self._socket: socket.socket | None = None

    def reset(self, seed: int = 0) -> None:
        """Begin a session. What is drawn in it is the server's business."""
        if self._socket is not None and self._one_session:
            return
        self.close()
        if self.text is not None:
            tell(self._address, self.text, self._any_user)
        self._connect()

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = connect(self._address, self._timeout_s, self._any_user)
            self._readable = select.poll()  # unlike select, for any number of open files
            self._readable.register(self._socket, select.POLLIN)
            self._reader = MessageReader(_MAX_ACTION_BYTES)
            self._next_id = 0
        return self._socket

    def send(self, observation: Frame, info: Info) -> int:
        """Send a frame uint8 [Y, X, 3]; returns its id, which the answer will carry."""
        connection = self._connect()
        frame_id, self._next_id = self._next_id, next_frame_id(self._next_id)
        try:
            connection.settimeout(self._timeout_s)
            connection.sendall(encode_frame(observation, frame_id))
        except OSError as error:
            raise ValueError(f"{self._address}: the server does not take frames any more ({error})") from error
        return frame_id

    def answers(self, deadline_s: float = -math.inf) -> list[tuple[Action, int]]:
        """The answers (action, frame id) that have come; waits for the first one until `deadline_s` (monotonic).

        At most the first `_MAX_READS` pieces of them: those of a server that sends more are for the next call.
        """
        connection = self._connect()
        found: list[tuple[Action, int]] = []
        for _ in range(_MAX_READS):
            wait_s = max(0.0, deadline_s - time.monotonic()) if not found else 0.0
            if not self._readable.poll(math.ceil(1000 * wait_s)):
                return found
            try:
                data = connection.recv(_CHUNK_BYTES)
            except OSError as error:
                raise ValueError(f"{self._address}: the connection broke ({error})") from error
            if not data and found:  # what came before the end counts; the next call reports the end
                return found
            if not data:
                raise ValueError(f"{self._address}: the server closed the connection; its log says why")
            found += [parse_action(payload) for payload in self._reader.feed(data)]
        return found

    def act(self, observation: Frame, info: Info) -> Action:
        """Send a frame and wait for its own answer."""
        frame_id = self.send(observation, info)
        deadline_s = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline_s:
            for action, answered in self.answers(deadline_s):
                if answered == frame_id:
                    return action
        raise ValueError(f"{self._address}: no answer to frame {frame_id} within {self._timeout_s:g} s")

    def close(self) -> None:
        """End the session, if one is open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
