"""Archives of strangers: what tarfile writes is read alike, what is damaged or made to hurt is refused at once."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
import zlib

import pytest

from p2p.hub import archive as archives
from p2p.hub.archive import Archive, BadArchive

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
Contents = dict[str, bytes]


def make_tar(files: Contents, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def raw_header(kind: bytes, size: int | bytes, name: bytes = b"r/192x192.mp4") -> bytes:
    """A header with a right checksum, whatever it says."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    header = name.ljust(100, b"\0") + b"0000644\0" * 3 + digits.ljust(12, b"\0") + b"00000000000\0"
    header = (header + b" " * 8 + kind + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(*records: bytes) -> bytes:
    content = b"".join(records)
    return raw_header(b"x", len(content)) + padded(content)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
    return str(length).encode() + rest


def contents(data: bytes) -> Contents:
    archive = Archive(io.BytesIO(data), "it")
    return {member.path: archive.read() for member in archive if member.is_file}


def files() -> Contents:
    noise = random.Random(1)
    names = ("a/annotation.proto", "a/192x192.mp4", "größe/192x192.mp4", "b/" + "long" * 20 + "/annotation.proto")
    return {name: noise.randbytes(size) for name, size in zip(names, (700, 9000, 512, 0), strict=True)}


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("packed", [False, True])
def test_what_tarfile_writes_is_read_alike(form: str, packed: bool) -> None:
    data = make_tar(files(), FORMATS[form])
    assert contents(gzip.compress(data) if packed else data) == files()


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_names_longer_than_a_header_links_and_folders_are_read_as_tarfile_does(form: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("x" * 300)
            info.type, info.linkname = kind, "y" * 200
            tar.addfile(info)
        info = tarfile.TarInfo("folder/" + "z" * 240)
        info.size = 5
        tar.addfile(info, io.BytesIO(b"12345"))
    members = list(Archive(io.BytesIO(buffer.getvalue()), "it"))
    assert [member.is_file for member in members] == [False] * 5 + [True]
    assert contents(buffer.getvalue()) == {"folder/" + "z" * 240: b"12345"}


def test_any_flipped_bit_of_a_gzipped_archive_is_harmless_or_reported() -> None:
    """All of them: tests/benchmarks/damage_archives.py."""
    data = gzip.compress(make_tar(files()), mtime=0)
    chosen = random.Random(2)
    positions = [*range(160), *(8 * len(data) - 1 - n for n in range(80))]
    positions += [chosen.randrange(8 * len(data)) for _ in range(300)]
    num_reported = 0
    for position in positions:
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert contents(bytes(damaged)) == files()
        except BadArchive:
            num_reported += 1
    assert num_reported > len(positions) - 80  # what is harmless lies in gzip's header: a time, a system


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_cut_off_anywhere_is_reported(packed: bool) -> None:
    data = make_tar(files())
    end = len(data.rstrip(b"\0"))
    data = gzip.compress(data) if packed else data[: -(-end // 512) * 512]  # a .tar without its end mark
    for length in [*range(0, len(data), 97), *((len(data) - 1,) if packed else ()), -(-end // 512) * 512]:
        with pytest.raises(BadArchive):
            contents(data[: min(length, len(data) - packed)])


def test_gzip_of_several_members_is_read_to_its_end_and_zeros_may_follow() -> None:
    data = make_tar(files())
    halves = gzip.compress(data[:3000]) + gzip.compress(b"") + gzip.compress(data[3000:])
    assert contents(halves + bytes(700)) == files()
    damaged = bytearray(halves)
    damaged[-7] ^= 1
    with pytest.raises(BadArchive, match="incorrect data check"):
        contents(bytes(damaged))


@pytest.mark.parametrize("rest", [b"garbage", b"\0garbage", bytes(300_000) + b"g"])
def test_what_follows_the_end_is_reported(rest: bytes) -> None:
    data = make_tar(files())
    with pytest.raises(BadArchive, match="follows"):
        contents(gzip.compress(data) + rest)
    with pytest.raises(BadArchive, match="follows"):
        contents(data + rest)
    with pytest.raises(BadArchive, match="follows"):
        contents(gzip.compress(data + rest))


@pytest.mark.parametrize(
    "data",
    [
        raw_header(b"x", 1 << 34),
        raw_header(b"g", 1 << 34),
        raw_header(b"L", 1 << 34),
        raw_header(b"S", 100 << 30),
        pax(record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.realsize", b"107374182400")) + raw_header(b"0", 0),
        pax(record(b"GNU.sparse.map", b"0,1")) + raw_header(b"0", 0),
        (raw_header(b"L", 5) + padded(b"name\0")) * 5000,
        pax(record(b"path", b"a")) * 5000,
        pax(record(b"path", b"a")) + bytes(1024),
        pax(record(b"path", b"a" * 5000)) + raw_header(b"0", 0),
        pax(record(b"size", b"-512")) + raw_header(b"0", 0),
        pax(record(b"size", b"9" * 5000)) + raw_header(b"0", 0),
        pax(record(b"size", "٣".encode())) + raw_header(b"0", 0),
        raw_header(b"g", 512) + padded(record(b"size", b"1")),
        pax(b"0 path=a\n"),
        pax(b"-5 path=a\n"),
        pax(b"99999 path=a\n"),
        pax(b"11 pathisa\n\n"),
        pax(b"\xff\xfe"),
        raw_header(b"0", b"\xff" * 12),
        raw_header(b"0", b"\x80" + b"\xff" * 11),
        raw_header(b"0", b"-0000000001"),
        raw_header(b"0", b"0o17"),
        raw_header(b"0", 1 << 30),
        b"no archive" * 100,
        b"\x1f\x8b",
        b"\x1f",
    ],
)
def test_what_is_made_to_hurt_is_refused_before_memory_is_taken(data: bytes) -> None:
    for given in (data, gzip.compress(data), data + bytes(1024)):
        tracemalloc.start()
        with pytest.raises(BadArchive, match=r"^it: "):
            contents(given)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


def test_an_archive_of_nothing_has_an_end_mark_at_least() -> None:
    assert contents(bytes(1024)) == {}
    with pytest.raises(BadArchive, match="ends too early"):
        contents(b"")


def test_a_bomb_is_refused_long_before_it_has_gone_off() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(raw_header(b"0", 6 << 30, b"r/video.mp4"))
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = zlib.compressobj(9, zlib.DEFLATED, -15)
    again = again.compress(bytes(1 << 20)) + again.flush(zlib.Z_FULL_FLUSH)
    with pytest.raises(BadArchive, match="unpacks to more than 20 times its size"):
        list(Archive(io.BytesIO(head + block + again * 6000), "it"))


def test_the_number_of_members_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_tar({f"r/{number}": b"" for number in range(20)})
    assert len(contents(data)) == 20
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    with pytest.raises(BadArchive, match="more than 20 members"):
        contents(data)


def test_a_damaged_header_in_the_middle_does_not_pass_for_the_end() -> None:
    data = bytearray(make_tar({"a/x": b"1", "b/x": b"2"}))
    data[1024 + 3] ^= 1
    with pytest.raises(BadArchive, match="a header is damaged"):
        contents(bytes(data))


def test_random_damage_gives_a_verdict_and_no_other_error() -> None:
    chosen = random.Random(3)
    data = b"".join(make_tar(files(), form).rstrip(b"\0") + bytes(512) for form in FORMATS.values())
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(chosen.randrange(1, 6)):
            damaged[chosen.randrange(len(data) // 3)] = chosen.choice((0, 32, 48, 57, 128, 255))
        if chosen.random() < 0.7:  # a header that says something else and has a right checksum
            header = damaged[:148] + b" " * 8 + damaged[156:512]
            damaged[148:156] = b"%06o\0 " % sum(header)
        with pytest.raises(BadArchive):  # other archives follow its end
            contents(bytes(damaged))


def test_names_that_are_no_utf8_are_handed_on_for_the_reader_to_refuse() -> None:
    data = raw_header(b"0", 0, os.fsencode("caf\udce9/x.mp4")) + bytes(1024)
    assert list(contents(data)) == ["caf\udce9/x.mp4"]
