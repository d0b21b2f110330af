//! The headers by themselves: every language they promise, symbols, sizes and values.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clovis_tests::place::root;
use clovis_tests::processes;

use crate::installed::{self, include_flag, library_flags, prefix};
use crate::tools::{compile, have};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-fsyntax-only"];

fn headers(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("include can be listed")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            headers(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "h") {
            found.push(path);
        }
    }
}

/// All headers, relative to the include folder.
fn all() -> Vec<String> {
    let include = root().join("ffi/include");
    let mut found = Vec::new();
    headers(&include, &mut found);
    found.iter().map(|path| path.strip_prefix(&include).expect("below").display().to_string()).collect()
}

#[test]
fn every_header_is_accepted_alone_and_with_the_others() {
    let folder = clovis_tests::folder("headers");
    let include = include_flag();
    let (motr, clovis): (Vec<String>, Vec<String>) =
        all().into_iter().partition(|name| name.starts_with("motr/"));
    assert!(clovis.len() > 40 && motr.len() > 3, "headers are missing: {clovis:?} {motr:?}");
    let lines =
        |names: &[String]| names.iter().map(|name| format!("#include \"{name}\"\n")).collect::<String>();
    // Each alone, and all in either order (each twice: guards).
    let mut sources: Vec<(String, String)> = clovis
        .iter()
        .chain(&motr)
        .map(|name| (name.replace('/', "_"), lines(std::slice::from_ref(name))))
        .collect();
    let reversed: Vec<String> = clovis.iter().rev().cloned().collect();
    let everything = lines(&clovis) + &lines(&reversed);
    sources.push(("everything".to_owned(), everything.clone()));
    sources.push(("later".to_owned(), lines(&motr) + &everything));
    for (name, text) in &sources {
        std::fs::write(
            folder.path().join(format!("{name}.c")),
            format!("{text}int main(void) {{ return 0; }}\n"),
        )
        .unwrap();
        let text = format!("extern \"C\" {{\n{text}}}\nint main() {{ return 0; }}\n");
        std::fs::write(folder.path().join(format!("{name}.cc")), text).unwrap();
    }
    let files = |ending: &str, names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| folder.path().join(format!("{name}.{ending}")).display().to_string())
            .collect()
    };
    let alone: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    let whole = ["everything", "later"];
    let check = |compiler: &str, standards: &[&str], names: &[&str], ending: &str, more: &[&str]| {
        for standard in standards {
            let mut arguments: Vec<String> = STRICT.iter().map(|flag| (*flag).to_owned()).collect();
            arguments.extend([format!("-std={standard}"), include.clone()]);
            arguments.extend(more.iter().map(|flag| (*flag).to_owned()));
            arguments.extend(files(ending, names));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            compile(compiler, &arguments, folder.path());
        }
    };
    let known = [
        "-D_REENTRANT",
        "-D_GNU_SOURCE",
        "-DM0_INTERNAL=",
        "-DM0_EXTERN=extern",
        "-include",
        "config.h",
        "-fno-common",
        "-Wno-attributes",
    ];
    check("gcc", &["c99"], &alone, "c", &["-pedantic"]);
    check("gcc", &["c11", "c17", "gnu99", "gnu17"], &whole, "c", &[]);
    check("gcc", &["gnu99", "gnu17"], &whole, "c", &known);
    if have("g++", "headers in C++") {
        check("g++", &["c++11"], &alone, "cc", &[]);
        check("g++", &["c++17", "c++20", "gnu++14"], &whole, "cc", &known);
    }
    if have("clang", "headers in clang") {
        check("clang", &["c99"], &alone, "c", &[]);
        check("clang", &["c11", "c17"], &whole, "c", &known);
        check("clang++", &["c++11", "c++20"], &whole, "cc", &[]);
    }
}

#[test]
fn exported_symbols_headers_and_matrix_are_the_same() {
    let folder = clovis_tests::folder("symbols");
    let limit = Duration::from_secs(60);
    let declared =
        processes::run(&mut Command::new(root().join("ffi/symbols.sh")), folder.path(), limit).succeeded();
    let declared: BTreeSet<String> = declared.text().lines().map(str::to_owned).collect();
    let mut command = Command::new("nm");
    command.args(["--dynamic", "--defined-only"]).arg(prefix().join("lib/libclovis.so.1"));
    let exported = processes::run(&mut command, folder.path(), limit).succeeded();
    let mut names = BTreeSet::new();
    for line in exported.text().lines() {
        let symbol = line.split_whitespace().last().expect("nm prints names");
        if symbol == "CLOVIS_1.0" {
            continue;
        }
        let (name, version) = symbol.split_once("@@").unwrap_or((symbol, "none"));
        assert_eq!(version, "CLOVIS_1.0", "{name} has another version");
        names.insert(name.to_owned());
    }
    let difference =
        |one: &BTreeSet<String>, other: &BTreeSet<String>| one.difference(other).cloned().collect::<Vec<_>>();
    assert_eq!(difference(&names, &declared), [""; 0], "exported, but in no header");
    assert_eq!(difference(&declared, &names), [""; 0], "in a header, but not exported");

    let text = std::fs::read_to_string(root().join("ffi/MATRIX.md")).unwrap();
    let mut rows = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        for name in cells[..2].iter().flat_map(|cell| cell.split(',')) {
            let name = name.trim().trim_matches('`');
            if !name.is_empty() {
                assert!(rows.insert(name.to_owned()), "{name} stands in the matrix twice");
            }
        }
    }
    assert_eq!(difference(&rows, &names), [""; 0], "in ffi/MATRIX.md, but not exported");
    assert_eq!(difference(&names, &rows), [""; 0], "exported, but not in ffi/MATRIX.md");
}

#[test]
fn sizes_offsets_and_values_are_those_of_the_crate() {
    let folder = clovis_tests::folder("abi");
    let source = root().join("ffi/tests/abi.c");
    let out = folder.path().join("abi");
    let [search, run_path] = library_flags();
    let (source, out_text) = (source.display().to_string(), out.display().to_string());
    for standard in ["-std=c11", "-std=gnu17"] {
        let include = include_flag();
        let arguments = [
            standard, "-Wall", "-Wextra", "-Werror", &include, &source, "-o", &out_text, &search, &run_path,
            "-lclovis",
        ];
        compile("gcc", &arguments, folder.path());
        let _ = processes::run(&mut Command::new(&out), folder.path(), Duration::from_secs(20)).succeeded();
    }
    let _ = installed::prefix();
}
