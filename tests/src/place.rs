//! Where a test stands: the repository it was built from, and the folder that cargo built it into.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the checkout.
///
/// # Panics
/// Never: the tests crate lies one folder below it.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies one folder below the root")
}

/// What a test's own path, TARGET/FOLDER/deps/SUITE-HASH, says of the build that it is part of.
#[derive(Clone, Debug)]
pub struct Build {
    /// TARGET: what cargo's `--target-dir` takes.
    pub target_folder: PathBuf,
    /// TARGET/FOLDER, where the binaries, and `examples`, of the same profile are.
    pub profile_folder: PathBuf,
    /// The profile by the name that cargo's `--profile` takes.
    pub profile: String,
}

impl Build {
    /// That of the running test.
    ///
    /// # Panics
    /// In a program that cargo did not build as a test.
    #[must_use]
    pub fn of_this_test() -> Build {
        let own = std::env::current_exe().expect("a running program has a path");
        let profile_folder = own.ancestors().nth(2).expect("a test runs from TARGET/PROFILE/deps").to_owned();
        let target_folder =
            profile_folder.parent().expect("a profile's folder lies in the target folder").to_owned();
        // The one profile whose folder has another name.
        let profile = match profile_folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        Build { profile: profile.to_owned(), target_folder, profile_folder }
    }

    /// `cargo WORD` on the whole workspace, into this build and with its features: what `./dev test` has built is not built again.
    #[must_use]
    pub fn cargo(&self, word: &str) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        outside_of_cargo(&mut command)
            .args([word, "--workspace", "--profile", &self.profile, "--target-dir"])
            .arg(&self.target_folder)
            .args(if cfg!(feature = "rdma") { &["--features", "clovis-tests/rdma"][..] } else { &[] })
            .current_dir(root());
        command
    }
}

/// Takes away what `cargo test` tells its tests of their own package. A cargo started with it would take the build scripts that read
/// the same variables (ring's) for changed, and build all that depends on them again; so would the next `cargo test`.
pub fn outside_of_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name == "CARGO_CRATE_NAME"
        });
        if told {
            command.env_remove(name);
        }
    }
    command
}
