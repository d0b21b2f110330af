//! Finds SPDK by pkg-config when feature `spdk` is on, says how to link it, and checks our declarations against its headers.
//!
//! Without SPDK the crate still checks (`cargo check --features spdk`); only linking a program then fails, after a warning
//! that says why. PKG_CONFIG_PATH is the only knob. SPDK and DPDK are linked statically and whole: their drivers register
//! themselves by constructors, which a linker otherwise drops, and static libraries need no run path.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries that we call, and what they need of the system.
const PACKAGES: [&str; 3] = ["spdk_nvme", "spdk_env_dpdk", "spdk_syslibs"];
/// Where DPDK was installed apart from SPDK, this one knows.
const DPDK: &str = "libdpdk";

fn pkg_config(arguments: &[&str]) -> Option<Vec<String>> {
    let program = std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.split_whitespace().map(str::to_owned).collect())
}

/// Compiles `src/layout_check.c`, which is nothing but assertions, against the headers found.
fn check_layout(flags: &[String]) -> Result<(), String> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-fsyntax-only", "-Werror=incompatible-pointer-types", "src/layout_check.c"])
        .args(flags)
        .output()
        .map_err(|error| format!("the C compiler did not run: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn link(tokens: &[String]) {
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut named = BTreeSet::new();
    for token in tokens {
        if let Some(folder) = token.strip_prefix("-L") {
            folders.push(folder.into());
            println!("cargo:rustc-link-search=native={folder}");
        } else if token.ends_with(".a") && !token.starts_with('-') {
            // A library by its path: ISA-L, in the folder where SPDK was built.
            let path = Path::new(token);
            let name =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("lib"));
            if let (Some(folder), Some(name)) = (path.parent(), name) {
                println!("cargo:rustc-link-search=native={}", folder.display());
                println!("cargo:rustc-link-lib=static:-bundle={name}");
            }
        } else if let Some(name) = token.strip_prefix("-l") {
            if !named.insert(name.to_owned()) {
                continue;
            }
            let is_driver_library = name.starts_with("spdk_") || name.starts_with("rte_");
            let is_static = folders.iter().any(|folder| folder.join(format!("lib{name}.a")).exists());
            match (is_driver_library, is_static) {
                (true, _) => println!("cargo:rustc-link-lib=static:+whole-archive,-bundle={name}"),
                (false, true) => println!("cargo:rustc-link-lib=static:-bundle={name}"),
                (false, false) => println!("cargo:rustc-link-lib=dylib={name}"),
            }
        }
    }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/layout_check.c");
    for name in ["PKG_CONFIG", "PKG_CONFIG_PATH", "CC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if std::env::var_os("CARGO_FEATURE_SPDK").is_none() {
        return;
    }
    let all = |first: &'static str| {
        let mut arguments = vec![first];
        arguments.extend(PACKAGES);
        pkg_config(&arguments)
    };
    let (Some(flags), Some(mut tokens)) = (all("--cflags"), all("--libs")) else {
        println!(
            "cargo:warning=feature `spdk` is on and pkg-config finds no SPDK ({}): this can be checked, not linked. \
             hw-ci/README.md says what an installation must offer",
            PACKAGES.join(", ")
        );
        return;
    };
    if let Some(folder) = pkg_config(&["--variable=libdir", DPDK]).and_then(|words| words.into_iter().next())
    {
        tokens.insert(0, format!("-L{folder}"));
    }
    if let Err(message) = check_layout(&flags) {
        // Wrong layouts would corrupt memory: stop here.
        eprintln!("this SPDK does not fit the declarations in spdk-stob/sys/src/api.rs:\n{message}");
        std::process::exit(1);
    }
    link(&tokens);
}
