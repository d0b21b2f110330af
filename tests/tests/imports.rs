//! The import rule: who may import whom, where unsafe code may live, and what must never stand below what.
//!
//! The table between the markers in ARCHITECTURE.md is the one source; this test reads it and `cargo metadata`, and fails on
//! any other edge between members of the workspace. The rules in [`NEVER`] and [`NEVER_BELOW`] hold through any number of
//! steps and cannot be edited away in the table. A crate's name here is its folder.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, Package, TargetKind};
use clovis_tests::place::root;

/// What may not be reached, by normal and build dependencies, in any number of steps.
const NEVER: &[(&str, &str)] = &[
    ("rpc", "spdk-stob"),
    ("spdk-stob", "verbs-net"),
    ("spdk-stob", "rpc"),
    ("client", "server"),
    ("server", "client"),
    ("client", "spdk-stob"),
    ("client", "control"),
    ("server", "control"),
    ("rpc/fops", "runtime"),
    ("layout", "runtime"),
    ("base", "runtime"),
];

/// Runtimes and frameworks of others that must not stand anywhere below these crates.
const NEVER_BELOW: (&[&str], &[&str]) = (&["client", "server", "ffi"], &["tokio", "openraft", "axum"]);

/// One row of the table.
struct Row {
    imports: BTreeSet<String>,
    imports_anything: bool,
    /// What `imports_anything` leaves out.
    except: BTreeSet<String>,
    may_hold_unsafe: bool,
    is_later: bool,
}

/// Lines between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, table head and rule left out, split into trimmed cells.
fn table(text: &str, name: &str) -> Vec<Vec<String>> {
    let begin = format!("<!-- {name}:begin -->");
    let end = format!("<!-- {name}:end -->");
    let after = text.split_once(&begin).unwrap_or_else(|| panic!("ARCHITECTURE.md has no {begin}")).1;
    let inside = after.split_once(&end).unwrap_or_else(|| panic!("ARCHITECTURE.md has no {end}")).0;
    inside
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

fn names(cell: &str) -> BTreeSet<String> {
    cell.split(',')
        .map(|name| name.trim().trim_matches('`').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

fn rows(text: &str) -> BTreeMap<String, Row> {
    let mut rows = BTreeMap::new();
    for cells in table(text, "imports") {
        let [crate_name, imports, unsafe_code, why] = cells.as_slice() else {
            panic!("a row of the import table needs 4 cells: {cells:?}");
        };
        let (imports_anything, except) = match imports.strip_prefix("anything but") {
            Some(rest) => (true, names(rest)),
            None => (imports == "anything", BTreeSet::new()),
        };
        let row = Row {
            imports: if imports_anything { BTreeSet::new() } else { names(imports) },
            imports_anything,
            except,
            may_hold_unsafe: match unsafe_code.as_str() {
                "yes" => true,
                "" => false,
                other => panic!("the unsafe cell of {crate_name} is `yes` or empty, not {other:?}"),
            },
            is_later: why.starts_with("later:"),
        };
        let name = crate_name.trim_matches('`').to_owned();
        assert!(rows.insert(name, row).is_none(), "{crate_name} has two rows in the import table");
    }
    let known: BTreeSet<&String> = rows.keys().collect();
    for (name, row) in &rows {
        for import in row.imports.iter().chain(&row.except) {
            assert!(known.contains(import), "the row of {name} names {import}, which has no row");
        }
    }
    rows
}

/// Edges that only tests of a crate need: (crate, import).
fn test_only(text: &str) -> BTreeSet<(String, String)> {
    table(text, "test-imports")
        .into_iter()
        .map(|cells| (cells[0].trim_matches('`').to_owned(), cells[1].trim_matches('`').to_owned()))
        .collect()
}

/// The workspace alone, or with everything that it would link on this kind of machine, all features on.
fn metadata(with_dependencies: bool) -> Metadata {
    let mut command = MetadataCommand::new();
    command.manifest_path(root().join("Cargo.toml"));
    if with_dependencies {
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        command.features(CargoOpt::AllFeatures);
        command.other_options(vec!["--filter-platform".to_owned(), target]);
    } else {
        command.no_deps();
    }
    command.exec().expect("cargo metadata runs and prints what cargo_metadata can read")
}

fn folder(package: &Package, root: &Path) -> String {
    let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
    folder
        .as_std_path()
        .strip_prefix(root)
        .expect("members lie below the root")
        .to_str()
        .expect("UTF-8")
        .to_owned()
}

/// All (from, to, kind) between members, by folder.
fn edges(metadata: &Metadata) -> Vec<Edge> {
    let root = metadata.workspace_root.as_std_path();
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            if let Some(path) = &dependency.path {
                let to = path.as_std_path().strip_prefix(root).expect("path dependencies lie below the root");
                let to = to.to_str().expect("UTF-8").to_owned();
                edges.push((folder(package, root), to, dependency.kind));
            }
        }
    }
    edges
}

fn architecture() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there")
}

