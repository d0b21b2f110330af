//! How often a null request allocates, client, server, handler and the callers' tasks together: not at all, in steady state. What is grown once (maps,
//! queues, the tasks of foms) is grown before the count begins.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod null_request;

use null_request::ask;
use runtime::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn null_requests_allocate_nothing() {
    for depth in [1, 64] {
        let requests = 20_000;
        let (_, allocations) = ask(requests, depth, rpc::limits::ADDB_RECORDS);
        let each = allocations as f64 / (requests / 2) as f64;
        println!("{depth} at a time: {each:.2} allocations a request");
        assert!(each < 0.01, "{depth} at a time: {each:.2} allocations a request");
    }
}
