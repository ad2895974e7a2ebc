from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmgr.errors import ResourceError, UsageError
from vmgr.image.recipes import AddedFile, AddedLink
from vmgr.image.tarball import Contents, Limits, clean

from .conftest import directory, elf, entry, hard_link, link, system, tarball

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .conftest import Entry

LIMITS = Limits(bytes=1 << 20, ids=65_536)


def cleaned(
    data: bytes,
    limits: Limits = LIMITS,
    drop: Sequence[str] = (),
    add: Sequence[AddedFile | AddedLink] = (),
) -> tuple[Contents, list[tarfile.TarInfo], dict[str, bytes]]:
    output = io.BytesIO()
    contents = clean(io.BytesIO(data), output, "x.tar", limits, drop=drop, add=add)
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        members = archive.getmembers()
        bodies = {
            m.name: body.read() for m in members if m.isreg() and (body := archive.extractfile(m))
        }
    return contents, members, bodies


def refusal(*entries: Entry, limits: Limits = LIMITS) -> str:
    with pytest.raises(UsageError) as caught:
        cleaned(tarball(entries), limits)
    return caught.value.message


# -- what comes through ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_come_through_with_mode_owner_and_content(form: int) -> None:
    data = tarball(
        system(entry("etc/shadow", content=b"secret", mode=0o640, uid=3, gid=42, mtime=1234)),
        format=form,
    )
    _, members, bodies = cleaned(data)
    shadow = next(m for m in members if m.name == "etc/shadow")
    assert (shadow.mode, shadow.uid, shadow.gid, shadow.mtime) == (0o640, 3, 42, 1234)
    assert bodies["etc/shadow"] == b"secret"


def test_setuid_and_sticky_bits_stay() -> None:
    _, members, _ = cleaned(tarball(system(entry("usr/bin/sudo", mode=0o4755, content=elf()))))
    assert next(m for m in members if m.name == "usr/bin/sudo").mode == 0o4755


def test_names_that_are_no_text_stay_as_they_are() -> None:
    name = b"etc/\xff\xfe".decode(errors="surrogateescape")
    _, _, bodies = cleaned(tarball(system(entry(name, content=b"x")), format=tarfile.GNU_FORMAT))
    assert bodies[name] == b"x"


def test_device_nodes_and_what_is_below_dev_proc_sys_run_stay_behind() -> None:
    _, members, _ = cleaned(
        tarball(
            system(
                directory("dev"),
                entry("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
                entry("disk", tarfile.BLKTYPE, devmajor=8),
                entry("proc/version", content=b"x"),
                entry("run/lock", content=b"x"),
            )
        )
    )
    names = {m.name for m in members}
    assert "dev" in names
    assert not names & {"dev/null", "disk", "proc/version", "run/lock"}
    assert not any(m.isdev() for m in members)


def test_equal_files_have_equal_digests_however_packed() -> None:
    entries = system(entry("etc/motd", content=b"hi"))
    first, _, _ = cleaned(tarball(entries, format=tarfile.GNU_FORMAT))
    second, _, _ = cleaned(tarball(entries, format=tarfile.PAX_FORMAT))
    third, _, _ = cleaned(tarball(system(entry("etc/motd", content=b"ho"))))
    assert first.digest == second.digest
    assert first.digest != third.digest


def test_capabilities_of_files_are_kept_aside_and_count_in_the_digest() -> None:
    value = (b"\x01\x00\x00\x02\x00\x20" + bytes(14)).decode()
    ping = entry(
        "usr/bin/ping", content=elf(), pax_headers={"SCHILY.xattr.security.capability": value}
    )
    contents, _, _ = cleaned(tarball(system(ping)))
    without, _, _ = cleaned(tarball(system(entry("usr/bin/ping", content=elf()))))
    assert contents.capabilities == {"usr/bin/ping": value.encode()}
    assert contents.digest != without.digest


# -- links -------------------------------------------------------------------------------------


def test_a_path_through_a_link_is_placed_where_the_link_leads() -> None:
    _, _, bodies = cleaned(tarball(system(entry("bin/tool", content=b"x"))))
    assert bodies["usr/bin/tool"] == b"x"
    assert "bin/tool" not in bodies


@pytest.mark.parametrize("target", ["/etc", "../../../../../etc", "/../etc/.", "usr/../etc"])
def test_a_link_out_of_the_root_leads_back_into_it(target: str) -> None:
    _, _, bodies = cleaned(
        tarball(system(link("evil", target), entry("evil/passwd", content=b"x")))
    )
    assert bodies["etc/passwd"] == b"x"
    assert not any(name.startswith(("/", "..")) for name in bodies)


def test_links_in_a_circle_are_refused() -> None:
    assert refusal(link("a", "b"), link("b", "a"), entry("a/x")) == (
        "x.tar has a circle of symbolic links at 'a'"
    )


def test_a_hard_link_follows_links_on_its_way() -> None:
    _, members, _ = cleaned(tarball(system(hard_link("usr/bin/bash", "bin/dash"))))
    assert next(m for m in members if m.name == "usr/bin/bash").linkname == "usr/bin/dash"


@pytest.mark.parametrize("target", ["etc/passwd", "usr", "usr/bin/none"])
def test_a_hard_link_to_what_is_not_there_is_refused(target: str) -> None:
    assert f"to {target!r}, which is not in it" in refusal(*system(hard_link("h", target)))


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "usr/../../x"])
def test_a_hard_link_out_of_the_root_is_refused(target: str) -> None:
    assert target in refusal(*system(hard_link("h", target)))


