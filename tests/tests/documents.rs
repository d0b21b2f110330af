//! Documents against the code: every limit is in docs/limits.md with its value, and every document that is named exists.
//!
//! The table of limits is made from every `limits.rs` of the workspace. To bring it up to date:
//! `CLOVIS_UPDATE_DOCS=1 cargo test -p clovis-tests --test documents`. The change is then reviewed as a diff of the document,
//! like any other change of a promise.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clovis_tests::place::root;

const BEGIN: &str = "<!-- limits:begin (made by tests/tests/documents.rs) -->";
const END: &str = "<!-- limits:end -->";

struct Limit {
    name: String,
    value: String,
    reason: String,
}

/// Every `src/limits.rs` of a crate, by the crate's folder, in order of dependence as the import table has it.
fn files(root: &Path) -> Vec<(String, PathBuf)> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata runs");
    let mut files: Vec<(String, PathBuf)> = metadata
        .workspace_packages()
        .iter()
        .filter_map(|package| {
            let folder = package.manifest_path.parent()?.as_std_path();
            let name = folder.strip_prefix(root).ok()?.to_str()?.to_owned();
            let file = folder.join("src/limits.rs");
            file.is_file().then_some((name, file))
        })
        .collect();
    files.sort();
    files
}

/// Constants of one file that another module can see, with their comments. Their form is rustfmt's.
fn limits(text: &str) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut reason: Vec<&str> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("///") {
            reason.push(comment.trim());
            continue;
        }
        let constant = line.strip_prefix("pub const ").or_else(|| line.strip_prefix("pub(crate) const "));
        if let Some(start) = constant.filter(|start| !start.starts_with("fn ")) {
            // A sum has a comment for each holder; the table shows the sum.
            let code = |line: &str| line.split("//").next().unwrap_or("").trim().to_owned();
            let mut whole = code(start);
            while !whole.ends_with(';') {
                let next = lines.next().expect("a constant ends with a semicolon");
                whole.push(' ');
                whole.push_str(&code(next));
            }
            let (name, rest) = whole.split_once(':').expect("a constant has a type");
            let value = rest.split_once('=').expect("a constant has a value").1;
            let value = value.trim_end_matches(';').split_whitespace().collect::<Vec<_>>().join(" ");
            limits.push(Limit { name: name.to_owned(), value, reason: reason.join(" ") });
        }
        if !line.starts_with("#[") {
            reason.clear();
        }
    }
    limits
}

fn tables(root: &Path) -> String {
    let mut out = String::new();
    for (name, path) in files(root) {
        let text = std::fs::read_to_string(&path).expect("a limits.rs can be read");
        let limits = limits(&text);
        if limits.is_empty() {
            continue;
        }
        out.push_str(&format!(
            "\n### {name}\n\n| limit | value | what it bounds, and why so much |\n|---|---|---|\n"
        ));
        for limit in limits {
            let reason = limit.reason.replace('|', "\\|").replace("[`", "`").replace("`]", "`");
            out.push_str(&format!(
                "| `{}` | `{}` | {} |\n",
                limit.name,
                limit.value.replace('|', "\\|"),
                reason
            ));
        }
    }
    out.push('\n');
    out
}

#[test]
fn the_document_has_every_limit() {
    let root = root();
    let path = root.join("docs/limits.md");
    let text = std::fs::read_to_string(&path).expect("docs/limits.md is there");
    let (head, rest) = text.split_once(BEGIN).expect("docs/limits.md has the begin marker");
    let (found, tail) = rest.split_once(END).expect("docs/limits.md has the end marker");
    let wanted = tables(root);
    if found.trim() == wanted.trim() {
        return;
    }
    if std::env::var_os("CLOVIS_UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}\n{wanted}{END}{tail}"))
            .expect("docs/limits.md can be written");
        return;
    }
    let missing: Vec<&str> =
        wanted.lines().filter(|line| !found.lines().any(|other| other == *line)).collect();
    let stale: Vec<&str> = found.lines().filter(|line| !wanted.lines().any(|other| other == *line)).collect();
    panic!(
        "docs/limits.md is not what the code says. Run: CLOVIS_UPDATE_DOCS=1 cargo test -p clovis-tests --test documents\n\
         in the code only:\n  {}\nin the document only:\n  {}",
        missing.join("\n  "),
        stale.join("\n  ")
    );
}

