//! The bytes of a catalog entry.
//!
//! ```text
//! u32 bytes of the body   u16 type   u16 zero   body   zeros up to a multiple of 8
//! ```
//!
//! Everything is little-endian, and nothing in the body is aligned. A text is a `u32` count of bytes, then UTF-8.
//! Entries are whole 64-bit words because the file is only ever accessed as such.

/// The first word of an entry, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    body_bytes: u32,
    pub code: u16,
}

impl Frame {
    pub fn from_word(word: u64) -> Self {
        Frame { body_bytes: word as u32, code: (word >> 32) as u16 }
    }

    fn to_word(self) -> u64 {
        u64::from(self.body_bytes) | u64::from(self.code) << 32
    }

    /// The length of the body with its padding, in words.
    pub fn body_words(&self) -> usize {
        self.body_bytes.div_ceil(8) as usize
    }

    /// The body without its padding, from the words behind the frame.
    pub fn body(&self, words: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut body: Vec<u8> = words.take(self.body_words()).flat_map(u64::to_le_bytes).collect();
        body.truncate(self.body_bytes as usize);
        body
    }
}

/// Collects the body of an entry.
#[derive(Default)]
pub(super) struct Encoder {
    body: Vec<u8>,
}

impl Encoder {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.body.extend_from_slice(bytes);
        self
    }

    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text of 4 GiB wraps its length here, and is refused in `finish` because the body is then as large.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32).bytes(text.as_bytes())
    }

    /// The entry as words, its frame first; `None` if its length does not fit the frame.
    pub fn finish(self, code: u16) -> Option<Vec<u64>> {
        let body_bytes = u32::try_from(self.body.len()).ok()?;
        let mut words = vec![Frame { body_bytes, code }.to_word()];
        words.extend(self.body.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        }));
        Some(words)
    }
}

/// Takes the body of an entry apart, field by field, never past its end.
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Decoder { rest: body }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.rest.split_first_chunk().ok_or("the entry ends within a field")?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, &'static str> {
        self.array().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, &'static str> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, &'static str> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, &'static str> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn text(&mut self) -> Result<String, &'static str> {
        let length = self.u32()? as usize;
        let (text, rest) = self.rest.split_at_checked(length).ok_or("a text is longer than its entry")?;
        self.rest = rest;
        let text = std::str::from_utf8(text).map_err(|_| "a text is not UTF-8")?;
        Ok(text.to_owned())
    }
}
