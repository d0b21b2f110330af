//! 64-bit words that one thread writes and anybody may read at any time: in memory of the process, or in a file that keeps them when
//! the process dies.
//!
//! In a file they are a shared mapping: a store is a store to the kernel's page cache, no system call, and what was stored when the
//! process was killed is in the file. A power cut or a crash of the kernel may take it back. Blocks are allocated when it is made, so that a
//! full file system is an error then and no signal later. Left over: whoever cuts the file short while it is mapped ends the process
//! with SIGBUS; a lock on it (`File::try_lock`) tells those who ask that it is in use. Not under Miri, which maps no files.
//!
//! **Invariant**: the memory is reached through atomics only, so that a reader elsewhere is never a data race.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;

use crate::mapping::Mapping;

/// Words of fixed number, all zero at first.
pub struct Words {
    mapping: Mapping,
    count: usize,
    /// Keeps its lock until the words go.
    _file: Option<File>,
}

impl Words {
    /// `count` words in memory of this process; pages are taken as they are touched.
    ///
    /// # Errors
    /// What the kernel says: no address space, or `count` is 0.
    pub fn anonymous(count: usize) -> io::Result<Words> {
        Ok(Words { mapping: Mapping::reserve(bytes_of(count)?)?, count, _file: None })
    }

    /// `count` words in `file`, opened for reading and writing, whose content goes. The file is kept open as long as the words live.
    ///
    /// # Errors
    /// The file system is full, or cannot allocate or map.
    pub fn in_file(file: File, count: usize) -> io::Result<Words> {
        let bytes = bytes_of(count)?;
        file.set_len(0)?;
        let mapping = Mapping::of_file(&file, bytes)?;
        Ok(Words { mapping, count, _file: Some(file) })
    }

    /// The words.
    #[must_use]
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: (1) the mapping is `count * 8` bytes or more, page-aligned, readable and writable, and lives as long as `self`;
        // (2) its bytes are initialised: the kernel gives zeros; (3) every value is a valid AtomicU64; (4) nobody has a `&mut` to
        // them: this is the only way in, and other processes' stores are to memory that is only reached by atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.base().as_ptr().cast::<AtomicU64>(), self.count) }
    }
}

fn bytes_of(count: usize) -> io::Result<usize> {
    count
        .checked_mul(size_of::<AtomicU64>())
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self._file.is_some() { "a file" } else { "memory" };
        write!(f, "{} words in {place}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_of_memory_begin_at_zero_and_keep_what_is_stored() {
        let words = Words::anonymous(1000).unwrap();
        let slice = words.as_slice();
        assert_eq!(slice.len(), 1000);
        assert!(slice.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        slice[999].store(7, Ordering::Relaxed);
        assert_eq!(words.as_slice()[999].load(Ordering::Relaxed), 7);
        assert!(Words::anonymous(0).is_err());
        assert!(Words::anonymous(usize::MAX).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri maps no files")]
    fn words_of_a_file_are_in_it_without_a_system_call() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words");
        std::fs::write(&path, b"what was there goes").unwrap();
        let file = || File::options().read(true).write(true).open(&path).unwrap();
        let words = Words::in_file(file(), 600).unwrap();
        words.as_slice()[1].store(0x0102_0304_u64.to_le(), Ordering::Relaxed);
        words.as_slice()[599].store(9_u64.to_le(), Ordering::Relaxed);
        let read = std::fs::read(&path).unwrap();
        assert_eq!((read.len(), &read[..12]), (4800, &[0, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1][..]));
        assert_eq!(read[4792], 9);
        drop(words);
        assert_eq!(std::fs::read(&path).unwrap(), read, "what was stored outlives the mapping");
        assert!(Words::in_file(File::open(&path).unwrap(), 1).is_err(), "a file that is only read");
    }
}
