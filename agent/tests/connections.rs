//! Connections to the machine's ports and word of who listens, on the agent's real binary.

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};

use common::{Agent, Host, error_code, field};
use nix::sys::socket::{setsockopt, sockopt};
use rmpv::Value;
use vmgr_agent::frame::{Kind, STDIN, STDOUT};

fn connect(host: &mut Host, addresses: &[&str], port: u16, datagrams: bool) -> u32 {
    let packed = addresses.iter().map(|address| {
        Value::Binary(match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        })
    });
    host.open(vec![
        ("op", "connect".into()),
        ("addresses", Value::Array(packed.collect())),
        ("port", port.into()),
        ("datagrams", datagrams.into()),
    ])
}

/// DATA of a channel up to `count` bytes.
fn data(host: &mut Host, channel: u32, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let frame = host.next_of(channel);
        match frame.kind {
            Kind::Data => bytes.extend(frame.payload),
            Kind::Credit => {}
            other => panic!("{other:?}"),
        }
    }
    bytes
}

#[test]
fn each_end_hears_the_other_out() {
    let agent = Agent::start();
    let mut host = agent.host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Nobody is on ::1, so the second is taken.
    let channel = connect(&mut host, &["::1", "127.0.0.1"], port, false);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (mut server, _) = listener.accept().unwrap();
    host.send(Kind::Data, channel, STDIN, b"question");
    host.send(Kind::Eof, channel, STDIN, b"");
    let mut asked = String::new();
    server.read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "question");
    // It is half-closed, and answers all the same.
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(data(&mut host, channel, 6), b"answer");
    let (eof, exit) = (host.next_of(channel), host.next_of(channel));
    assert_eq!(
        (eof.kind, eof.flow, exit.kind),
        (Kind::Eof, STDOUT, Kind::Exit)
    );
    host.send(Kind::Close, channel, 0, b"");
    assert!(host.settle().is_empty());
}

#[test]
fn nobody_and_resets_are_told() {
    let agent = Agent::start();
    let mut host = agent.host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let channel = connect(&mut host, &["127.0.0.1"], port, false);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (server, _) = listener.accept().unwrap();
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&server, sockopt::Linger, &linger).unwrap();
    drop(server);
    assert_eq!(error_code(&host.next_of(channel)), "reset");
    // The host's CLOSE resets what it leads to.
    let channel = connect(&mut host, &["127.0.0.1"], port, false);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (mut server, _) = listener.accept().unwrap();
    host.send(Kind::Close, channel, 0, b"");
    let broken = server.read(&mut [0]).unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    // So does its going away.
    let channel = connect(&mut host, &["127.0.0.1"], port, false);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (mut server, _) = listener.accept().unwrap();
    drop(host);
    let broken = server.read(&mut [0]).unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    drop(listener);
    let mut host = agent.host_with(common::next_key(vmgr_agent::receiver::FIRST_KEY));
    let channel = connect(&mut host, &["127.0.0.1", "::1"], port, false);
    assert_eq!(error_code(&host.next_of(channel)), "cannot-connect");
}

#[test]
fn a_reader_that_is_slow_holds_its_writer() {
    const ALL: usize = 3_000_000;
    let agent = Agent::start();
    let mut host = agent.host();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let channel = connect(&mut host, &["127.0.0.1"], port, false);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    let (mut server, _) = listener.accept().unwrap();
    let writer = std::thread::spawn(move || server.write_all(&vec![7; ALL]));
    assert_eq!(data(&mut host, channel, 65_536).len(), 65_536);
    // Not a byte beyond the credit.
    assert!(host.settle().iter().all(|frame| frame.channel != channel));
    let mut received = 65_536;
    while received < ALL {
        host.credit(channel, STDOUT, received as u64, received as u64 + 262_144);
        let frame = host.next_of(channel);
        if frame.kind == Kind::Data {
            received += frame.payload.len();
        }
    }
    writer.join().unwrap().unwrap();
}

#[test]
fn datagrams_keep_their_borders() {
    let agent = Agent::start();
    let mut host = agent.host();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let channel = connect(&mut host, &["127.0.0.1"], port, true);
    assert_eq!(host.next_of(channel).kind, Kind::Opened);
    // Two and a half, then the rest.
    host.send(Kind::Data, channel, STDIN, b"\x03\0one\x03\0two\x05");
    host.send(Kind::Data, channel, STDIN, b"\0three");
    let mut buffer = [0; 16];
    for expected in ["one", "two", "three"] {
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], expected.as_bytes());
        server.send_to(&buffer[..count], from).unwrap();
    }
    assert_eq!(
        data(&mut host, channel, 17),
        b"\x03\0one\x03\0two\x05\0three"
    );
}

#[test]
fn who_listens_is_told_when_it_changes() {
    let agent = Agent::start();
    let mut host = agent.host();
    let first = host.ask(vec![("op", "ports".into())]);
    assert_eq!(first.kind, Kind::Opened);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_le_bytes();
    let wanted = Value::Binary(vec![6, port[0], port[1], 0, 127, 0, 0, 1]);
    let mut told = |present: bool| loop {
        let frame = host.next();
        assert_eq!(frame.kind, Kind::Event);
        let listening = field(&frame.map(), "listening");
        if listening.as_array().unwrap().contains(&wanted) == present {
            break;
        }
    };
    told(true);
    drop(listener);
    told(false);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let agent = Agent::start();
    let mut host = agent.host();
    for (addresses, port) in [(&[][..], 80), (&["127.0.0.1"], 0), (&["::1"; 9], 80)] {
        let channel = connect(&mut host, addresses, port, false);
        assert_eq!(error_code(&host.next_of(channel)), "invalid");
    }
}

#[test]
fn an_ordinary_process_has_no_door() {
    let agent = Agent::start();
    let mut host = agent.host();
    let channel = host.open(vec![("op", "calls".into()), ("user", "root".into())]);
    assert_eq!(error_code(&host.next_of(channel)), "unsupported");
    let channel = host.open(vec![("op", "answer".into()), ("call", 1.into())]);
    assert_eq!(error_code(&host.next_of(channel)), "no-such-call");
    let channel = host.open(vec![
        ("op", "refuse".into()),
        ("call", 1.into()),
        ("message", "no".into()),
    ]);
    assert_eq!(error_code(&host.next_of(channel)), "no-such-call");
    assert!(host.settle().is_empty());
}