# -- paths, owners and sizes -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", ".."])
def test_paths_that_lead_out_are_refused(name: str) -> None:
    assert refusal(entry(name)) == f"x.tar has a path that leads out of it, {name!r}"


def test_absolute_paths_are_refused() -> None:
    assert refusal(entry("/etc/passwd")) == "x.tar has an absolute path, '/etc/passwd'"


def test_names_beyond_what_linux_takes_are_refused() -> None:
    assert refusal(entry("n" * 256)).startswith("x.tar has a name that is too long")
    assert refusal(entry("d/" * 300 + "f")).startswith("x.tar has a path that is too long")


def test_a_file_in_place_of_the_root_is_refused() -> None:
    assert refusal(entry("./")) == "x.tar has a file in place of its root directory"


def test_a_path_below_a_file_is_refused() -> None:
    message = refusal(entry("a", content=b"x"), entry("a/b"))
    assert message == "x.tar has 'a/b' below something that is not a directory"


def test_owners_beyond_the_range_are_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        cleaned(tarball([entry("f", uid=65_536)]))
    assert "'f' belonging to id 65536, but only ids below 65536" in caught.value.message
    assert "/etc/subuid" in str(caught.value.next_step)


def test_more_content_than_there_is_room_for_is_refused_before_it_is_read() -> None:
    # The header says 1 TiB and the archive ends there: only the header is needed to refuse it.
    info, _ = entry("huge")
    info.size = 1 << 40
    with pytest.raises(ResourceError, match=r"more than the 1\.0 MiB that there is room for"):
        cleaned(info.tobuf(tarfile.GNU_FORMAT))


# -- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"not a tarball" * 100, bytes(512)[:100]])
def test_what_is_no_tarball_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        cleaned(data)[0].architecture()


def test_a_cut_off_tarball_is_refused() -> None:
    data = tarball(system(entry("etc/big", content=b"x" * 50_000)))
    with pytest.raises(UsageError, match=r"x\.tar is (damaged|not a tar archive or is damaged)"):
        cleaned(data[:40_000])


def test_a_header_that_points_backwards_is_refused() -> None:
    info, _ = entry("f")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 8 + (-(1 << 20)).to_bytes(
        4, "big", signed=True
    )  # base-256, negative
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    first = tarball([entry("a", content=b"x" * 2_000_000)])[: 512 + 2_000_384]
    with pytest.raises(UsageError):
        cleaned(first + bytes(block) + bytes(10_240), Limits(1 << 30, 65_536))


