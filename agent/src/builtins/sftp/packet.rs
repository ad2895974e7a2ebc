//! Bytes of SFTP version 3 (draft-ietf-secsh-filexfer-02): reading requests, writing answers.

use std::os::unix::fs::MetadataExt;

use std::fs::Metadata;

/// A request that ends before it says what it must.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Takes a request's fields off its front.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<4>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk::<8>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.u32()?;
        let mut found = Attributes::default();
        if flags & Attributes::SIZE != 0 {
            found.size = Some(self.u64()?);
        }
        if flags & Attributes::OWNER != 0 {
            found.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & Attributes::MODE != 0 {
            found.mode = Some(self.u32()?);
        }
        if flags & Attributes::TIMES != 0 {
            found.times = Some((self.u32()?, self.u32()?));
        }
        if flags & Attributes::EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(found)
    }
}

/// What a request says of a file; what is None is left as it is.
#[derive(Default, Debug)]
pub(super) struct Attributes {
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// Of last access and change, in seconds.
    pub times: Option<(u32, u32)>,
}

impl Attributes {
    const SIZE: u32 = 1;
    const OWNER: u32 = 2;
    const MODE: u32 = 4;
    const TIMES: u32 = 8;
    const EXTENDED: u32 = 0x8000_0000;
}

/// The answers that wait to be written.
#[derive(Default)]
pub(super) struct Answers(pub Vec<u8>);

impl Answers {
    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn string(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(0));
        self.0.extend(bytes);
    }

    /// Write one packet, whose length is filled in when `body` has written it.
    pub(super) fn packet(&mut self, kind: u8, id: u32, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.u32(0);
        self.0.push(kind);
        self.u32(id);
        body(self);
        self.set_length(start);
    }

    /// Fill in the length of the packet that began at `start` and is complete.
    pub(super) fn set_length(&mut self, start: usize) {
        let length = u32::try_from(self.0.len() - start - 4).unwrap_or(0);
        self.0[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "version 3 has 32 bits for times"
    )]
    pub(super) fn metadata(&mut self, found: &Metadata) {
        let flags = Attributes::SIZE | Attributes::OWNER | Attributes::MODE | Attributes::TIMES;
        self.u32(flags);
        self.u64(found.size());
        self.u32(found.uid());
        self.u32(found.gid());
        self.u32(found.mode());
        self.u32(found.atime() as u32);
        self.u32(found.mtime() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_where_the_packet_does() {
        let mut fields = Fields(b"\0\0\0\x02ab\0\0\0\x05abc");
        assert_eq!(fields.string(), Ok(&b"ab"[..]));
        assert_eq!(fields.string(), Err(Malformed));
    }

    #[test]
    fn a_string_longer_than_memory_is_malformed() {
        assert_eq!(Fields(b"\xff\xff\xff\xffabc").string(), Err(Malformed));
    }

    #[test]
    fn unknown_extended_attributes_are_passed_over() {
        let bytes = [
            &[0x80, 0, 0, 4, 0, 0, 1, 0xa4, 0, 0, 0, 1][..],
            &[0; 8],
            b"\x07",
        ]
        .concat();
        let mut fields = Fields(&bytes);
        assert_eq!(fields.attributes().unwrap().mode, Some(0o644));
        assert_eq!(fields.0, b"\x07");
    }

    #[test]
    fn a_packet_knows_its_length() {
        let mut answers = Answers::default();
        answers.packet(101, 7, |a| a.string(b"xyz"));
        assert_eq!(answers.0, b"\0\0\0\x0c\x65\0\0\0\x07\0\0\0\x03xyz");
    }
}
