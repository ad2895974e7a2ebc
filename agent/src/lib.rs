//! vmgr's agent: the program inside a machine.
//!
//! - The protocol, without I/O: [`frame`], [`receiver`], [`wire`], [`flow`], [`outbox`].
//! - Jobs: [`job`], [`launch`], [`account`], [`pty`].
//! - Serving: [`server`], [`requests`], [`power`], [`task`], [`event_loop`], [`port`].
//! - Saving a machine and coming back from it: [`still`].
//! - Disks for data: [`volume`], [`filesystem`].
//! - The machine's network: [`network`], [`netlink`], [`listeners`], [`ports`].
//! - Connections to its ports: [`connection`], [`connections`].
//! - Programs in the machine that want something of the host: [`calls`], [`door`], [`host`].
//! - Programs of its own: [`builtins`].
//! - Being the machine's first process: [`boot`].
pub mod account;
pub mod boot;
pub mod builtins;
pub mod calls;
pub mod children;
pub mod clock;
pub mod connection;
pub mod connections;
pub mod counter;
pub mod door;
pub mod error;
pub mod event_loop;
pub mod filesystem;
pub mod flow;
pub mod frame;
pub mod host;
pub mod job;
pub mod launch;
pub mod listeners;
pub mod machine;
pub mod mounts;
pub mod netlink;
pub mod network;
pub mod outbox;
pub mod port;
pub mod ports;
pub mod power;
pub mod pty;
pub mod receiver;
pub mod requests;
pub mod secrets;
pub mod serve;
pub mod server;
pub mod share;
pub mod still;
pub mod task;
pub mod volume;
pub mod wire;
