//! The SFTP server and clients that mean no good: it answers or ends, and does nothing else.
//! (That it works is shown by OpenSSH's own clients, in tests/ssh.)

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

/// What it answers to `input`, and its exit code.
fn serve(directory: &TempDir, input: &[u8]) -> (Vec<u8>, Option<i32>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vmgr-agent"))
        .args(["--builtin", "sftp"])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let mut answers = Vec::new();
    stdout.read_to_end(&mut answers).unwrap();
    writer.join().unwrap();
    (answers, child.wait().unwrap().code())
}

fn packet(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// The kinds and numbers of the packets in `answers`.
fn packets(mut answers: &[u8]) -> Vec<(u8, u32)> {
    let mut found = Vec::new();
    while let Some((length, rest)) = answers.split_first_chunk::<4>() {
        let (body, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        found.push((body[0], u32::from_be_bytes(body[1..5].try_into().unwrap())));
        answers = rest;
    }
    found
}

#[test]
fn what_it_knows_it_answers_and_what_not_too() {
    let directory = tempdir().unwrap();
    let input = [
        packet(b"\x01\0\0\0\x06"), // INIT, of a client that knows version 6
        packet(b"\x10\0\0\0\x07\0\0\0\x01."), // REALPATH
        packet(b"\x63\0\0\0\x08"), // no such request
        packet(b"\x05\0\0\0\x09\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x01"), // no such handle
        packet(b"\x03\0\0\0\x0a\0\0\0\x09"), // a name that is not there
    ];
    let (answers, code) = serve(&directory, &input.concat());
    let kinds = [(2, 3), (104, 7), (101, 8), (101, 9), (101, 10)];
    assert_eq!(packets(&answers), kinds);
    assert_eq!(code, Some(0));
}

#[test]
fn a_packet_that_claims_too_much_ends_it() {
    let directory = tempdir().unwrap();
    for length in [0_u32, 4, 262_145, u32::MAX] {
        let (answers, code) = serve(&directory, &length.to_be_bytes());
        assert_eq!((answers.len(), code), (0, Some(1)), "{length}");
    }
}

#[test]
fn a_huge_read_gives_what_there_is() {
    let directory = tempdir().unwrap();
    std::fs::write(directory.path().join("f"), "content").unwrap();
    let input = [
        packet(b"\x03\0\0\0\x01\0\0\0\x01f\0\0\0\x01\0\0\0\0"),
        packet(b"\x05\0\0\0\x02\0\0\0\x04\0\0\0\x01\0\0\0\0\0\0\0\x03\xff\xff\xff\xff"),
    ];
    let (answers, _) = serve(&directory, &input.concat());
    assert!(answers.ends_with(b"\0\0\0\x04tent"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Requests that read and ask, with whatever in them: one answer each, with its number.
    #[test]
    fn each_packet_has_one_answer(
        requests in prop::collection::vec(
            (prop::sample::select(vec![4_u8, 5, 7, 8, 12, 16, 17, 19, 99, 200]),
             prop::collection::vec(any::<u8>(), 0..60)),
            0..20,
        )
    ) {
        let directory = tempdir().unwrap();
        let mut input = Vec::new();
        for (number, (kind, body)) in (1_u32..).zip(&requests) {
            input.extend(packet(&[&[*kind][..], &number.to_be_bytes(), body].concat()));
        }
        let (answers, code) = serve(&directory, &input);
        let numbers: Vec<u32> = packets(&answers).into_iter().map(|(_, number)| number).collect();
        prop_assert_eq!(numbers, (1..).take(requests.len()).collect::<Vec<u32>>());
        prop_assert_eq!(code, Some(0));
    }
}
