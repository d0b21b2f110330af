//! Control and servers together in one thread. One program: each test program costs the build as much as a crate.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // test code, helpers included

mod cooperation;
mod locks;
mod operations;
#[path = "../support/mod.rs"]
mod support;
mod tcp;
mod watches;
