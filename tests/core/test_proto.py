"""The messages are those of the wire format, generated from the sources that lie beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from p2p.proto import shared_pb2, video_annotation_pb2, video_inference_pb2
from p2p.recording import parse_annotation

GENERATED = {
    "p2p/proto/shared.proto": shared_pb2,
    "p2p/proto/video_inference.proto": video_inference_pb2,
    "p2p/proto/video_annotation.proto": video_annotation_pb2,
}


@pytest.fixture(scope="module")
def compiled(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    out = tmp_path_factory.mktemp("proto") / "descriptors"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={out}", *GENERATED]
    subprocess.run(command, cwd=repository, check=True)
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file}


@pytest.mark.parametrize("name", GENERATED)
def test_generated_code_is_fresh(compiled: dict[str, descriptor_pb2.FileDescriptorProto], name: str) -> None:
    generated = descriptor_pb2.FileDescriptorProto()
    GENERATED[name].DESCRIPTOR.CopyToProto(generated)
    strip_json_names(compiled[name])
    strip_json_names(generated)
    assert generated == compiled[name]


def strip_json_names(file: descriptor_pb2.FileDescriptorProto) -> None:
    for message in file.message_type:
        for each in (message, *message.nested_type):
            for field in each.field:
                field.ClearField("json_name")


def test_full_names_are_those_of_the_ecosystem() -> None:
    assert video_inference_pb2.Frame.DESCRIPTOR.full_name == "elefant.training_data.video_inference.Frame"
    assert (
        video_annotation_pb2.VideoAnnotation.DESCRIPTOR.full_name
        == "elefant.training_data.video_annotation.VideoAnnotation"
    )
    assert shared_pb2.Vec2Int.DESCRIPTOR.full_name == "elefant.training_data.shared.Vec2Int"


def test_fields_that_nobody_knows_survive_reading_and_writing() -> None:
    foreign = b"\xa2\x38\x05hello"  # field 900, five bytes long
    annotation = video_annotation_pb2.VideoAnnotation(version=3)
    annotation.frame_annotations.add().user_action.MergeFromString(foreign)
    content = annotation.SerializeToString() + foreign
    again = parse_annotation(content, "test").SerializeToString()
    assert again.count(foreign) == 2
    assert sorted(again) == sorted(content)


@pytest.mark.parametrize("name", ["rec_a", "rec_b", "rec_c"])
def test_a_recorded_annotation_loses_nothing(shared_fixtures: Path, name: str) -> None:
    content = (shared_fixtures / "data_case" / "dataset" / name / "annotation.proto").read_bytes()
    annotation = parse_annotation(content, name)
    again = annotation.SerializeToString()
    assert len(again) == len(content)
    assert parse_annotation(again, name) == annotation