type Edge = (String, String, DependencyKind);

/// What is wrong with these members and edges under this table; empty if nothing.
fn against_the_table(text: &str, members: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let rows = rows(text);
    let test_only = test_only(text);
    let mut wrong = Vec::new();
    for member in members {
        if !rows.contains_key(member) {
            wrong.push(format!("{member} is a member of the workspace and has no row in the import table"));
        }
    }
    for (name, row) in &rows {
        if !row.is_later && !members.contains(name) {
            wrong.push(format!(
                "the import table has a row for {name}, which is no member (a crate to come says `later:`)"
            ));
        }
        if row.is_later && members.contains(name) {
            wrong.push(format!("{name} is a member now: its row must not say `later:`"));
        }
    }
    for (from, to, kind) in edges {
        let Some(row) = rows.get(from) else { continue };
        let allowed = if row.imports_anything { !row.except.contains(to) } else { row.imports.contains(to) };
        let allowed_for_tests =
            *kind == DependencyKind::Development && test_only.contains(&(from.clone(), to.clone()));
        if !allowed && !allowed_for_tests {
            wrong.push(format!("{from} imports {to} ({kind:?}): not in the table of ARCHITECTURE.md"));
        }
    }
    wrong
}

/// Which of [`NEVER`] are reached, with the last step.
fn reached(edges: &[Edge]) -> Vec<String> {
    let mut forward: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to, kind) in edges {
        if *kind != DependencyKind::Development {
            forward.entry(from).or_default().insert(to);
        }
    }
    let mut wrong = Vec::new();
    for &(from, to) in NEVER {
        let mut seen = BTreeSet::from([from]);
        let mut queue = VecDeque::from([from]);
        while let Some(next) = queue.pop_front() {
            for &import in forward.get(next).into_iter().flatten() {
                if import == to {
                    wrong.push(format!("{from} must never reach {to}, and does through {next}"));
                }
                if seen.insert(import) {
                    queue.push_back(import);
                }
            }
        }
    }
    wrong
}

#[test]
fn every_edge_is_in_the_table() {
    let metadata = metadata(false);
    let root = metadata.workspace_root.as_std_path();
    let members = metadata.workspace_packages().iter().map(|package| folder(package, root)).collect();
    let wrong = against_the_table(&architecture(), &members, &edges(&metadata));
    assert!(wrong.is_empty(), "the import rule is broken:\n  {}", wrong.join("\n  "));
}

#[test]
fn what_must_never_be_reached_is_not() {
    let wrong = reached(&edges(&metadata(false)));
    assert!(wrong.is_empty(), "the import rule is broken:\n  {}", wrong.join("\n  "));
}

fn edge(from: &str, to: &str, kind: DependencyKind) -> Edge {
    (from.to_owned(), to.to_owned(), kind)
}

