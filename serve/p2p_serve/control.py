"""What a person may say while the server runs: instructions and commands, from terminal, file or local socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from p2p.console import plain_lines
from p2p.gate import open_regular
from p2p_serve.quiet import QuietLog
from p2p_serve.text import TextSource

log = logging.getLogger(__name__)

_MAX_LINE_BYTES = 16 * 1024
_FILE_POLL_S = 0.1


class Control:
    """Takes lines: one that begins with / is a command, any other an instruction (empty: none)."""

    def __init__(self, text: TextSource | None, commands: Mapping[str, Callable[[], str]]) -> None:
        self._text = text
        self._commands = dict(commands)
        self._turn = asyncio.Lock()  # embedding takes a while; lines keep their order
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._say = QuietLog(log)

    async def line(self, line: str) -> str:
        """Do what a line says; returns the answer to show.

        Raises:
            ValueError: for an unknown command or an instruction that cannot be used.
        """
        line = line.strip()
        if line.startswith("/"):
            command = self._commands.get(line[1:])
            if command is None:
                names = " ".join(f"/{name}" for name in self._commands)
                raise ValueError(f"unknown command {line}; there are {names}; any other line is an instruction")
            return command()
        if self._text is None:
            raise ValueError("nothing here reads instructions")
        async with self._turn:
            await asyncio.to_thread(self._text.set, line)
        return f"instruction: {self._text.current.text or 'none'}"

    def read_terminal(self) -> None:
        """Take lines that are typed, if this process has the terminal."""
        stdin = sys.stdin.fileno()
        buffer = bytearray()

        def readable() -> None:
            if _in_background(stdin):  # a read would stop the whole process
                loop.remove_reader(stdin)
                return
            data = os.read(stdin, 4096)
            if len(buffer) > _MAX_LINE_BYTES:
                log.warning("a line of more than %d bytes was typed; nothing more is read here", _MAX_LINE_BYTES)
            if not data or len(buffer) > _MAX_LINE_BYTES:
                loop.remove_reader(stdin)
                return
            buffer.extend(data)
            while b"\n" in buffer:
                line, _, rest = bytes(buffer).partition(b"\n")
                buffer[:] = rest
                self._spawn(self._logged(line.decode(errors="replace")))

        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(stdin, readable)
        except OSError:  # a regular file or a closed descriptor
            log.debug("standard input cannot be watched")

    def watch_file(self, path: Path) -> None:
        """The first line of a file is the instruction, whenever the file changes; no file: none."""
        self._spawn(self._watch(path))

    async def listen(self, listener: socket.socket) -> None:
        """Take lines on a local socket; each is answered by one line (/report by several)."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._spawn(self._client(reader, writer))  # a task of ours, which `stop` ends without a traceback

        self._listener = await asyncio.start_server(connected, sock=listener, limit=_MAX_LINE_BYTES)

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _logged(self, line: str) -> None:
        try:
            answer = await self.line(line)
        except ValueError as error:
            self._say.warning("%s", error)
            return
        if line.startswith("/"):
            log.info("%s", answer)

    async def _watch(self, path: Path) -> None:
        seen = _NO_FILE
        while True:
            found = await asyncio.to_thread(_FileState.of, path)
            if found != seen:
                seen = found
                try:
                    line = await asyncio.to_thread(_first_line, path)
                except ValueError as error:
                    self._say.warning("--text-file: %s; the instruction stays as it is", error)
                else:
                    await self._logged(line.lstrip("/"))
            await asyncio.sleep(_FILE_POLL_S)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    answer = await self.line(line.decode(errors="replace"))
                except ValueError as error:
                    answer = f"error: {error}"
                writer.write(plain_lines(answer).encode() + b"\n")
                await writer.drain()
        except (ValueError, OSError) as error:  # a line beyond the limit, or the peer has gone
            self._say.warning("text socket: closed: %s", error)
        finally:
            writer.close()


class _FileState(NamedTuple):
    """What tells that a file has changed."""

    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        try:
            found = path.stat()
        except OSError:
            return cls(0, 0, 0)
        return cls(found.st_ino, found.st_mtime_ns, found.st_size)


_NO_FILE = _FileState(0, 0, 0)


def _first_line(path: Path) -> str:
    """The first line of a file; no file: an empty one.

    Raises:
        ValueError: when it is no regular file (which is not waited for), or cannot be read.
    """
    try:
        with open_regular(path) as file:
            line = file.readline(_MAX_LINE_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    return next(iter(line.splitlines()), "")


def _in_background(terminal: int) -> bool:
    """Whether another job has the terminal that controls this process."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # no terminal, or not the one that controls us
        return False
