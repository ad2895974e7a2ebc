//! Writing what jobs there are, so that it fits a frame whatever they are called.

use rmpv::Value;

use super::{JobRecord, exit_fields, value};
use crate::frame::MAX_PAYLOAD;

/// The value of `jobs`: as many as fit one frame, with texts shortened to fit.
#[must_use]
pub fn jobs(records: &[JobRecord]) -> Value {
    /// Bytes of a record beside its texts, at the most: keys 71, numbers 44, exit 60.
    const FIXED: usize = 180;
    /// What the rest of a HELLO may take.
    const REST: usize = 1_024;
    let each = (MAX_PAYLOAD - REST) / records.len().max(1);
    // No more than what listings can show, and never so many values that the host refuses them.
    let texts = each.saturating_sub(FIXED).min(1_024);
    Value::Array(records.iter().map(|job| record(job, texts)).collect())
}

fn record(job: &JobRecord, room: usize) -> Value {
    const MAX_LISTED_ARGUMENTS: usize = 12;
    let user = shortened(job.user, room.min(64));
    let label = shortened(job.label, room - user.len());
    let mut room = room - user.len() - label.len();
    let mut argv = Vec::new();
    for argument in job.argv.iter().take(MAX_LISTED_ARGUMENTS) {
        // Two bytes of msgpack per argument.
        let Some(left) = room.checked_sub(2).filter(|&n| n > 0) else {
            break;
        };
        let part = &argument[..argument.len().min(left)];
        room = left - part.len();
        argv.push(Value::Binary(part.to_vec()));
    }
    let exit = job.exit.map_or(Value::Nil, |(ended, dropped)| {
        value(exit_fields(ended, dropped))
    });
    value(vec![
        ("job", job.job.into()),
        ("pid", job.pid.into()),
        ("label", label.into()),
        ("argv", Value::Array(argv)),
        ("user", user.into()),
        ("tty", job.tty.into()),
        ("detached", job.detached.into()),
        ("private", job.private.into()),
        ("started_ns", job.started_ns.into()),
        ("attached", job.attached.into()),
        ("exit", exit),
    ])
}

fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
