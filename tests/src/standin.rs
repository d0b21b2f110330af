//! The stand-in libibverbs and librdmacm (`hw-ci/standin`), built with cc and put in front of programs of a test by `LD_LIBRARY_PATH`.
//!
//! Headers come from the package rdma-mummy-sys, which carries rdma-core's: nothing has to be installed but a C compiler.
//! Programs under test have to be built with the feature `rdma`, which needs cmake and libclang: [`why_not`] says what is missing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cargo_metadata::{CargoOpt, MetadataCommand};

use crate::place::{Build, root};

/// The environment variable that tells the stand-in what to lack and where to fail (`hw-ci/standin/config.c`).
pub const WORDS: &str = "CLOVIS_STANDIN";

/// Why RDMA cannot be tried here: the tests were built without it. `None` where it can.
#[must_use]
pub fn why_not() -> Option<&'static str> {
    if cfg!(feature = "rdma") {
        return None;
    }
    Some("built without RDMA: --features clovis-tests/rdma, which needs cmake and libclang")
}

/// The folder with `libibverbs.so.1` and `librdmacm.so.1`. Built at the first call of a process.
///
/// # Panics
/// If it cannot be built, with what cc said.
#[must_use]
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build)
}

fn headers() -> PathBuf {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .features(CargoOpt::AllFeatures)
        .exec()
        .expect("cargo metadata answers");
    let package = metadata.packages.iter().find(|package| package.name.as_str() == "rdma-mummy-sys");
    let manifest = &package.expect("the feature rdma stands on rdma-mummy-sys").manifest_path;
    manifest.parent().expect("a manifest lies in a folder").as_std_path().join("rdma-core-mummy/include")
}

fn build() -> PathBuf {
    // A folder of this process: two suites may build at once. What it holds is small, and the next run replaces it.
    let folder = Build::of_this_test().profile_folder.join("standin");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let sources: Vec<PathBuf> = std::fs::read_dir(root().join("hw-ci/standin"))
        .expect("hw-ci/standin is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("c")))
        .collect();
    let built = folder.join(format!("libibverbs.{}", std::process::id()));
    compile(&sources, &built, &headers());
    // Renamed whole, so that another suite that runs at the same time never opens half a library.
    std::fs::rename(&built, folder.join("libibverbs.so.1")).expect("the target folder can be written");
    let link = folder.join("librdmacm.so.1");
    if !link.exists() {
        // One file: both names are one library with one state. Another suite may have been first.
        let made = std::os::unix::fs::symlink("libibverbs.so.1", &link);
        assert!(made.is_ok() || link.exists(), "the link librdmacm.so.1: {made:?}");
    }
    folder
}

/// Builds a shared library out of C files.
///
/// # Panics
/// If cc refuses it, with what it said.
pub fn compile(sources: &[PathBuf], into: &Path, include: &Path) {
    let output = Command::new("cc")
        .args(["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"])
        .arg("-I")
        .arg(include)
        .args(sources)
        .arg("-o")
        .arg(into)
        .args(["-lpthread", "-ldl"])
        .output()
        .expect("a C compiler is there: it links Rust");
    assert!(output.status.success(), "cc:\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A command that finds the stand-in instead of rdma-core. `words`: see `hw-ci/standin/config.c`.
#[must_use]
pub fn command(program: &Path, words: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", libraries())
        .env("CLOVIS_REQUIRE_RDMA", "1")
        .env("CLOVIS_RDMA_ADDRESS", "127.0.0.1")
        .env_remove("CLOVIS_RDMA_WITHOUT")
        .env(WORDS, words);
    command
}

/// A test program of the verbs edge or of the net, with RDMA. `./dev test` has built it before.
///
/// # Panics
/// If it cannot be built, with what cargo said.
#[must_use]
pub fn test_program(package: &str, target: &str) -> PathBuf {
    let output = Build::of_this_test()
        .cargo("test")
        .args(["--no-run", "--lib", "--test", "device", "--message-format=json-render-diagnostics"])
        .output()
        .expect("cargo can be started");
    assert!(
        output.status.success(),
        "{package} does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8_lossy(&output.stdout);
    let found =
        lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).find(|line| {
            line["reason"] == "compiler-artifact"
                && line["profile"]["test"] == true
                && line["target"]["name"] == target
                && line["package_id"].as_str().is_some_and(|id| id.contains(package))
        });
    let path = found.and_then(|line| line["executable"].as_str().map(PathBuf::from));
    path.unwrap_or_else(|| panic!("cargo built no test {target} of {package}"))
}
