//! One mapping: anonymous (address space reserved at once, memory taken by the kernel as it is touched), or of a whole file.
//!
//! Under Miri the memory comes from the Rust allocator, so that everything above runs there unchanged.

use std::fs::File;
use std::io;
#[cfg(not(miri))]
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

/// A huge page of x86-64 and of aarch64 with pages of 4 KiB.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Alignment of the mapping's first byte: one huge page, so that advice for huge pages can be followed from the start.
#[cfg(not(miri))]
const MAPPING_ALIGN: usize = HUGE_PAGE_BYTES;
#[cfg(miri)]
const MAPPING_ALIGN: usize = 4096;

/// Below this the mapping takes small pages: a huge page would cost more memory than the faults it saves.
#[cfg(not(miri))]
const HUGE_PAGES_FROM_BYTES: usize = 16 << 20;

/// Readable and writable memory, zeroed when first touched, owned until drop. Never moves.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// What was mapped, which is larger than what is used: the ends were needed for alignment.
    #[cfg(not(miri))]
    whole: (*mut libc::c_void, usize),
}

// SAFETY: `Mapping` is an address range; it hands out no reference itself. Whoever makes references from `base` has to argue
// that they do not alias (arena.rs does: one piece has one owner).
unsafe impl Send for Mapping {}
// SAFETY: as above: `&Mapping` gives out only the address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `bytes` of address space. Errors: what the kernel says (`ENOMEM` where address space is limited).
    #[cfg(not(miri))]
    pub(crate) fn reserve(bytes: usize) -> io::Result<Mapping> {
        let whole_bytes = bytes
            .checked_add(MAPPING_ALIGN)
            .filter(|total| *total > MAPPING_ALIGN)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: the call needs a length above 0 (checked) and, with MAP_ANONYMOUS and a null hint, touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                whole_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let skip = address.align_offset(MAPPING_ALIGN);
        // SAFETY: skip < MAPPING_ALIGN <= whole_bytes, so the result is inside the mapping.
        let base = unsafe { address.cast::<u8>().add(skip) };
        // A child of fork would copy the pages of transfers in flight, so it gets none of them. Advice: a kernel
        // that refuses it changes nothing that we promise.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(address, whole_bytes, libc::MADV_DONTFORK) };
        if bytes >= HUGE_PAGES_FROM_BYTES {
            // SAFETY: base..base+bytes is inside the mapping: skip + bytes <= whole_bytes.
            unsafe { libc::madvise(base.cast(), bytes, libc::MADV_HUGEPAGE) };
        }
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { base, bytes, whole: (address, whole_bytes) })
    }

    /// As [`Mapping::reserve`], in huge pages of 2 MiB, taken from the kernel's pool now: memory that never moves and is in one piece
    /// per huge page, as a device without an IOMMU needs it. `bytes` is a multiple of a huge page.
    ///
    /// Errors: `ENOMEM` if the pool (vm.nr_hugepages) has not as many free.
    #[cfg(not(miri))]
    pub(crate) fn reserve_huge(bytes: usize) -> io::Result<Mapping> {
        if bytes == 0 || !bytes.is_multiple_of(HUGE_PAGE_BYTES) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the call needs a length above 0 (checked) and, with MAP_ANONYMOUS and a null hint, touches no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
                -1,
                0,
            )
        };
        Mapping::of_whole(address, bytes)
    }

    /// The first `bytes` of `file`, shared: stores go to the file, and whoever reads it sees them. Its blocks are allocated now.
    ///
    /// Errors: what the kernel says (`ENOSPC`, `EBADF` for a file that is not open for writing, `EOPNOTSUPP`).
    #[cfg(not(miri))]
    pub(crate) fn of_file(file: &File, bytes: usize) -> io::Result<Mapping> {
        let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        // SAFETY: the call needs an open descriptor: `file` is borrowed here. It touches no memory.
        let error = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: the call needs a length above 0 (posix_fallocate refuses 0) and an open descriptor; with a null hint it touches
        // no memory of ours. The mapping outlives the descriptor by itself.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        Mapping::of_whole(address, bytes)
    }

    /// What mmap gave, all of it in use from its first byte on.
    ///
    /// Errors: what the kernel said, if `address` is `MAP_FAILED`: no other call may come in between.
    #[cfg(not(miri))]
    fn of_whole(address: *mut libc::c_void, bytes: usize) -> io::Result<Mapping> {
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // As in `reserve`: a child of fork gets none of these pages; of a file's, it would write over its parent's.
        // SAFETY: both callers give what they have just mapped with this length, and nothing else has it.
        unsafe { libc::madvise(address, bytes, libc::MADV_DONTFORK) };
        let base =
            NonNull::new(address.cast::<u8>()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { base, bytes, whole: (address, bytes) })
    }

    /// Miri maps no files.
    #[cfg(miri)]
    pub(crate) fn of_file(_file: &File, _bytes: usize) -> io::Result<Mapping> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Miri has no huge pages.
    #[cfg(miri)]
    pub(crate) fn reserve_huge(_bytes: usize) -> io::Result<Mapping> {
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    }

    #[cfg(miri)]
    pub(crate) fn reserve(bytes: usize) -> io::Result<Mapping> {
        let layout = std::alloc::Layout::from_size_align(bytes, MAPPING_ALIGN)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        assert!(bytes > 0);
        // SAFETY: the layout's size is not 0 (asserted).
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Mapping { base, bytes })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(not(miri))]
        // SAFETY: the range was mapped by `reserve` and is unmapped once, here. No buffer lives: each holds the owner of this
        // mapping. Pages that a device still has pinned stay with the kernel until it lets go.
        unsafe {
            libc::munmap(self.whole.0, self.whole.1);
        }
        #[cfg(miri)]
        // SAFETY: allocated in `reserve` with this same layout.
        unsafe {
            std::alloc::dealloc(
                self.base.as_ptr(),
                std::alloc::Layout::from_size_align_unchecked(self.bytes, MAPPING_ALIGN),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_given_or_refused_with_an_error_number() {
        assert_eq!(
            Mapping::reserve_huge(4096).err().and_then(|error| error.raw_os_error()),
            Some(libc::EINVAL)
        );
        match Mapping::reserve_huge(HUGE_PAGE_BYTES) {
            Ok(mapping) => {
                assert_eq!(mapping.base().as_ptr().align_offset(HUGE_PAGE_BYTES), 0);
                // SAFETY: the last byte is inside the mapping and nobody else holds it.
                unsafe { *mapping.base().as_ptr().add(mapping.bytes() - 1) = 1 };
            }
            // The usual machine has no pool of huge pages.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOMEM)),
        }
    }

    #[test]
    fn a_mapping_is_aligned_zeroed_and_writable_at_both_ends() {
        let mapping = Mapping::reserve(2 << 20).unwrap();
        assert_eq!(mapping.base().as_ptr().align_offset(4096), 0);
        // SAFETY: both bytes are inside the mapping and nobody else holds it.
        unsafe {
            let (first, last) = (mapping.base().as_ptr(), mapping.base().as_ptr().add(mapping.bytes() - 1));
            assert_eq!((*first, *last), (0, 0));
            *first = 7;
            *last = 9;
            assert_eq!((*first, *last), (7, 9));
        }
    }
}
