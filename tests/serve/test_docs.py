"""What the documents say of serving is so: the client runs, the messages are the sources', the commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from p2p.protocol import MAX_MESSAGE_BYTES
from p2p_serve.cli import parse
from p2p_serve.connection import MAX_FRAMES_PER_READ, MAX_UNREAD_BYTES, READ_BYTES
from p2p_serve.options import ServerOptions
from p2p_serve.players import EchoPlayer
from tests.serve.live import serving

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
PROTOCOL = (REPOSITORY / "docs" / "protocol.md").read_text()


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", PROTOCOL, re.DOTALL)
    assert match is not None
    return match.group(1)


def test_the_client_of_the_page_runs_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from p2p.actions import Action

    path = tmp_path / "s"
    with serving(path, [EchoPlayer(Action(("w",)))]):
        exec(block("python").replace("/tmp/uds.recap", str(path)), {})
    printed = capsys.readouterr().out.strip()
    assert f"prints `{printed}`" in PROTOCOL


def test_the_messages_of_the_page_are_those_of_the_source() -> None:
    source = (REPOSITORY / "p2p" / "proto" / "video_inference.proto").read_text()
    for message in re.findall(r"message \w+ \{.*?\n\}\n", block("proto"), re.DOTALL):
        assert message in source
    assert f"{MAX_MESSAGE_BYTES:,} bytes" in PROTOCOL


def test_the_limits_of_the_page_are_the_servers() -> None:
    options = ServerOptions()
    assert options.max_frame_pixels == 1920 * 1200
    for line in (
        "| pixels of a frame | 1920 x 1200 (`--max-frame WxH`) |",
        f"| time for a message, from its first byte to its last | {options.message_timeout_s:g} s |",
        f"| messages in one read of up to {READ_BYTES // 1024} KiB | the newest {MAX_FRAMES_PER_READ} are looked at |",
        f"| answers that wait to be read | {MAX_UNREAD_BYTES // 1024} KiB |",
        f"| a waiting client | {options.grace_s:g} s for a place to become free |",
        f"| clients that wait | {options.max_waiting} |",
        f"| frames of a client while another one waits | {options.min_frames} in {options.idle_takeover_s:g} s |",
    ):
        assert line in PROTOCOL


def typed_lines() -> list[str]:
    """The commands of indented blocks, without the comment behind them; what is indented deeper is what they print."""
    lines = [line[4:] for document in DOCUMENTS for line in document.read_text().splitlines() if line[:4] == "    "]
    return sorted({re.split(r"  +", line)[0] for line in lines if line.startswith("p2p-serve ")})


@pytest.mark.parametrize("line", typed_lines())
def test_documented_commands_parse(line: str) -> None:
    parse(shlex.split(line)[1:])


def test_there_are_documented_commands() -> None:
    assert len(typed_lines()) > 10
