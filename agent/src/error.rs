//! Why a request is refused: the payload of ERROR.

use nix::errno::Errno;

/// A refusal. `code` is for programs, `message` one sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
    pub errno: Option<i32>,
}

impl Refusal {
    #[must_use]
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            errno: None,
        }
    }

    /// The request makes no sense.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid", message)
    }

    /// A system call failed: `what` names what was being done.
    #[must_use]
    pub fn system(what: &str, errno: Errno) -> Self {
        Self {
            code: "system",
            message: format!("{what}: {}", errno.desc()),
            errno: Some(errno as i32),
        }
    }
}
