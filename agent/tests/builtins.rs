//! The builtins, as programs: what goes through `pack` and `unpack` is the same afterwards.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

/// Run a builtin with `input` as its stdin.
fn builtin(arguments: &[&OsStr], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmgr-agent"))
        .arg("--builtin")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may not read all of it.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    builtin(&arguments, input)
}

fn pack(path: &Path) -> Output {
    builtin(&["pack".as_ref(), "--".as_ref(), path.as_os_str()], b"")
}

fn unpack(directory: &Path, archive: &[u8]) -> Output {
    builtin(&["unpack".as_ref(), directory.as_os_str()], archive)
}

fn good(output: &Output) -> &[u8] {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), errors.as_ref()), (Some(0), ""));
    &output.stdout
}

fn problem(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// All that must survive of a tree: by relative path, its kind, mode, time and content.
fn tree(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let data = fs::symlink_metadata(&path).unwrap();
        let kind = data.file_type();
        let content = if kind.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            let content = fs::read(&path).unwrap();
            let sum = content.iter().fold(content.len(), |sum, byte| {
                sum.wrapping_mul(31) ^ usize::from(*byte)
            });
            format!("{} links, sum {sum}", data.nlink())
        };
        let mode = if kind.is_symlink() { 0 } else { data.mode() };
        let line = format!(
            "{mode:o} {}.{:09} {content}",
            data.mtime(),
            data.mtime_nsec()
        );
        found.insert(path.strip_prefix(top).unwrap().to_owned(), line);
    }
    found
}

fn file(path: &Path, content: &[u8], mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, time: SystemTime) {
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// A directory, with a tree in `tree`.
fn sample() -> TempDir {
    let directory = tempdir().unwrap();
    let top = directory.path().join("tree");
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    file(&top.join("plain"), b"content", 0o640);
    file(&top.join("sub/program"), b"#!/bin/sh\n", 0o4755);
    file(&top.join("nothing"), b"", 0o600);
    file(
        &top.join(OsStr::from_bytes(b"odd \xff\n name")),
        b"odd",
        0o644,
    );
    file(&top.join("n".repeat(200)), b"long name", 0o644);
    let deep = top.join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    file(&deep.join("inner"), &vec![7; 100_000], 0o400);
    symlink("plain", top.join("link")).unwrap();
    symlink("/no/such/target", top.join("dangling")).unwrap();
    symlink("t".repeat(300), top.join("long-link")).unwrap();
    fs::hard_link(top.join("plain"), top.join("sub/again")).unwrap();
    nix::unistd::mkfifo(&top.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    set_time(
        &top.join("plain"),
        SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789),
    );
    set_time(
        &top.join("nothing"),
        SystemTime::UNIX_EPOCH - Duration::from_millis(1_250),
    );
    fs::set_permissions(top.join("sub"), fs::Permissions::from_mode(0o555)).unwrap();
    set_time(
        &top.join("sub"),
        SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5),
    );
    directory
}