#[test]
fn a_broken_rule_is_seen() {
    const TABLES: &str = "\
<!-- imports:begin -->\n| crate | may import | unsafe | why |\n|---|---|---|---|\n| `base` | | | words |\n| `rpc` | base | | |
| `cli` | anything but rpc | | |\n| `volume` | base | | later: not yet |\n<!-- imports:end -->
<!-- test-imports:begin -->\n| crate | import | why |\n|---|---|---|\n| `base` | `rpc` | a test |\n<!-- test-imports:end -->";
    let members = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let all = members(&["base", "rpc", "cli"]);
    let wrong = |edges: &[Edge]| against_the_table(TABLES, &all, edges).len();

    assert_eq!(
        wrong(&[edge("rpc", "base", DependencyKind::Normal), edge("cli", "base", DependencyKind::Build)]),
        0
    );
    assert_eq!(wrong(&[edge("base", "rpc", DependencyKind::Development)]), 0);
    assert_eq!(wrong(&[edge("base", "rpc", DependencyKind::Normal)]), 1);
    assert_eq!(wrong(&[edge("rpc", "cli", DependencyKind::Development)]), 1);
    assert_eq!(wrong(&[edge("cli", "rpc", DependencyKind::Normal)]), 1);
    // A member without a row, a row without a member, a crate to come that has come.
    assert_eq!(against_the_table(TABLES, &members(&["base", "rpc", "cli", "new"]), &[]).len(), 1);
    assert_eq!(against_the_table(TABLES, &members(&["base", "rpc"]), &[]).len(), 1);
    assert_eq!(against_the_table(TABLES, &members(&["base", "rpc", "cli", "volume"]), &[]).len(), 1);
    // Two steps, and a step that only tests take.
    let through =
        |kind| reached(&[edge("rpc", "base", DependencyKind::Normal), edge("base", "spdk-stob", kind)]).len();
    assert_eq!((through(DependencyKind::Normal), through(DependencyKind::Development)), (1, 0));
}

#[test]
fn no_foreign_runtime_on_the_data_path() {
    let metadata = metadata(true);
    let root = metadata.workspace_root.as_std_path();
    let resolve = metadata.resolve.as_ref().expect("metadata with dependencies has a resolution");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let (tops, forbidden) = NEVER_BELOW;
    for package in metadata.workspace_packages() {
        let top = folder(package, root);
        if !tops.contains(&top.as_str()) {
            continue;
        }
        let mut seen = BTreeSet::from([&package.id]);
        let mut queue = VecDeque::from([&package.id]);
        while let Some(id) = queue.pop_front() {
            let name = metadata[id].name.as_str();
            assert!(!forbidden.contains(&name), "{name} stands below {top}: not on the data path");
            for dependency in &nodes[id].deps {
                let linked = dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development);
                if linked && seen.insert(&dependency.pkg) {
                    queue.push_back(&dependency.pkg);
                }
            }
        }
        assert!(seen.len() > 1, "{top} has no dependencies at all: the walk is broken");
    }
}

