//! One installed tree for all tests of a run: `./dev install` with the profile of the tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use clovis_tests::place::{Build, outside_of_cargo, root};
use clovis_tests::{binary, processes};

/// Longest that the installation may take. After ./dev test has built everything, only linking and copying are left; the suite has its own budget.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// The prefix of the tree, made at the first call. It lies beside the test's binary and is made anew by each run.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let _built = binary::clovis();
        let Build { target_folder, profile_folder, profile } = Build::of_this_test();
        let prefix = profile_folder.join("ffi-prefix");
        let _absent = std::fs::remove_dir_all(&prefix);
        let folder = clovis_tests::folder("install");
        let mut command = Command::new("./dev");
        outside_of_cargo(&mut command)
            .arg("install")
            .arg(&prefix)
            .current_dir(root())
            .env("CLOVIS_INSTALL_PROFILE", profile)
            .env("CARGO_TARGET_DIR", target_folder);
        let _ = processes::run(&mut command, folder.path(), INSTALL_LIMIT).succeeded();
        prefix
    })
}

/// `-I` of the tree, as programs for the old library had it.
pub fn include_flag() -> String {
    format!("-I{}", prefix().join("include/mero").display())
}

/// `-L` of the tree, and where its programs find the library.
pub fn library_flags() -> [String; 2] {
    let lib = prefix().join("lib");
    [format!("-L{}", lib.display()), format!("-Wl,-rpath,{}", lib.display())]
}

#[test]
fn the_tree_is_complete() {
    let prefix = prefix();
    for file in [
        "bin/clovis",
        "bin/c0cp",
        "bin/c0cat",
        "bin/c0touch",
        "bin/c0rm",
        "bin/c0unlink",
        "lib/libclovis.so",
        "lib/libclovis.so.1",
        "lib/libmero.so",
        "lib/libmotr.so",
        "lib/pkgconfig/clovis.pc",
        "lib/pkgconfig/mero.pc",
        "lib/pkgconfig/motr.pc",
        "include/mero/clovis/clovis.h",
        "include/mero/config.h",
        "include/motr/motr/client.h",
        "share/man/man1/c0cp.1",
        "share/man/man1/c0cat.1",
        "share/man/man1/c0touch.1",
        "share/man/man1/c0rm.1",
        "share/man/man1/c0unlink.1",
        "share/man/man1/clovis.1",
        "share/man/man1/clovis-device-detach.1",
        "share/bash-completion/completions/clovis",
        "share/zsh/site-functions/_clovis",
        "share/fish/vendor_completions.d/clovis.fish",
        "lib/systemd/system/clovis-control@.service",
        "lib/systemd/system/clovis-server@.service",
        "share/doc/clovis/MATRIX.md",
    ] {
        assert!(prefix.join(file).exists(), "{file} is missing below {}", prefix.display());
    }
    // The paths inside are those of the prefix, and the library is found through each name.
    for name in ["clovis", "mero", "motr"] {
        let text = std::fs::read_to_string(prefix.join(format!("lib/pkgconfig/{name}.pc"))).unwrap();
        assert!(text.contains(&format!("prefix={}", prefix.display())), "{name}.pc: {text}");
        assert!(text.contains(&format!("-l{name}")), "{name}.pc: {text}");
    }
    let folder = clovis_tests::folder("help");
    for program in ["c0cp", "c0cat", "c0touch", "c0rm"] {
        let mut command = Command::new(prefix.join("bin").join(program));
        command.arg("--help");
        let help = processes::run(&mut command, folder.path(), Duration::from_secs(20)).succeeded();
        assert!(help.text().contains("--profile"), "{program} --help: {}", help.text());
    }
}