#[test]
fn a_tree_is_the_same_afterwards() {
    let (from, to) = (sample(), tempdir().unwrap());
    let archive = pack(&from.path().join("tree"));
    good(&unpack(to.path(), good(&archive)));
    assert_eq!(
        tree(&to.path().join("tree")),
        tree(&from.path().join("tree"))
    );
    // And once more, over what is there.
    good(&unpack(to.path(), good(&archive)));
    assert_eq!(
        tree(&to.path().join("tree")),
        tree(&from.path().join("tree"))
    );
    // Or a test run by an ordinary user could not remove it.
    for directory in [&from, &to] {
        let sub = directory.path().join("tree/sub");
        fs::set_permissions(sub, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn tar_reads_what_pack_writes() {
    let (from, to) = (sample(), tempdir().unwrap());
    let archive = to.path().join("archive");
    fs::write(&archive, good(&pack(&from.path().join("tree")))).unwrap();
    let status = Command::new("tar")
        .arg("-xpf")
        .arg(&archive)
        .arg("-C")
        .arg(to.path())
        .status();
    assert!(status.unwrap().success());
    assert_eq!(
        tree(&to.path().join("tree")),
        tree(&from.path().join("tree"))
    );
    for directory in [&from, &to] {
        let sub = directory.path().join("tree/sub");
        fs::set_permissions(sub, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn unpack_reads_what_tar_writes() {
    let from = sample();
    for format in ["gnu", "pax", "ustar", "v7"] {
        let to = tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["-c", "--format", format, "-C"])
            .arg(from.path())
            .arg("tree");
        let made = tar.output().unwrap();
        // The older formats cannot hold long names and pipes, and leave them out.
        good(&unpack(to.path(), &made.stdout));
        let (mut expected, found) = (
            tree(&from.path().join("tree")),
            tree(&to.path().join("tree")),
        );
        if format == "pax" {
            assert_eq!(found, expected);
        }
        expected.retain(|path, _| found.contains_key(path));
        let names = |tree: &BTreeMap<PathBuf, String>| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{format}");
        assert!(found.len() > 6, "{format}: {found:?}");
        let sub = to.path().join("tree/sub");
        fs::set_permissions(sub, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(
        from.path().join("tree/sub"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
}

#[test]
fn owners_are_kept_by_root() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    let path = from.path().join("file");
    file(&path, b"x", 0o4755);
    // Beyond what a ustar header holds, too.
    for (uid, gid) in [(1234, 5678), (3_000_000, 4_000_000)] {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        good(&unpack(to.path(), good(&pack(&path))));
        let found = fs::metadata(to.path().join("file")).unwrap();
        assert_eq!(
            (found.uid(), found.gid(), found.mode() & 0o7777),
            (uid, gid, 0o4755)
        );
    }
}

#[test]
fn links_stay_links_unless_asked() {
    let (from, to) = (tempdir().unwrap(), tempdir().unwrap());
    file(&from.path().join("target"), b"behind", 0o644);
    symlink("target", from.path().join("link")).unwrap();
    let link = from.path().join("link");
    good(&unpack(to.path(), good(&pack(&link))));
    assert!(
        fs::symlink_metadata(to.path().join("link"))
            .unwrap()
            .is_symlink()
    );
    let followed = builtin(
        &["pack".as_ref(), "--follow".as_ref(), link.as_os_str()],
        b"",
    );
    good(&unpack(to.path(), good(&followed)));
    assert!(
        fs::symlink_metadata(to.path().join("link"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn the_first_component_can_be_renamed() {
    let (from, to) = (sample(), tempdir().unwrap());
    let archive = pack(&from.path().join("tree"));
    let arguments = [
        "unpack".as_ref(),
        "--as".as_ref(),
        "new".as_ref(),
        to.path().as_os_str(),
    ];
    good(&builtin(&arguments, good(&archive)));
    // Hard links, too: they name their target.
    assert_eq!(
        tree(&to.path().join("new")),
        tree(&from.path().join("tree"))
    );
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
    for path in [from.path().join("tree/sub"), to.path().join("new/sub")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for bad in ["", ".", "..", "a/b", "/"] {
        let arguments = [
            "unpack".as_ref(),
            "--as".as_ref(),
            bad.as_ref(),
            to.path().as_os_str(),
        ];
        assert_eq!(builtin(&arguments, b"").status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn what_cannot_be_packed_is_told_and_the_rest_packed() {
    let from = tempdir().unwrap();
    let top = from.path().join("tree");
    fs::create_dir(&top).unwrap();
    file(&top.join("good"), b"good", 0o644);
    let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
    let output = pack(&top);
    assert!(problem(&output).contains("socket"));
    let to = tempdir().unwrap();
    good(&unpack(to.path(), &output.stdout));
    assert_eq!(fs::read(to.path().join("tree/good")).unwrap(), b"good");
    let output = run(&["pack", "/no/such/file"], b"");
    assert_eq!(
        problem(&output),
        "/no/such/file: No such file or directory\n"
    );
}

/// An archive of one file with that name, made by hand.
fn hostile(name: &str, entry_type: tar::EntryType, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    let ustar = header.as_ustar_mut().unwrap();
    ustar.name[..name.len()].copy_from_slice(name.as_bytes());
    ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(entry_type);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn nothing_leaves_the_directory() {
    let outside = tempdir().unwrap();
    let inside = outside.path().join("inside");
    fs::create_dir(&inside).unwrap();
    file(&outside.path().join("secret"), b"secret", 0o600);
    symlink("..", inside.join("up")).unwrap();
    symlink(outside.path(), inside.join("away")).unwrap();
    for (name, entry_type, link) in [
        ("../evil", tar::EntryType::Regular, ""),
        ("a/../../evil", tar::EntryType::Regular, ""),
        ("up/evil", tar::EntryType::Regular, ""),
        ("away/evil", tar::EntryType::Regular, ""),
        ("up/evil", tar::EntryType::Directory, ""),
        ("away", tar::EntryType::Directory, ""),
        ("stolen", tar::EntryType::Link, "../secret"),
        ("stolen", tar::EntryType::Link, "up/secret"),
        ("stolen", tar::EntryType::Link, "away/secret"),
    ] {
        let output = unpack(&inside, &hostile(name, entry_type, link, b""));
        assert!(!problem(&output).is_empty(), "{name}");
        assert!(!outside.path().join("evil").exists(), "{name}");
        assert!(!inside.join("stolen").exists(), "{link}");
    }
    // A leading slash is only dropped.
    good(&unpack(
        &inside,
        &hostile("/absolute", tar::EntryType::Regular, "", b"x"),
    ));
    assert!(inside.join("absolute").is_file());
    // A link of that name is replaced, not written through.
    good(&unpack(
        &inside,
        &hostile("away", tar::EntryType::Regular, "", b"new"),
    ));
    assert!(fs::symlink_metadata(inside.join("away")).unwrap().is_file());
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_file_does_not_replace_a_directory() {
    let to = tempdir().unwrap();
    fs::create_dir(to.path().join("name")).unwrap();
    let output = unpack(
        to.path(),
        &hostile("name", tar::EntryType::Regular, "", b"x"),
    );
    assert_eq!(problem(&output), "name: Is a directory\n");
    file(&to.path().join("other"), b"", 0o644);
    problem(&unpack(
        to.path(),
        &hostile("other/", tar::EntryType::Directory, "", b""),
    ));
    // No half-made file is left.
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2);
}

#[test]
fn an_archive_that_ends_early_leaves_no_half_file() {
    let (from, to) = (sample(), tempdir().unwrap());
    let archive = pack(&from.path().join("tree").join("d".repeat(120)));
    let output = unpack(to.path(), &good(&archive)[..20_000]);
    assert!(!problem(&output).is_empty());
    let files = tree(to.path());
    assert!(
        files.values().all(|line| line.ends_with("dir")),
        "{files:?}"
    );
    fs::set_permissions(
        from.path().join("tree/sub"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
}

#[test]
fn stat_says_what_is_there() {
    let from = tempdir().unwrap();
    file(&from.path().join("file"), b"12345", 0o640);
    symlink("file", from.path().join("link")).unwrap();
    symlink("nowhere", from.path().join("dangling")).unwrap();
    let stat = |name: &str| -> serde_json::Value {
        let path = from.path().join(name);
        let output = builtin(&["stat".as_ref(), path.as_os_str()], b"");
        serde_json::from_slice(good(&output)).unwrap()
    };
    let found = stat("link");
    assert_eq!(
        (&found["kind"], &found["size"], &found["mode"]),
        (&"file".into(), &5.into(), &0o640.into())
    );
    assert_eq!(stat(".")["kind"], "dir");
    for missing in ["dangling", "nothing", "file/below"] {
        assert_eq!(stat(missing)["kind"], "missing", "{missing}");
    }
    assert_eq!(run(&["stat"], b"").status.code(), Some(2));
}

#[test]
fn directories_are_listed() {
    let from = sample();
    let list = |path: &Path| -> Vec<serde_json::Value> {
        let output = builtin(&["stat".as_ref(), "--list".as_ref(), path.as_os_str()], b"");
        let lines = good(&output).split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    };
    let directory = from.path().join("listed");
    fs::create_dir(&directory).unwrap();
    assert!(list(&directory).is_empty());
    file(&directory.join("b\"\n"), b"12345", 0o640);
    symlink("nowhere", directory.join("a")).unwrap();
    let found = list(&directory);
    assert_eq!(found[0]["name"], "a");
    assert_eq!(
        (&found[0]["kind"], &found[0]["target"]),
        (&"link".into(), &"nowhere".into())
    );
    assert_eq!(
        (&found[1]["name"], &found[1]["size"]),
        (&"b\"\n".into(), &5.into())
    );
    assert_eq!(list(&directory.join("a"))[0]["kind"], "link");
    assert!(problem(&run(&["stat", "--list", "/no/such"], b"")).contains("No such file"));
}

#[test]
fn what_somebody_else_has_changed_is_not_replaced() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("file");
    let name = path.to_str().unwrap();
    let mark = || -> String {
        let output = run(&["stat", name], b"");
        let found: serde_json::Value = serde_json::from_slice(good(&output)).unwrap();
        found["mark"].as_str().unwrap_or("missing").to_owned()
    };
    assert_eq!(mark(), "missing");
    good(&run(&["write", "--expect", "missing", name], b"first"));
    assert!(problem(&run(&["write", "--expect", "missing", name], b"second")).contains("changed"));
    let seen = mark();
    fs::write(&path, b"theirs").unwrap();
    assert!(problem(&run(&["write", "--expect", &seen, name], b"mine")).contains("changed"));
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
    good(&run(&["write", "--expect", &mark(), name], b"mine"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn read_and_write_are_for_single_files() {
    let directory = tempdir().unwrap();
    let path = directory.path().join("file");
    let name = path.to_str().unwrap();
    let content: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0]).collect();
    good(&run(&["write", name], &content));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(good(&run(&["read", name], b"")), content);
    good(&run(&["write", name, "4750"], b"short"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4750);
    // Through a link, keeping the mode.
    let link = directory.path().join("link");
    symlink("file", &link).unwrap();
    good(&run(&["write", "--", link.to_str().unwrap()], b"by link"));
    assert_eq!(fs::read(&path).unwrap(), b"by link");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4750);
    good(&run(&["write", "/dev/null"], b"gone"));
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    let directory = directory.path().to_str().unwrap();
    assert!(problem(&run(&["write", directory], b"x")).contains("Is a directory"));
    assert!(problem(&run(&["read", directory], b"")).contains("Is a directory"));
    assert!(problem(&run(&["read", "/no/such"], b"")).contains("No such file"));
    assert_eq!(run(&["write", name, "999"], b"").status.code(), Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever comes as an archive: the builtin ends by itself, in the directory it was given.
    #[test]
    fn damaged_archives_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let outside = tempdir().unwrap();
        let inside = outside.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let from = tempdir().unwrap();
        let top = from.path().join("tree");
        fs::create_dir(&top).unwrap();
        file(&top.join("plain"), b"content", 0o640);
        file(&top.join("n".repeat(200)), b"long", 0o640);
        symlink("plain", top.join("link")).unwrap();
        let mut archive = good(&pack(&top)).to_vec();
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        let output = unpack(&inside, &archive);
        prop_assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        prop_assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}
