//! Where a test stands: the repository it was built from, and the folder that cargo built it into.

use std::path::{Path, PathBuf};

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
}
