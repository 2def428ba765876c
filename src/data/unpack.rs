//! Compressed text: gzip and Zstandard, unpacked as it is read.

use super::files::Packing;
use std::io::{self, BufReader, Read};

/// What is read of a compressed file at once.
const BUFFER_BYTES: usize = 64 << 10;

/// The text that `input` is, or is compressed from. Several gzip members, or Zstandard frames, are read as one text.
pub(super) fn unpacked(
    packing: Packing,
    input: Box<dyn Read + Send>,
) -> io::Result<Box<dyn Read + Send>> {
    let buffered = |input| BufReader::with_capacity(BUFFER_BYTES, input);
    Ok(match packing {
        Packing::None => input,
        Packing::Gzip => Box::new(Checked {
            inner: flate2::bufread::MultiGzDecoder::new(buffered(input)),
            what: "gzip",
            read: 0,
        }),
        Packing::Zstd => Box::new(Checked {
            inner: zstd::stream::read::Decoder::with_buffer(buffered(input))?,
            what: "Zstandard",
            read: 0,
        }),
    })
}

/// Tells damage to the compressed data apart from what the operating system has to say.
struct Checked<R> {
    inner: R,
    what: &'static str,
    /// Bytes of text that came out.
    read: u64,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let damaged = |why: String| {
            let what = format!("its {} data {why}", self.what);
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        match self.inner.read(into) {
            Ok(n) => {
                self.read += n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(format!(
                "ends in the middle, after {} bytes of text: the file is cut short",
                self.read
            ))),
            Err(e) if e.raw_os_error().is_some() || e.kind() == io::ErrorKind::Interrupted => {
                Err(e)
            }
            Err(e) => Err(damaged(format!(
                "is damaged after {} bytes of text ({e})",
                self.read
            ))),
        }
    }
}
