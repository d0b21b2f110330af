//! The law of memory (docs/disk.md#costs, constants in `limits.rs`), measured: what a device of some size takes when it is opened, and what each stob adds.
//!
//! Bytes are those that this thread asked its allocator for and did not give back; buffers come from the arena, which counts its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // a test's failure is its panic

mod bench;

use base::checksum::crc32c;
use base::units::{BLOCK_BYTES, MIB};
use base::{BlockExtent, Fid, FidType, Instant};
use runtime::{Arena, CountingAllocator, allocated_bytes};
use spdk_stob::limits::{
    DOMAIN_BUFFER_BYTES_MAX, DOMAIN_MEMORY_BYTES_MAX, EXTENT_MEMORY_BYTES_MAX, FREE_SPACE_BYTES_PER_TIB,
    STOB_MEMORY_BYTES_MAX, TRACE_EVENTS_MAX,
};
use spdk_stob::{Backend, BlockOp, Domain, MemDevice, OpenOptions, StobId, TreeId, WritePiece, open_device};

use crate::bench::{Bench, PARAMS};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const TIB: u64 = 1 << 40;

fn stob(number: u64) -> StobId {
    StobId { fid: Fid::new(FidType::Component, 0, number), generation: 0 }
}

/// A device all of whose memory is there already, so that what grows later is not the device.
fn whole_device(arena: &Arena, size_blocks: u64) -> MemDevice {
    let mut device = MemDevice::new(size_blocks);
    let block = arena.try_alloc(4096).unwrap().freeze();
    let mut done = Vec::new();
    for start_block in (0..size_blocks).step_by(64) {
        let parts = [block.clone()].into_iter().collect();
        assert!(device.try_submit(BlockOp::Write { start_block, parts }, 0).is_ok());
        device.poll(Instant::ZERO, &mut done);
        done.clear();
    }
    device
}

#[test]
fn an_opened_device_takes_what_the_law_says_for_its_size() {
    for tib_quarters in [1, 4] {
        let mut bench = Bench::new("memory");
        let handle = bench.handle();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(tib_quarters * TIB / 4).unwrap(); // sparse
        let device = open_device(file.path(), OpenOptions::default()).unwrap();
        let (before, buffers) = (allocated_bytes(), bench.arena.in_use_bytes());
        let domain = bench.run(Domain::format(&handle, device, PARAMS)).unwrap();
        let bytes = allocated_bytes().wrapping_sub(before);
        let law = FREE_SPACE_BYTES_PER_TIB * tib_quarters / 4 + DOMAIN_MEMORY_BYTES_MAX;
        println!("{} GiB: {bytes} bytes of {law}", 256 * tib_quarters);
        assert!(bytes <= law, "{bytes} bytes for {tib_quarters} quarters of a TiB, and the law says {law}");
        assert!(bytes >= law / 4 * 3, "the law is far from what is taken: {bytes} of {law}");
        let buffer_bytes = bench.arena.in_use_bytes() - buffers;
        assert!(buffer_bytes <= DOMAIN_BUFFER_BYTES_MAX, "{buffer_bytes} bytes of buffers");
        bench.run(domain.close()).unwrap();
        assert_eq!(bench.arena.in_use_bytes(), buffers, "a closed domain keeps no buffer");
    }
}

#[test]
fn each_stob_takes_what_the_law_says_and_reading_it_nothing() {
    for count in [1, 10, 1000, 30_000] {
        let mut bench = Bench::new("memory");
        let handle = bench.handle();
        let device = Box::new(whole_device(&bench.arena, 512 * MIB / BLOCK_BYTES));
        let arena = bench.arena.clone();
        let (created, written, read) = bench.run(async {
            let domain = Domain::format(&handle, device, PARAMS).await.unwrap();
            // What grows only once: the trace, the queues, the first page.
            for _ in 0..TRACE_EVENTS_MAX {
                let mut transaction = domain.begin();
                transaction.tree_put(TreeId(1), b"key", b"value");
                domain.commit(transaction).await.unwrap();
            }
            let mut block = arena.alloc(4096).await;
            block.fill(9);
            let (data, checksum) = (block.freeze(), crc32c(&[9; 4096]));
            for _ in 0..500 {
                let piece = WritePiece { start_block: 0, data: data.clone() };
                domain.write(stob(u64::MAX >> 8), vec![piece], &[checksum]).await.unwrap();
            }
            let before = allocated_bytes();
            for first in (0..count).step_by(1000) {
                let mut transaction = domain.begin();
                (first..(first + 1000).min(count)).for_each(|number| {
                    transaction.stob_create(stob(number));
                });
                domain.commit(transaction).await.unwrap();
            }
            let created = allocated_bytes().wrapping_sub(before);
            for number in 0..count {
                let piece = WritePiece { start_block: number, data: data.clone() };
                domain.write(stob(number), vec![piece], &[checksum]).await.unwrap();
            }
            let written = allocated_bytes().wrapping_sub(before);
            for number in 0..count {
                domain.read(stob(number), &[BlockExtent { start: number, count: 1 }]).await.unwrap();
            }
            let read = allocated_bytes().wrapping_sub(before);
            assert_eq!(domain.info().extents, count + 1);
            domain.close().await.unwrap();
            (created, written, read)
        });
        println!(
            "{count} stobs: {created} bytes created, {written} with an extent each, {read} after reading"
        );
        let slack = 4096; // nodes and queues that are begun
        let law = STOB_MEMORY_BYTES_MAX * count;
        assert!(created <= law + slack, "{count} stobs take {created} bytes, and the law says {law}");
        let law = (STOB_MEMORY_BYTES_MAX + EXTENT_MEMORY_BYTES_MAX) * count;
        assert!(
            written <= law + slack,
            "{count} stobs of an extent take {written} bytes, and the law says {law}"
        );
        assert!(read <= written + slack, "reading {count} stobs keeps {} bytes", read - written);
    }
}
