"""`p2p-serve` as a person starts it: processes, real sockets, signals, files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p.actions import Action
from p2p.model import load_policy
from p2p.model.opening import random_policy
from p2p.protocol import MessageReader, encode_frame, parse_action
from p2p.recording import RecordingWriter, read_annotation, read_frames, text_spans
from p2p_serve.cli import main
from p2p_serve.players import recorded_actions
from tests.hub.stand_in import HubStandIn
from tests.serve.live import TINY, Client, Program, connect, environment, noise, wait_until

Start = Callable[..., Program]
Run = Callable[..., subprocess.CompletedProcess[str]]
FORBIDDEN = ("composer", "streaming", "wandb", "av", "vizdoom", "torchvision", "transformers", "matplotlib")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def run_python(repository: Path, code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(repository), timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("arguments", [[], ["echo"], ["playback"], ["loadtest"], ["bench"]])
def test_help_is_quick_and_loads_no_torch(repository: Path, arguments: list[str]) -> None:
    code = (
        "import atexit, json, sys\n"
        "heavy = ('torch', 'numpy', 'google.protobuf')\n"
        "atexit.register(lambda: print(json.dumps([name for name in heavy if name in sys.modules])))\n"
        "from p2p_serve.cli import main\n"
        "main([*sys.argv[1:], '--help'])\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    output = run_python(repository, code, *arguments)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1.0
    assert output.startswith("usage: p2p-serve")
    assert json.loads(output.splitlines()[-1]) == []


def test_serving_loads_nothing_of_the_trainer(repository: Path, policy_folder: Path, path: Path) -> None:
    code = (
        "import json, os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from p2p_serve.cli import main\n"
        "from p2p.sockets import connect\n"
        "policy, path = sys.argv[1:]\n"
        "def client():\n"
        "    while not os.path.exists(path):\n"
        "        threading.Event().wait(0.01)\n"
        "    from p2p.protocol import encode_frame\n"
        "    import numpy as np\n"
        "    with connect(path, 60) as connection:\n"
        "        connection.sendall(encode_frame(np.zeros((100, 80, 3), np.uint8), 1))\n"
        "        connection.recv(10)\n"
        "    print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=client, daemon=True).start()\n"
        "sys.exit(main(['--policy', policy, '--socket', path, '--device', 'cpu']))\n"
    )
    loaded = json.loads(run_python(repository, code, policy_folder, path))
    assert "torch" in loaded
    assert [name for name in FORBIDDEN if name in loaded] == []


# ------------------------------------------------------------------ a policy from end to end


def test_a_session_is_answered_recorded_reported_and_told_what_to_do(
    p2p_serve: Start, run_p2p_serve: Run, policy_folder: Path, path: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "table.npz", **{"go left": np.ones((1, 16)), "go right": -np.ones((1, 16))})
    typed, terminal = os.openpty()
    told, said, picture = tmp_path / "told.txt", tmp_path / "t", tmp_path / "latency.png"
    program = p2p_serve(
        *("--policy", policy_folder, "--socket", path, "--device", "cpu", "--greedy", "--mouse-sampling", "mean"),
        *("--record", tmp_path / "recordings", "--latency-png", picture),
        *("--text-embedder", tmp_path / "table.npz", "--text-file", told, "--text-socket", said),
        stdin=terminal,
    )
    os.close(terminal)
    for line, expected in (
        ("go right", "instruction: go right"),
        ("nonsense", "has no embedding of 'nonsense'"),
        ("/what", "unknown command /what"),
        ("/report", "no session is being served"),
        ("", "instruction: none"),
    ):
        os.write(typed, line.encode() + b"\n")
        wait_until(lambda expected=expected: expected in program.log, expected)
    assert path.stat().st_mode & 0o777 == said.stat().st_mode & 0o777 == 0o600
    frames = [noise(seed, (120, 160)) for seed in range(24)]
    with connect(path) as client:
        answers = [client.ask(frame, index) for index, frame in enumerate(frames[:8])]
        (tmp_path / "told.new").write_text("go left\n")
        os.replace(tmp_path / "told.new", told)
        wait_until(lambda: "instruction: go left" in program.log, "the file is noticed")
        answers += [client.ask(frame, 8 + index) for index, frame in enumerate(frames[8:16])]
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(60)
            control.connect(str(said))
            lines = control.makefile("rw")
            for line, answer in (
                ("up\n", "error: "),
                ("/report\n", "client 1"),
                ("go right\n", "instruction: go right"),
            ):
                lines.write(line)
                lines.flush()
                assert lines.readline().startswith(answer)
                if line == "/report\n":
                    assert "answered 16 · dropped 0" in [lines.readline() for _ in range(11)][-1]
            lines.close()
        answers += [client.ask(frame, 16 + index) for index, frame in enumerate(frames[16:])]
    (folder,) = wait_until(
        lambda: list((tmp_path / "recordings").glob("session-*")), "the recording is complete after the session"
    )
    wait_until(picture.exists, "the picture is drawn")
    assert "answered 24 · dropped 0" in program.log
    assert recorded_actions(folder) == answers[:-1]
    assert sum(1 for _ in read_frames(folder / f"{TINY.frame_width}x{TINY.frame_height}.mp4")) == 24
    annotation = read_annotation(folder)
    assert all(
        frame.system_action.is_known and not frame.user_action.is_known for frame in annotation.frame_annotations[1:]
    )
    spans = text_spans(annotation, ["p2p"])
    assert [(span.index, span.num_frames, span.instruction) for span in spans] == [
        (9, 8, "go left"),
        (17, 7, "go right"),
    ]
    assert program.stop() == 0
    assert not path.exists()
    assert not said.exists()
    os.close(typed)


def test_an_original_checkpoint_and_a_recipes_random_weights_are_opened(shared_fixtures: Path, tmp_path: Path) -> None:

    (checkpoint,) = (shared_fixtures / "parity_tiny").glob("*.ckpt")
    (tmp_path / "tiny.yaml").write_text("policy: {dim: 32, num_layers: 1, num_heads: 2, image_encoder: small_cnn}\n")
    for policy in (
        load_policy(str(checkpoint)),
        random_policy(str(tmp_path / "tiny.yaml")),
    ):
        frame = noise(0, (policy.config.frame_height, policy.config.frame_width))
        assert isinstance(policy.session().act(frame), Action)


def test_a_policy_comes_from_the_hub_by_its_name(
    shared_fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    import torch

    folder = shared_fixtures / "parity_tiny"
    files = {f"150M/{path.name}": path.read_bytes() for path in folder.iterdir() if path.suffix in (".ckpt", ".yaml")}
    hub = HubStandIn({("models", "somebody/policies"): files})
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        opened = load_policy("hf:somebody/policies/150M")
    finally:
        hub.close()
    (checkpoint,) = folder.glob("*.ckpt")
    expected = load_policy(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), expected.parameters(), strict=True))


def test_bench_says_how_far_it_is_and_prints_its_table(policy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--policy", str(policy_folder), "--steps", "5", "--device", "cpu"]) == 0
    output, progress = capsys.readouterr()
    assert "measuring [############################] 13/13 frames" in progress
    assert "until the answer" in output
    assert "5 frames with 8 before them in the cache" in output


# ------------------------------------------------------------------ tools and transports


def test_echo_and_loadtest_over_a_unix_socket(p2p_serve: Start, run_p2p_serve: Run, path: Path) -> None:
    p2p_serve("echo", "--keys", "w", "a", "--socket", path)
    with connect(path) as client:
        assert client.ask(noise(0), 1) == Action(("w", "a"))
    result = run_p2p_serve("loadtest", "--socket", path, "--fps", 100, "--seconds", 0.5, "--size", "320x200")
    assert result.returncode == 0, result.stderr
    assert "sent 50, answered " in result.stdout
    assert "round trip ms: p50" in result.stdout


def tcp_port(program: Program) -> int:
    return int(program.log.partition("listening on ")[2].split(" · ")[0].rpartition(":")[2])


def test_tcp_alone_and_beside_a_unix_socket(p2p_serve: Start, run_p2p_serve: Run, path: Path) -> None:
    program = p2p_serve("echo", "--tcp", "127.0.0.1:0", "--socket", path)
    assert f"listening on {path} and tcp 127.0.0.1:" in program.log
    assert "the protocol has no password" in program.log
    address = f"127.0.0.1:{tcp_port(program)}"
    result = run_p2p_serve("loadtest", "--tcp", address, "--fps", 50, "--seconds", 0.2)
    assert "sent 10, answered " in result.stdout
    with connect(path) as client:
        client.ask(noise(0), 1)


def test_through_socat_as_on_windows(p2p_serve: Start, path: Path, tmp_path: Path) -> None:
    """Recap writes to a TCP port; socat carries the bytes to the Unix socket inside WSL, and the answers back."""
    socat = shutil.which("socat")
    assert socat is not None, "socat is missing: apt-get install socat"
    p2p_serve("echo", "--keys", "w", "--socket", path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bridge = subprocess.Popen([socat, f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", f"UNIX-CONNECT:{path}"])

    def through_the_bridge() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            return None

    try:
        for _ in range(2):
            with wait_until(through_the_bridge, "socat listens") as connection:
                client = Client(connection)
                for frame_id in range(20):
                    assert client.ask(noise(0, (192, 192)), frame_id) == Action(("w",))
    finally:
        bridge.terminate()
        bridge.wait(60)


def test_through_a_pipe_of_socat_as_from_powershell(p2p_serve: Start, path: Path) -> None:
    """`wsl -e socat - UNIX-CONNECT:...` joins standard input and output with the socket."""
    p2p_serve("echo", "--keys", "w", "--socket", path)
    pipe = subprocess.Popen(["socat", "-", f"UNIX-CONNECT:{path}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert pipe.stdin is not None
    assert pipe.stdout is not None
    reader = MessageReader()
    for frame_id in range(5):
        pipe.stdin.write(encode_frame(noise(0, (192, 192)), frame_id))
        pipe.stdin.flush()
        while not (payloads := reader.feed(pipe.stdout.read1(4096))):
            pass
        assert parse_action(payloads[0]) == (Action(("w",)), frame_id)
    pipe.stdin.close()
    assert pipe.wait(60) == 0
    pipe.stdout.close()


def test_playback_of_a_recording(p2p_serve: Start, path: Path, tmp_path: Path) -> None:
    actions = [Action(("a",), ("0", "1"), 7 * index, -index) for index in range(6)]
    with RecordingWriter(tmp_path / "r", "r") as writer:
        for action in actions:
            writer.add(noise(0, (192, 192)), action, None)
    p2p_serve("playback", tmp_path / "r", "--socket", path)
    with connect(path) as client:
        answers = [client.ask(noise(0), 10 + index) for index in range(6)]
    assert answers == [*actions[:-1], Action()]  # the last frame has no action that followed it


# ------------------------------------------------------------------ signals and mistakes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_in_order_in_the_middle_of_a_session(p2p_serve: Start, path: Path, number: int) -> None:
    program = p2p_serve("echo", "--socket", path)
    with connect(path) as client:
        client.ask(noise(0), 1)
        assert program.stop(number) == 0
        assert client.is_closed_by_the_server()
    assert not path.exists()
    assert "Traceback" not in program.log


def test_a_service_manager_is_told(p2p_serve: Start, path: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        program = p2p_serve("echo", "--socket", path, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
        assert program.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


def test_the_report_comes_on_a_signal_too(p2p_serve: Start, path: Path) -> None:
    program = p2p_serve("echo", "--socket", path)
    with connect(path) as client:
        client.ask(noise(0), 1)
        program.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "answered 1 · dropped 0" in program.log, "the report is in the log")


MISTAKES = {
    "no policy": ([], "name a policy with --policy SOURCE"),
    "a folder without a policy": (["--policy", "{tmp}"], "is no policy folder"),
    "an unknown recipe": (["--random-weights", "--recipe", "7B"], "recipe '7B': expected one of 150M"),
    "an unknown device": (["--random-weights", "--device", "abacus"], "device 'abacus' cannot be used here"),
    "a hub name without a size": (["--policy", "hf:150M"], "expected hf:OWNER/NAME, or hf:OWNER/NAME/SIZE"),
    "no recording": (["playback", "{tmp}/absent"], "no such file"),
    "an unknown embedder": (["--random-weights", "--recipe", "{tiny}", "--text-embedder", "bert"], "expected null"),
    "a file in the place of the socket": (["echo", "--socket", "{tiny}"], "is not a socket; it was left alone"),
    "an address": (["echo", "--tcp", "9000"], "expected host:port"),
    "a picture in a missing folder": (["echo", "--latency-png", "{tmp}/absent/l.png"], "absent is not a folder that"),
    "a frame beyond reason": (["echo", "--max-frame", "99999x99999"], "expected 1 to 67108864 pixels"),
    "frames without end": (["loadtest", "--fps", "inf"], "both must be above 0, and not endless"),
    "nobody to load": (["loadtest", "--socket", "{tmp}/absent"], "cannot connect"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_clear_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text("policy: {dim: 32, num_layers: 1, num_heads: 2, image_encoder: small_cnn}\n")
    arguments, message = MISTAKES[name]
    assert main([argument.format(tmp=tmp_path, tiny=tiny) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("p2p: error: ")
    assert error.count("\n") == 1


def test_a_second_server_on_the_same_socket_ends_with_status_2(
    p2p_serve: Start, run_p2p_serve: Run, path: Path
) -> None:
    first = p2p_serve("echo", "--socket", path)
    result = run_p2p_serve("echo", "--socket", path)
    assert result.returncode == 2
    assert result.stderr.startswith("p2p: error: ")
    assert f"another process (process {first.process.pid}) is using it" in result.stderr
    with connect(path) as client:
        client.ask(noise(0), 1)