def test_a_header_amid_others_that_is_none_is_damage_and_not_the_end() -> None:
    whole = tarball([entry("bin/sh", content=b"\x7fELF"), entry("last", content=b"x")])
    at = whole.index(b"last")
    assert at % 512 == 0
    with pytest.raises(UsageError, match="is not a tar archive or is damaged: bad checksum"):
        cleaned(whole[:at] + b"fast" + whole[at + 4 :])
    with pytest.raises(UsageError, match="is not a tar archive or is damaged"):
        cleaned(whole[: at + 100])


def test_a_header_that_wants_gigabytes_of_memory_is_refused() -> None:
    info, _ = entry("x", tarfile.XHDTYPE)
    info.size = 8 << 30
    with pytest.raises(UsageError, match="a header is far too large"):
        cleaned(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_does_more_than_refuse(data: st.DataObject) -> None:
    good = bytearray(
        tarball(system(entry("etc/motd", content=b"hi" * 400), hard_link("m", "etc/motd")))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        _, members, _ = cleaned(bytes(good[:cut]))
    except (UsageError, ResourceError):
        return
    links = {m.name for m in members if m.issym()}
    for member in members:
        parts = member.name.split("/")
        assert not member.name.startswith("/")
        assert ".." not in parts
        assert not member.isdev() or member.isfifo()
        for depth in range(1, len(parts)):
            assert "/".join(parts[:depth]) not in links


# -- what is found -----------------------------------------------------------------------------


def test_the_architecture_is_that_of_the_shell() -> None:
    assert cleaned(tarball(system()))[0].architecture() == "x86_64"
    assert cleaned(tarball(system(machine=183)))[0].architecture() == "aarch64"


def test_what_holds_no_programs_is_no_root_file_system() -> None:
    contents, _, _ = cleaned(tarball([directory("src"), entry("src/main.c", content=b"int main;")]))
    with pytest.raises(UsageError, match=r"x\.tar does not hold a root file system"):
        contents.architecture()


def test_a_container_image_archive_is_told_from_a_root_file_system() -> None:
    contents, _, _ = cleaned(tarball([entry("manifest.json", content=b"[]")]))
    with pytest.raises(UsageError) as caught:
        contents.architecture()
    assert "container image archive" in caught.value.message
    assert "podman export" in str(caught.value.next_step)


def test_init_is_found_through_links() -> None:
    systemd = (
        directory("usr/lib"),
        directory("usr/lib/systemd"),
        entry("usr/lib/systemd/systemd", content=elf()),
        link("lib", "usr/lib"),
        directory("sbin"),
        link("sbin/init", "/lib/systemd/systemd"),
    )
    assert cleaned(tarball(system(*systemd)))[0].find_init() == "/sbin/init"
    assert cleaned(tarball(system(*systemd[:3])))[0].find_init() == "/usr/lib/systemd/systemd"
    assert cleaned(tarball(system()))[0].find_init() is None
    assert cleaned(tarball(system(link("sbin", "/nowhere"))))[0].find_init() is None


# -- changes -----------------------------------------------------------------------------------


def test_dropped_paths_go_with_what_is_below_them() -> None:
    _, members, _ = cleaned(
        tarball(system(directory("etc/a"), entry("etc/a/b"), entry("etc/ab"), entry("etc/c_key"))),
        drop=("etc/a", "etc/*_key"),
    )
    names = {m.name for m in members}
    assert not names & {"etc/a", "etc/a/b", "etc/c_key"}
    assert "etc/ab" in names


def test_added_entries_take_the_place_of_what_came() -> None:
    _, members, bodies = cleaned(
        tarball(system(entry("etc/fstab", content=b"theirs"), link("etc/x", "y"))),
        add=(AddedFile("etc/fstab", b"ours", mode=0o600), AddedLink("etc/x", "z")),
    )
    assert bodies["etc/fstab"] == b"ours"
    assert [m.linkname for m in members if m.name == "etc/x"] == ["z"]
    assert len([m for m in members if m.name == "etc/fstab"]) == 1
