//! Serving connections: from the host's `connect` to their end.

use std::collections::BTreeMap;

use crate::connection::{Attempt, Connect, Connection};
use crate::error::Refusal;
use crate::frame::{self, Header, Kind, STDIN, STDOUT, Violation};
use crate::outbox::Outbox;
use crate::server::{Server, Target};
use crate::wire::{self, Ended};

/// At once. Each may hold two windows of memory.
const MAX_CONNECTIONS: usize = 128;

/// All of them, by number.
#[derive(Default)]
pub struct Connections {
    all: BTreeMap<u64, Connection>,
    /// Whose DATA was sent last.
    turn: u64,
}

impl Connections {
    /// Whether there is something to do without another event.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.all.values().any(Connection::is_busy)
    }

    /// Whether one of them has something to send.
    #[must_use]
    pub fn has_data(&self) -> bool {
        self.all.values().any(|c| c.sendable() > 0)
    }

    /// One more, which is open already.
    pub fn add(&mut self, number: u64, connection: Connection) -> Result<(), Refusal> {
        if self.all.len() >= MAX_CONNECTIONS {
            let why = "128 connections of this machine are open";
            return Err(Refusal::new("too-many-connections", why));
        }
        self.all.insert(number, connection);
        Ok(())
    }

    /// The host has gone.
    pub fn clear(&mut self) {
        for connection in self.all.values() {
            connection.reset();
        }
        self.all.clear();
    }

    /// Put one frame of DATA into the outbox: of the first after the last one that may send.
    pub fn fill(&mut self, out: &mut Outbox) -> bool {
        let after = self.all.range(self.turn + 1..);
        let before = self.all.range(..=self.turn);
        let next = after
            .chain(before)
            .find(|(_, connection)| connection.sendable() > 0)
            .map(|(number, _)| *number);
        let Some(connection) = next.and_then(|number| self.all.get_mut(&number)) else {
            return false;
        };
        self.turn = next.unwrap_or(0);
        let length = connection.sendable().min(frame::MAX_DATA);
        out.data_header(connection.channel, STDOUT, length);
        connection.output.send(length, |bytes| out.raw(bytes));
        true
    }
}

impl Server {
    /// The host wants a connection: the answer comes when it is made.
    pub(crate) fn connect(&mut self, channel: u32, to: Connect) -> Result<(), Refusal> {
        if self.connections.all.len() >= MAX_CONNECTIONS {
            let why = "128 connections to this machine's ports are open";
            return Err(Refusal::new("too-many-connections", why));
        }
        self.last_number += 1;
        let number = self.last_number;
        let (connection, attempt) = Connection::begin(number, channel, to, &self.event_loop)?;
        self.connections.all.insert(number, connection);
        self.channels.insert(channel, Target::Connection(number));
        if matches!(attempt, Attempt::Connected) {
            self.out.opened(channel, Vec::new());
        }
        Ok(())
    }

    /// epoll said that a connection's socket has news.
    pub(crate) fn on_connection(&mut self, number: u64) {
        let Some(connection) = self.connections.all.get_mut(&number) else {
            return;
        };
        match connection.ready(number, &self.event_loop) {
            Ok(Some(Attempt::Connected)) => self.out.opened(connection.channel, Vec::new()),
            Ok(_) => {}
            Err(refusal) => self.end_connection(number, &refusal),
        }
    }

    /// A frame on a connection's channel.
    pub(crate) fn connection_frame(
        &mut self,
        number: u64,
        header: Header,
        payload: &[u8],
    ) -> Result<(), Violation> {
        let Some(connection) = self.connections.all.get_mut(&number) else {
            return Ok(());
        };
        match header.kind {
            Kind::Data => connection.input.receive(payload)?,
            Kind::Eof => connection.input.end(),
            Kind::Credit if header.flow == STDOUT => {
                let (acked, limit) = frame::credit(payload);
                connection.output.credit(acked, limit)?;
            }
            // The host's client has gone: so has this.
            Kind::Close => {
                connection.reset();
                self.channels.remove(&header.channel);
                self.connections.all.remove(&number);
            }
            _ => return Err(Violation("what a connection does not take")),
        }
        Ok(())
    }

    /// Move bytes of all connections, and end those that are over.
    pub(crate) fn pump_connections(&mut self) {
        let mut broken = Vec::new();
        for (number, connection) in &mut self.connections.all {
            if let Err(errno) = connection.pump(&mut self.scratch) {
                broken.push((*number, errno));
                continue;
            }
            if !connection.is_connecting()
                && let Some((acked, limit)) = connection.input.credit_due()
            {
                self.out.credit(connection.channel, acked, limit);
            }
        }
        for (number, errno) in broken {
            let refusal = Refusal {
                code: "reset",
                ..Refusal::system("the connection was broken", errno)
            };
            self.end_connection(number, &refusal);
        }
        self.settle_connections();
    }

    /// EOF and EXIT where they are due.
    pub(crate) fn settle_connections(&mut self) {
        let mut over = Vec::new();
        for (number, connection) in &mut self.connections.all {
            if connection.take_end() {
                self.out.frame(Kind::Eof, connection.channel, STDOUT, &[]);
            }
            if connection.is_over() {
                let exit = wire::exit(Ended::Code(0), [0, 0]);
                self.out.frame(Kind::Exit, connection.channel, STDIN, &exit);
                over.push((*number, connection.channel));
            }
        }
        for (number, channel) in over {
            self.connections.all.remove(&number);
            self.channels.remove(&channel);
        }
    }

    fn end_connection(&mut self, number: u64, refusal: &Refusal) {
        if let Some(connection) = self.connections.all.remove(&number) {
            self.channels.remove(&connection.channel);
            self.out.refuse(connection.channel, refusal);
        }
    }
}