#[test]
fn constants_are_read_as_they_stand() {
    let text = "//! Head.\n/// Requests in\n/// flight.\npub const A: u16 = 64;\n\n/// A sum.\npub const B: [u8; 2] = A\n    // one each\n    + 1 // more\n;\n\
                const HIDDEN: u8 = 1;\n/// Not one.\npub const fn narrow(x: u64) -> usize {\n";
    let found: Vec<_> =
        limits(text).into_iter().map(|limit| (limit.name, limit.value, limit.reason)).collect();
    let row = |name: &str, value: &str, reason: &str| (name.to_owned(), value.to_owned(), reason.to_owned());
    assert_eq!(found, [row("A", "64", "Requests in flight."), row("B", "A + 1", "A sum.")]);
}

/// Files that people read or that name documents, below `folder`: sources, documents, manifests. Build output is left out.
fn readable_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the checkout can be listed") {
        let path = entry.expect("a folder of the checkout can be listed").path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            if !is_hidden && !path.join("CACHEDIR.TAG").exists() {
                readable_files(&path, files);
            }
        } else if path
            .extension()
            .is_some_and(|extension| ["rs", "md", "toml"].iter().any(|known| extension == *known))
        {
            files.push(path);
        }
    }
}

/// Paths of documents that a text names: `docs/NAME.md`, `docs/rfd/0001` (a number is enough), and relative links of Markdown.
fn named_documents(text: &str) -> Vec<String> {
    let mut named = Vec::new();
    for (at, _) in text.match_indices("docs/") {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
        let name: String = text[at..].chars().take_while(|c| is_path(*c)).collect();
        let name = name.trim_end_matches('.');
        let before = text[..at].chars().next_back();
        let is_ours = !before.is_some_and(|c| is_path(c) || c == ':');
        let is_numbered =
            name.strip_prefix("docs/rfd/").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if is_ours && (name.ends_with(".md") || is_numbered) {
            named.push(name.to_owned());
        }
    }
    named
}

/// Targets of relative Markdown links, without their anchors.
fn relative_links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or("").to_owned())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

/// A document by its path from the root; an RFD by its number.
fn exists(root: &Path, name: &str) -> bool {
    if root.join(name).is_file() {
        return true;
    }
    let Some(number) = name
        .strip_prefix("docs/rfd/")
        .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>())
    else {
        return false;
    };
    !name.ends_with(".md")
        && std::fs::read_dir(root.join("docs/rfd")).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{number}-")))
        })
}

#[test]
fn every_document_that_is_named_exists() {
    let root = root();
    let mut files = Vec::new();
    readable_files(root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        // This file names what does not exist, to see that it is seen.
        if file.ends_with("tests/tests/documents.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).expect("a source or document is text");
        let shown = file.strip_prefix(root).expect("below the root").display();
        for name in named_documents(&text) {
            if !exists(root, &name) {
                wrong.push(format!("{shown} names {name}"));
            }
        }
        if file.extension().is_some_and(|extension| extension == "md") {
            let folder = file.parent().expect("a file lies in a folder");
            for target in relative_links(&text) {
                if !folder.join(&target).exists() {
                    wrong.push(format!("{shown} links to {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "documents that are not there:\n  {}", wrong.join("\n  "));
}

#[test]
fn a_missing_document_is_seen() {
    let found = named_documents(
        "See docs/wire.md#ports, docs/rfd/0001, `docs/nowhere.md`. https://host/docs/other.md docs/rfd/ docs/",
    );
    assert_eq!(found, ["docs/wire.md", "docs/rfd/0001", "docs/nowhere.md"]);
    assert_eq!(
        relative_links("[a](docs/a.md#x) [b](https://host/b) [c](#here) [d](../d)"),
        ["docs/a.md", "../d"]
    );
    let root = root();
    assert!(exists(root, "docs/rfd/0001") && exists(root, "docs/glossary.md"));
    assert!(!exists(root, "docs/nowhere.md") && !exists(root, "docs/rfd/9999"));
}
