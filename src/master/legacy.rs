//! What outlives even a master that is killed: ticket keys, generation, last reload, who still drains. In a file of memory
//! that the supervisor keeps. Written by `store`, read at start. A write that is cut off leaves the one before.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::status::LastReload;
use crate::handoff::memory_file;

/// Begins each half; the digit is the version of what comes before the document.
const MAGIC: &[u8; 8] = b"PRXKEPT1";
/// The file has two halves that are written in turn.
const HALF: usize = 1 << 20;
/// Magic, sequence and length; the digest follows.
const HEAD: usize = 24;
const DIGEST: usize = 32;

/// What a successor should know. New fields have a default: an older program leaves them out.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Legacy {
    pub(super) generation: u64,
    /// Newest first.
    pub(super) ticket_keys: Vec<Vec<u8>>,
    /// When the newest was made, in seconds since 1970.
    pub(super) tickets_made: u64,
    pub(super) last_reload: Option<LastReload>,
    /// Process and gauge lane of every worker.
    pub(super) workers: Vec<(u32, u32)>,
}

/// The file, and how often it was written.
pub(super) struct LegacyFile {
    pub(super) file: File,
    sequence: u64,
    last: Option<Legacy>,
}

impl LegacyFile {
    pub(super) fn create() -> io::Result<Self> {
        let file = memory_file("proxy-kept")?;
        file.set_len(2 * HALF as u64)?;
        Ok(Self { file, sequence: 0, last: None })
    }

    /// A file that somebody kept for us; none where it is something else.
    pub(super) fn adopt(file: File) -> Option<(Self, Legacy)> {
        let halves = [0, HALF].into_iter().filter_map(|start| {
            let mut half = vec![0; HALF];
            file.read_exact_at(&mut half, start as u64).ok()?;
            decode(&half)
        });
        let (sequence, legacy) = halves.max_by_key(|(sequence, _)| *sequence)?;
        Some((Self { file, sequence, last: Some(legacy.clone()) }, legacy))
    }

    /// Writes what has changed, beside what was written before.
    pub(super) fn write(&mut self, legacy: Legacy) -> io::Result<()> {
        if self.last.as_ref() == Some(&legacy) {
            return Ok(());
        }
        let sequence = self.sequence + 1;
        let half = encode(sequence, &legacy)?;
        self.file.write_all_at(&half, if sequence.is_multiple_of(2) { 0 } else { HALF as u64 })?;
        (self.sequence, self.last) = (sequence, Some(legacy));
        Ok(())
    }
}

fn encode(sequence: u64, legacy: &Legacy) -> io::Result<Vec<u8>> {
    let document = serde_json::to_vec(legacy)?;
    if document.len() > HALF - HEAD - DIGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut half = MAGIC.to_vec();
    half.extend(sequence.to_ne_bytes());
    half.extend((document.len() as u64).to_ne_bytes());
    half.extend(document);
    let sum = digest(&SHA256, &half);
    half.splice(HEAD..HEAD, sum.as_ref().iter().copied());
    Ok(half)
}

/// Sequence and content of one half, if it was written to its end.
fn decode(half: &[u8]) -> Option<(u64, Legacy)> {
    let (head, rest) = half.split_at_checked(HEAD)?;
    let (sum, rest) = rest.split_at_checked(DIGEST)?;
    let number = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let document = rest.get(..usize::try_from(number(16)?).ok()?)?;
    let whole = digest(&SHA256, &[head, document].concat());
    if !head.starts_with(MAGIC) || whole.as_ref() != sum {
        return None;
    }
    Some((number(8)?, serde_json::from_slice(document).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(generation: u64) -> Legacy {
        Legacy { generation, ticket_keys: vec![vec![7; 80]], tickets_made: generation, ..Legacy::default() }
    }

    #[test]
    fn the_last_whole_write_counts() {
        let mut kept = LegacyFile::create().unwrap();
        assert!(LegacyFile::adopt(kept.file.try_clone().unwrap()).is_none(), "nothing was written");
        for generation in 1..=5 {
            kept.write(of(generation)).unwrap();
            kept.write(of(generation)).unwrap();
            let (adopted, legacy) = LegacyFile::adopt(kept.file.try_clone().unwrap()).unwrap();
            assert_eq!((adopted.sequence, legacy.generation), (generation, generation));
        }
        // The sixth is cut off after each of its first bytes.
        let (half, before) = (encode(6, &of(6)).unwrap(), encode(4, &of(4)).unwrap());
        let last = half.iter().zip(&before).rposition(|(new, old)| new != old).unwrap();
        for cut in 0..=last {
            kept.file.write_all_at(&half[..cut], 0).unwrap();
            let (_, legacy) = LegacyFile::adopt(kept.file.try_clone().unwrap()).unwrap();
            assert_eq!(legacy.generation, 5, "cut after {cut} bytes");
        }
        let (mut adopted, _) = LegacyFile::adopt(kept.file.try_clone().unwrap()).unwrap();
        adopted.write(of(6)).unwrap();
        assert_eq!(LegacyFile::adopt(kept.file).unwrap().1.generation, 6);
    }

    #[test]
    fn something_else_is_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert!(LegacyFile::adopt(file.try_clone().unwrap()).is_none());
        file.set_len(2 * HALF as u64).unwrap();
        assert!(LegacyFile::adopt(file.try_clone().unwrap()).is_none());
        let mut half = encode(1, &of(1)).unwrap();
        half[16..24].copy_from_slice(&u64::MAX.to_ne_bytes());
        file.write_all_at(&half, 0).unwrap();
        assert!(LegacyFile::adopt(file).is_none());
    }
}
