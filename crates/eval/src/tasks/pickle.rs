//! One text out of a Python pickle, without running it.
//!
//! LiveCodeBench stores its private tests as base64 of zlib of a pickle of a JSON text. A pickle is a program that may
//! call anything; this reader knows the few instructions that a pickled text consists of and refuses all others.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;

/// Longest pickle that is unpacked.
const LONGEST: u64 = 1 << 30;

/// The text that base64 of zlib of a pickle holds; the error says what was expected and found.
pub(super) fn packed_text(packed: &str) -> Result<String, String> {
    let bytes = STANDARD
        .decode(packed.trim())
        .map_err(|error| format!("expected JSON or base64: {error}"))?;
    let mut pickle = Vec::new();
    ZlibDecoder::new(bytes.as_slice())
        .take(LONGEST + 1)
        .read_to_end(&mut pickle)
        .map_err(|error| format!("expected zlib: {error}"))?;
    if pickle.len() as u64 > LONGEST {
        return Err(format!("expected at most {LONGEST} bytes when unpacked"));
    }
    unpickle(&pickle)
}

/// The text that a pickle of one text (or of one bytes object in UTF-8) holds.
fn unpickle(pickle: &[u8]) -> Result<String, String> {
    let mut reader = Reader { pickle, at: 0 };
    let mut text: Option<&[u8]> = None;
    loop {
        let (place, code) = (reader.at, reader.byte()?);
        let length = match code {
            // PROTO, FRAME, MEMOIZE, BINPUT, LONG_BINPUT: bookkeeping.
            0x80 | b'q' => {
                reader.take(1)?;
                continue;
            }
            0x95 => {
                reader.take(8)?;
                continue;
            }
            0x94 => continue,
            b'r' => {
                reader.take(4)?;
                continue;
            }
            b'.' => break,
            // SHORT_BINUNICODE and SHORT_BINBYTES; BINUNICODE and BINBYTES; BINUNICODE8 and BINBYTES8.
            0x8c | b'C' => reader.number(1)?,
            b'X' | b'B' => reader.number(4)?,
            0x8d | 0x8e => reader.number(8)?,
            other => {
                return Err(format!(
                    "expected a pickle of one text, found instruction 0x{other:02x} at byte {place}; it is not run"
                ));
            }
        };
        let found = reader.take(usize::try_from(length).map_err(|_| "a text longer than memory")?)?;
        if text.replace(found).is_some() {
            return Err("expected a pickle of one text, found two".into());
        }
    }
    let text = text.ok_or("expected a pickle of one text, found none")?;
    String::from_utf8(text.to_vec()).map_err(|error| format!("expected UTF-8: {error}"))
}

struct Reader<'a> {
    pickle: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let part = end.and_then(|end| self.pickle.get(self.at..end));
        let part = part.ok_or_else(|| format!("the pickle ends in byte {}", self.pickle.len()))?;
        self.at += count;
        Ok(part)
    }

    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        let part = self.take(bytes)?;
        Ok(part
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// As Python 3 writes it: `pickle.dumps(text)`, protocol 4, compressed and encoded.
    pub(in crate::tasks) fn pack(text: &str) -> String {
        let mut pickle = b"\x80\x04\x95".to_vec();
        pickle.extend((text.len() as u64 + 7).to_le_bytes());
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
        pickle.extend(b"\x94.");
        pack_bytes(&pickle)
    }

    fn pack_bytes(pickle: &[u8]) -> String {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(pickle).unwrap();
        STANDARD.encode(zlib.finish().unwrap())
    }

    #[test]
    fn texts_of_every_protocol_are_read() {
        assert_eq!(packed_text(&pack("[{\"ü\": 1}]")).unwrap(), "[{\"ü\": 1}]");
        // From `pickle.dumps("hi", protocol=p)` of CPython 3.11, for p = 2, 3, 4 and 5.
        let pickles: [&[u8]; 4] = [
            b"\x80\x02X\x02\x00\x00\x00hiq\x00.",
            b"\x80\x03X\x02\x00\x00\x00hiq\x00.",
            b"\x80\x04\x95\x06\x00\x00\x00\x00\x00\x00\x00\x8c\x02hi\x94.",
            b"\x80\x05\x95\x06\x00\x00\x00\x00\x00\x00\x00\x8c\x02hi\x94.",
        ];
        for pickle in pickles {
            assert_eq!(packed_text(&pack_bytes(pickle)).unwrap(), "hi");
        }
    }

    #[test]
    fn a_pickle_that_would_call_something_is_refused() {
        // What `pickle.dumps` makes of an object whose __reduce__ is (os.system, ("id",)).
        let hostile = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.";
        let error = packed_text(&pack_bytes(hostile)).unwrap_err();
        assert!(error.contains("found two"), "{error}");
        let error = packed_text(&pack_bytes(b"cos\nsystem\n(S'id'\ntR.")).unwrap_err();
        assert!(
            error.contains("instruction 0x63") && error.contains("not run"),
            "{error}"
        );
    }

    #[test]
    fn broken_packing_is_named() {
        assert!(packed_text("%%%").unwrap_err().contains("base64"));
        assert!(
            packed_text(&STANDARD.encode("plain"))
                .unwrap_err()
                .contains("zlib")
        );
        assert!(
            packed_text(&pack_bytes(b"\x80\x04X\xff\xff\xff\xffhi"))
                .unwrap_err()
                .contains("ends")
        );
        assert!(
            packed_text(&pack_bytes(b"\x80\x04."))
                .unwrap_err()
                .contains("found none")
        );
        assert!(packed_text(&pack_bytes(b"")).unwrap_err().contains("ends"));
    }
}
