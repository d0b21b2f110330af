//! `clovis completions` and `clovis man`: what shells and man(1) know of the command line, made from the command line itself.

use std::fs;

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::args::{Cli, CompletionsArgs, ManArgs, ShellArg};
use crate::failure::Failure;
use crate::output;

/// `clovis completions`: the script, on standard output.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    output::print(&script(args.shell)?)
}

fn script(shell: ShellArg) -> Result<String, Failure> {
    let shell = match shell {
        ShellArg::Bash => Shell::Bash,
        ShellArg::Zsh => Shell::Zsh,
        ShellArg::Fish => Shell::Fish,
    };
    // Into memory first: a reader of standard output that goes away is no reason to panic.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "clovis", &mut script);
    String::from_utf8(script).map_err(Failure::while_doing("making the completions"))
}

/// `clovis man`: a page for `clovis` and one for each of its words, `clovis-WORD-WORD.1`.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let doing = || format!("writing man pages into {}", args.folder.display());
    fs::create_dir_all(&args.folder).map_err(Failure::while_doing(doing()))?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(Failure::while_doing(doing()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_is_told_of_every_word() {
        for shell in [ShellArg::Bash, ShellArg::Zsh, ShellArg::Fish] {
            let script = script(shell).unwrap();
            for word in Cli::command().get_subcommands() {
                assert!(script.contains(word.get_name()), "{shell:?} does not know {}", word.get_name());
            }
        }
    }

    #[test]
    fn each_word_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs { folder: folder.path().join("man1") }).unwrap();
        let page = |name: &str| fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
        for word in Cli::command().get_subcommands() {
            assert!(page(&format!("clovis-{}.1", word.get_name())).contains(".TH"));
        }
        assert!(page("clovis.1").contains("object store") || page("clovis.1").contains("Object store"));
        assert!(page("clovis-device-detach.1").contains("force"));
    }
}
