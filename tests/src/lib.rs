//! Whole-system tests, and what they share: the built binary, processes that end with their test, waiting for a condition.
//!
//! # Layout
//!
//! | suite | where | target name | run alone |
//! |---|---|---|---|
//! | import rule, homes of unsafe code | `tests/imports.rs` | `imports` | `cargo test -p clovis-tests --test imports` |
//! | documents against the code | `tests/documents.rs` | `documents` | `cargo test -p clovis-tests --test documents` |
//! | whole cluster in one thread, from a seed | `tests/sim/main.rs` | `sim` | `./dev sim --seed S` |
//! | real processes on loopback | `tests/e2e/main.rs` | `e2e` | `cargo test -p clovis-tests --test e2e` |
//! | RDMA over the stand-in library | `tests/rdma/main.rs` | `rdma` | `cargo test -p clovis-tests --features rdma --test rdma` |
//!
//! Cargo finds `tests/NAME.rs` and `tests/NAME/main.rs` by itself: a suite needs no entry in Cargo.toml. `./dev test` runs
//! them by their names, each within its budget (docs/testing.md).
//!
//! # What a suite keeps to
//!
//! - The simulation takes its seeds from the environment, which `./dev sim` sets: `CLOVIS_SIM_SEED` (decimal or 0x hex),
//!   `CLOVIS_SIM_COUNT`, `CLOVIS_SIM_MINUTES`. With none of them it runs its short fixed set. A failing run prints its seed.
//! - End-to-end tests get the binary from [`binary::clovis`] or a whole [`cluster::RunningCluster`], start it through [`processes`], wait with [`wait::until`], and keep
//!   everything in a [`folder`]. Ports come from [`processes::free_port`]. Nothing is left behind, also when a test panics.
//! - A failing end-to-end test shows what its processes said: [`processes::Process`] keeps both streams in files in the folder.
//!
//! Must not know: anything below the command line in the end-to-end suite; any real clock or socket in the simulation.
#![forbid(unsafe_code)]

pub mod binary;
pub mod cluster;
pub mod content;
pub mod http;
pub mod place;
pub mod processes;
pub mod sim_bytes;
pub mod sim_cut;
pub mod sim_keys;
pub mod sim_linear;
pub mod sim_model;
pub mod sim_parity;
pub mod standin;
pub mod wait;

/// A temporary folder that goes away with the value. Named so that a leftover tells where it came from.
///
/// # Panics
/// If the system's folder for temporary files cannot be written: no test can run then.
#[must_use]
pub fn folder(test_name: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(&format!("clovis-{test_name}-"))
        .tempdir()
        .expect("the folder for temporary files can be written")
}