/// Rust files of a crate, without those of crates nested in its folder.
fn rust_files(crate_folder: &Path, nested: &BTreeSet<PathBuf>, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(crate_folder).expect("a member's folder can be listed") {
        let path = entry.expect("a member's folder can be listed").path();
        if path.is_dir() {
            let is_build_output = path.join("CACHEDIR.TAG").exists();
            if !nested.contains(&path) && !is_build_output {
                rust_files(&path, nested, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// True if a line of Rust opens unsafe code or lifts the ban. Comments are cut; a string that looks like it counts too.
fn opens_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    if code.contains("allow(unsafe_code)") || code.contains("expect(unsafe_code)") {
        return true;
    }
    code.match_indices("unsafe").any(|(at, word)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].trim_start();
        let is_word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let opens = ["{", "fn ", "impl", "trait ", "extern ", "("].iter().any(|next| after.starts_with(next));
        is_word && opens
    })
}

#[test]
fn unsafe_code_lives_in_its_islands() {
    let rows = rows(&architecture());
    let metadata = metadata(false);
    let root = metadata.workspace_root.as_std_path();
    let folders: BTreeSet<PathBuf> =
        metadata.workspace_packages().iter().map(|package| root.join(folder(package, root))).collect();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        let name = folder(package, root);
        if rows.get(&name).is_some_and(|row| row.may_hold_unsafe) {
            continue;
        }
        for target in &package.targets {
            let text = std::fs::read_to_string(&target.src_path).expect("a target's root file can be read");
            let is_build_script = target.kind.contains(&TargetKind::CustomBuild);
            if !is_build_script && !text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
                wrong.push(format!("{}: no #![forbid(unsafe_code)]", target.src_path));
            }
        }
        let mut files = Vec::new();
        rust_files(&root.join(&name), &folders, &mut files);
        for file in files {
            // This file spells the words it looks for.
            if file.ends_with("tests/tests/imports.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).expect("a source file can be read");
            for (index, _) in text.lines().enumerate().filter(|(_, line)| opens_unsafe(line)) {
                wrong.push(format!("{}:{}: unsafe outside its islands", file.display(), index + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe code is out of its islands:\n  {}", wrong.join("\n  "));
}

/// The files that bulk bytes pass through on RDMA, and how many copying calls each may have. What those copy is beside them: headers,
/// descriptors, words of rdma-cm, and messages that go inline; never bulk.
const BULK_PATH: [(&str, usize); 13] = [
    ("verbs-net/src/backend/verbs.rs", 0),
    ("verbs-net/src/backend/verbs/binding.rs", 0),
    // A frame's header, a hello, an extension, the seals of a push.
    ("verbs-net/src/backend/verbs/link.rs", 4),
    // An offer, its seal and its answer: 32, 24 and 16 bytes.
    ("verbs-net/src/backend/verbs/rendezvous.rs", 3),
    // Of messages that are sealed: heads, tags, and those of up to 4 KiB whole (counted). Bulk that is sealed goes through the one that counts.
    ("verbs-net/src/backend/verbs/sealed.rs", 5),
    ("verbs-net/src/exposure.rs", 0),
    ("verbs-net/src/transfer.rs", 0),
    ("verbs-net/src/machine.rs", 0),
    // The names of at most two exposures.
    ("verbs-net/src/protocol.rs", 1),
    // Headers, and messages of at most INLINE_BYTES with them.
    ("verbs-net/sys/src/real/post.rs", 2),
    ("verbs-net/sys/src/real/completion.rs", 0),
    ("verbs-net/sys/src/real/nic.rs", 0),
    ("verbs-net/sys/src/real/regions.rs", 0),
];

/// Calls that copy bytes, in code that is no test. The one copying call for bulk is `runtime`'s, which counts.
fn copying_calls(text: &str) -> Vec<usize> {
    const CALLS: [&str; 8] = [
        "copy_from_slice(",
        "extend_from_slice(",
        "clone_from_slice(",
        "::from_slice(",
        ".to_vec()",
        "copy_nonoverlapping(",
        "copy_within(",
        "memcpy(",
    ];
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.contains("#[cfg(test)]"))
        .filter(|(_, line)| {
            let code = line.split("//").next().unwrap_or("");
            CALLS.iter().any(|call| code.contains(call))
        })
        .map(|(index, _)| index + 1)
        .collect()
}

#[test]
fn nothing_copies_on_the_bulk_path() {
    let root = root();
    for (file, may_have) in BULK_PATH {
        let text = std::fs::read_to_string(root.join(file)).expect("the bulk path is where it was");
        let found = copying_calls(&text);
        assert!(
            found.len() <= may_have,
            "{file} has copying calls in lines {found:?}, and {may_have} are known. Bulk bytes are never copied over RDMA \
             (docs/net.md, copies): if the new one copies a header, raise the number with the reason beside it"
        );
    }
    assert_eq!(copying_calls("a.copy_from_slice(b); // x\n// c.to_vec()\n#[cfg(test)]\nd.to_vec()"), [1]);
}

#[test]
fn the_scan_sees_what_it_should() {
    assert!(opens_unsafe("    unsafe { read(pointer) }"));
    assert!(opens_unsafe("pub unsafe fn read()"));
    assert!(opens_unsafe("unsafe impl Send for Ring {}"));
    assert!(opens_unsafe("#[unsafe(no_mangle)]"));
    assert!(opens_unsafe("#![allow(unsafe_code)]"));
    assert!(!opens_unsafe("// unsafe { in a comment }"));
    assert!(!opens_unsafe("#![forbid(unsafe_code)]"));
    assert!(!opens_unsafe("let may_hold_unsafe = true;"));
}
