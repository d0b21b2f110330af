//! How often a null request allocates, client, server, handler and the callers' tasks together. None is wanted in steady state; what there is may only
//! get less: the task of the fom (its future, its waker), the fom, the handler's two futures, nodes of the maps of calls.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod null_request;

use null_request::ask;
use runtime::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn null_requests_allocate_no_more_than_what_is_known() {
    for depth in [1, 64] {
        let requests = 20_000;
        let (_, allocations) = ask(requests, depth, rpc::limits::ADDB_RECORDS);
        let each = allocations as f64 / (requests / 2) as f64;
        println!("{depth} at a time: {each:.2} allocations a request");
        assert!(each <= 9.01, "{depth} at a time: {each:.2} allocations a request");
    }
}
