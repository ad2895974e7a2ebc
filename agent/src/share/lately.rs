//! What the directory that was changed last is like since.
//!
//! The kernel forgets a directory's attributes with each change in it, and asks for them before the next
//! name is looked up there. The server says them with its answer to the change.

use std::time::{Duration, Instant};

/// In a header of the server's, in place of an error: what follows is `fuse_attr_out` of the directory
/// in which the request of this number has changed something. Its answer comes next.
pub const ATTRIBUTES: u32 = 2;
/// As long as attributes are trusted at all (docs/shares.md).
const VALID: Duration = Duration::from_millis(50);
const ATTR_OUT: usize = 104;

#[derive(Debug, Default)]
pub struct Lately {
    known: Option<(u64, Vec<u8>, Instant)>,
}

impl Lately {
    /// A server has said what `node` is like.
    #[must_use]
    pub fn new(node: u64, attributes: &[u8]) -> Self {
        let known = attributes.len() == ATTR_OUT;
        Self {
            known: known.then(|| (node, attributes.to_vec(), Instant::now())),
        }
    }

    /// Whether it is known what `node` is like, and recently.
    #[must_use]
    pub fn is_of(&self, node: u64) -> bool {
        (self.known.as_ref()).is_some_and(|(known, _, at)| *known == node && at.elapsed() < VALID)
    }

    /// `fuse_attr_out`, valid for the rest of its time.
    #[must_use]
    pub fn answer(&self) -> Vec<u8> {
        let Some((_, attributes, at)) = &self.known else {
            return Vec::new();
        };
        let left = VALID.saturating_sub(at.elapsed());
        let mut answer = attributes.clone();
        answer[8..12].copy_from_slice(&left.subsec_nanos().to_le_bytes());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_directory_that_was_changed_is_known() {
        let mut attributes = vec![7; ATTR_OUT];
        attributes[8..12].fill(0xff);
        let lately = Lately::new(5, &attributes);
        assert!(lately.is_of(5) && !lately.is_of(6));
        let answer = lately.answer();
        assert_eq!(answer[12..], attributes[12..]);
        let left = answer[8..12]
            .first_chunk()
            .map_or(0, |left| u32::from_le_bytes(*left));
        assert!(left <= VALID.subsec_nanos());
    }

    #[test]
    fn what_has_not_the_length_of_attributes_is_nothing() {
        assert!(!Lately::new(5, &[0; 24]).is_of(5));
        assert!(!Lately::default().is_of(0));
    }
}
