//! Finds the `clovis` binary that belongs to the running test, and builds it once if it is not up to date.
//!
//! Cargo tells a test only about binaries of its own package, so this asks cargo to build the other package into the folder
//! that the test itself was built into, with the same profile and the same features as `./dev test` (those of the whole
//! workspace), so that nothing is compiled twice. `CLOVIS_BINARY` names another one, for example an
//! installed release.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::place::Build;

/// Path of the binary. Built at the first call of a process; the others wait for it.
///
/// # Panics
/// If it cannot be built, with what cargo said; or if `CLOVIS_BINARY` names no file.
#[must_use]
pub fn clovis() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CLOVIS_BINARY") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "CLOVIS_BINARY names {}, which is no file", path.display());
            path
        }
        None => build(),
    })
}

fn build() -> PathBuf {
    let build = Build::of_this_test();
    let output = build.cargo("build").args(["--bin", "clovis"]).output().expect("cargo can be started");
    assert!(
        output.status.success(),
        "the binary clovis cannot be built:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    build.profile_folder.join("clovis")
}
