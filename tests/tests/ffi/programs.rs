//! C and C++ programs in several styles against one cluster: as they are, under sanitizers, under valgrind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clovis_tests::cluster::RunningCluster;
use clovis_tests::place::root;
use clovis_tests::processes::{self, Finished};

use crate::installed::{include_flag, library_flags, prefix};
use crate::tools::{compile, have};

/// Longest that one program may take on a loaded machine.
pub const PROGRAM_LIMIT: Duration = Duration::from_secs(120);

/// The define flags that programs for the old library were built with.
const OLD_FLAGS: [&str; 12] = [
    "-include",
    "config.h",
    "-D_REENTRANT",
    "-D_GNU_SOURCE",
    "-DM0_INTERNAL=",
    "-DM0_EXTERN=extern",
    "-fno-common",
    "-Wall",
    "-Werror",
    "-Wno-attributes",
    "-pthread",
    "-g",
];

/// Compiles a program of ffi/tests (or ffi/examples, with a path) against the installed tree; `library` as in `-lmero`.
pub fn build(folder: &Path, compiler: &str, source: &str, flags: &[&str], library: &str) -> PathBuf {
    let path = if source.contains('/') { root().join(source) } else { root().join("ffi/tests").join(source) };
    let name = source.rsplit('/').next().unwrap_or(source).replace('.', "_");
    let out = folder.join(format!("{name}-{library}-{}", flags.len()));
    let [search, run_path] = library_flags();
    let (include, path, out_text, link) =
        (include_flag(), path.display().to_string(), out.display().to_string(), format!("-l{library}"));
    let mut arguments: Vec<&str> = flags.to_vec();
    arguments.extend([
        include.as_str(),
        &path,
        "-o",
        &out_text,
        &search,
        &run_path,
        &link,
        "-lm",
        "-lpthread",
        "-lrt",
    ]);
    compile(compiler, &arguments, folder);
    out
}

/// The control daemon's endpoint, as an operator finds it in the cluster's file.
pub fn control_endpoint(cluster: &RunningCluster) -> String {
    let text =
        std::fs::read_to_string(cluster.dir().join("clovis.toml")).expect("a started cluster has its file");
    let control = text.split_once("[control]").expect("the file has a control daemon").1;
    let line = control
        .lines()
        .find(|line| line.starts_with("endpoint"))
        .expect("the control daemon has an endpoint");
    line.split('"').nth(1).expect("an endpoint is quoted").to_owned()
}

/// A command with the cluster's credential.
pub fn command(cluster: &RunningCluster, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("CLOVIS_CONFIG", cluster.dir().join("clovis.toml"));
    command
}

/// Runs a program as `PROGRAM LOCAL HA PROFILE PROCESS` to its end.
fn run(cluster: &RunningCluster, mut command: Command, number: u16) -> Finished {
    command.arg(format!("127.0.0.1@tcp:12345:44:{number}")).arg(control_endpoint(cluster));
    command.args(["0x7000000000000001:0", "<0x7200000000000000:0>"]);
    processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded()
}

#[test]
fn helpers_need_no_cluster() {
    let folder = clovis_tests::folder("helpers");
    for flags in [&["-std=c11", "-Wall", "-Wextra", "-Werror"][..], &OLD_FLAGS] {
        let program = build(folder.path(), "gcc", "helpers.c", flags, "mero");
        let _ = processes::run(&mut Command::new(program), folder.path(), PROGRAM_LIMIT).succeeded();
    }
}

#[test]
fn programs_of_several_styles_run_unchanged() {
    let cluster = RunningCluster::start("ffi-styles", &["--device-size", "128M"]);
    let folder = cluster.scratch();
    let strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-g"];
    let mut number = 1;
    let mut check = |program: PathBuf| {
        let finished = run(&cluster, command(&cluster, &program), number);
        number += 1;
        finished
    };
    check(build(folder, "gcc", "objects.c", &strict, "clovis"));
    check(build(folder, "gcc", "operations.c", &OLD_FLAGS, "mero"));
    let said = check(build(folder, "gcc", "misuse.c", &strict, "clovis")).stderr;
    for reason in [
        "cc_local_addr is NULL",
        "is not the cluster's",
        "do not start and end at multiples",
        "m0_clovis_idx_op",
    ] {
        let reason =
            if reason.starts_with("do not") { "does not start and end at multiples" } else { reason };
        assert!(said.contains(reason), "no line says {reason:?}:\n{said}");
    }
    check(build(folder, "gcc", "style_2016.c", &OLD_FLAGS, "mero"));
    check(build(folder, "gcc", "style_2019.c", &OLD_FLAGS, "mero"));
    check(build(folder, "gcc", "style_2021.c", &["-std=gnu17", "-Wall", "-Wextra", "-Werror"], "motr"));
    if have("g++", "a program in C++") {
        check(build(folder, "g++", "style.cc", &["-std=c++11", "-Wall", "-Wextra", "-Werror"], "clovis"));
    }
    // Memory that the transport cannot use is copied, and counted.
    let mut copied = command(&cluster, &build(folder, "gcc", "objects.c", &strict, "clovis"));
    copied.env("CLOVIS_FOREIGN_BUFFERS", "copy").env("CLOVIS_STATS", "1");
    let said = run(&cluster, copied, 90).stderr;
    let figures = said.lines().find(|line| line.contains("foreign bytes copied")).expect("a line of figures");
    assert!(!figures.contains(" 0 foreign bytes copied") && !figures.contains(" 0 bytes lent"), "{figures}");
}

/// A program has its address from its command line, so its next run names its memory to the servers by the same cookies. Nothing that they
/// pushed to the run before may hold an answer back until it is asked for again.
#[test]
fn a_program_that_runs_again_under_its_address_waits_for_no_resend() {
    const READS: u64 = 20;
    let cluster = RunningCluster::start("ffi-again", &["--device-size", "128M"]);
    let folder = cluster.scratch();
    let file = folder.join("block");
    std::fs::write(&file, vec![7; 65536]).unwrap();
    let _ = cluster.run(&["cp", file.to_str().unwrap(), "0xbe9c:1"]).succeeded();
    let program =
        build(folder, "gcc", "ffi/bench/ops.c", &["-std=gnu17", "-Wall", "-Wextra", "-Werror"], "clovis");
    for number in 1..=3 {
        let mut command = command(&cluster, &program);
        command.env("CLOVIS_STATS", "1");
        command.args(["127.0.0.1@tcp:12345:44:302", &control_endpoint(&cluster), &READS.to_string()]);
        let said = processes::run(&mut command, folder, PROGRAM_LIMIT).succeeded().stderr;
        let before = said.split_once(" resends").expect("a line of figures").0;
        let resends: u64 = before.rsplit(' ').next().expect("a figure").parse().unwrap();
        // One or two may be a loaded machine's.
        assert!(resends < READS / 4, "run {number}: {said}");
    }
}

/// Programs as strangers wrote them (ffi/tests/strangers), with nothing but the flags that pkg-config gives and the define flags of old.
#[test]
fn programs_of_strangers_compile_unchanged_and_run() {
    if !have("pkg-config", "programs of strangers") {
        return;
    }
    let cluster = RunningCluster::start("ffi-strangers", &["--device-size", "128M"]);
    let folder = cluster.scratch();
    let mut sources: Vec<PathBuf> = std::fs::read_dir(root().join("ffi/tests/strangers"))
        .expect("the folder can be listed")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    sources.sort();
    assert!(sources.len() > 6, "programs are missing: {sources:?}");
    for (number, (source, package)) in
        (100..).zip(sources.iter().zip(["mero", "motr", "clovis"].into_iter().cycle()))
    {
        let flags_of = |what: &str| {
            let mut command = Command::new("pkg-config");
            command.args([what, package]).env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
            let finished = processes::run(&mut command, folder, PROGRAM_LIMIT).succeeded();
            finished.text().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let program = folder.join(source.file_stem().expect("a source has a name"));
        let (source_text, out) = (source.display().to_string(), program.display().to_string());
        let (cflags, libs) = (flags_of("--cflags"), flags_of("--libs"));
        let mut arguments: Vec<&str> = OLD_FLAGS.to_vec();
        arguments.extend(cflags.iter().map(String::as_str));
        arguments.extend([source_text.as_str(), "-o", &out]);
        arguments.extend(libs.iter().map(String::as_str));
        let is_c = source.extension().is_some_and(|extension| extension == "c");
        if !is_c && !have("g++", "a program of a stranger in C++") {
            continue;
        }
        compile(if is_c { "gcc" } else { "g++" }, &arguments, folder);
        run(&cluster, command(&cluster, &program), number);
    }
}

#[test]
fn programs_are_clean_under_sanitizers_and_valgrind() {
    let cluster = RunningCluster::start("ffi-checkers", &["--device-size", "128M"]);
    let folder = cluster.scratch();
    let sanitized = [
        "-std=gnu17",
        "-g",
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ];
    for (number, source) in (20..).zip(["objects.c", "operations.c", "misuse.c"]) {
        let program = build(folder, "gcc", source, &sanitized, "clovis");
        let mut command = command(&cluster, &program);
        command.env("ASAN_OPTIONS", "detect_leaks=1:exitcode=99").env("UBSAN_OPTIONS", "print_stacktrace=1");
        let said = run(&cluster, command, number).stderr;
        assert!(!said.contains("Sanitizer") && !said.contains("runtime error"), "{source}:\n{said}");
    }
    if have("valgrind", "programs under valgrind") {
        for (number, source) in (30..).zip(["misuse.c", "short.c", "ffi/tests/strangers/batches.c"]) {
            let program = build(folder, "gcc", source, &["-std=gnu17", "-g"], "clovis");
            let mut command = command(&cluster, Path::new("valgrind"));
            command.args([
                "--quiet",
                "--leak-check=full",
                "--errors-for-leak-kinds=definite,indirect",
                "--error-exitcode=98",
            ]);
            command.arg(&program);
            run(&cluster, command, number);
        }
    }
}

#[test]
fn the_example_programs_take_both_families_of_flags() {
    let cluster = RunningCluster::start("ffi-examples", &["--device-size", "128M"]);
    let control = control_endpoint(&cluster);
    let mut content = vec![0; 4096 * 128];
    fastrand::Rng::with_seed(6).fill(&mut content);
    let source = cluster.scratch().join("abcd-512K");
    std::fs::write(&source, &content).unwrap();
    let source = source.to_str().unwrap();
    // `replace` puts another value behind a flag, or takes the flag away.
    let program = |name: &str, replace: &[(&str, Option<&str>)], rest: &[&str]| -> Finished {
        let flags = [
            ("-l", "127.0.0.1@tcp:12345:44:301"),
            ("-H", control.as_str()),
            ("-p", "0x7000000000000001:0"),
            ("-P", "0x7200000000000000:0"),
            ("-o", "12:34"),
            ("-s", "4096"),
            ("-c", "128"),
            ("-L", "1"),
        ];
        let needs_blocks = matches!(name, "c0cp" | "c0cat");
        let mut command = command(&cluster, &prefix().join("bin").join(name));
        for (flag, value) in flags {
            if !needs_blocks && matches!(flag, "-s" | "-c" | "-L") {
                continue;
            }
            match replace.iter().find(|(name, _)| *name == flag) {
                Some((_, Some(other))) => command.args([flag, other]),
                Some((_, None)) => &mut command,
                None => command.args([flag, value]),
            };
        }
        command.args(rest);
        processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT)
    };
    // The well-known example, as it stands.
    let _ = program("c0cp", &[], &[source]).succeeded();
    assert!(program("c0cat", &[], &[]).succeeded().stdout == content, "other bytes came back");
    assert!(cluster.run(&["cat", "12:34"]).succeeded().stdout == content, "clovis cat sees other bytes");
    // To a file; without -L, with long names, as in 2019; read-verify.
    let copy = cluster.scratch().join("copy");
    let _ = program("c0cat", &[("-L", None)], &["--read-verify", copy.to_str().unwrap()]).succeeded();
    assert!(std::fs::read(&copy).unwrap() == content, "other bytes in the file");
    let brackets = [
        ("-p", Some("<0x7000000000000001:0>")),
        ("-P", Some("<0x7200000000000000:0>")),
        ("-o", Some("12:35")),
    ];
    let _ = program("c0touch", &brackets, &[]).succeeded();
    assert!(program("c0touch", &brackets, &[]).refused().contains("File exists"));
    let _ = program(
        "c0cp",
        &[("-o", Some("12:35")), ("-s", Some("64k")), ("-c", Some("8"))],
        &["-u", "-b", "2", "-O", "4096", source],
    )
    .succeeded();
    let shifted = program("c0cat", &[("-o", Some("12:35"))], &["-O", "4096"]).succeeded().stdout;
    assert!(shifted == content, "other bytes behind an offset");
    let _ = program("c0rm", &[("-o", Some("12:35"))], &[]).succeeded();
    assert!(program("c0unlink", &[("-o", Some("12:35"))], &[]).refused().contains("No such file"));
    // Several objects, zeros, part of a file.
    let _ = program("c0cp", &[("-o", Some("50:1")), ("-c", Some("4"))], &["-n", "3", source]).succeeded();
    assert!(
        program("c0cat", &[("-o", Some("50:3")), ("-c", Some("4"))], &[]).succeeded().stdout
            == content[..16384]
    );
    let _ = program("c0rm", &[("-o", Some("50:1"))], &["-n", "3"]).succeeded();

    // What users get wrong: one clear line each, and the object stays as it was.
    let refused = |replace: &[(&str, Option<&str>)]| program("c0cp", replace, &[source]).refused().to_owned();
    assert!(refused(&[]).contains("File exists"));
    assert!(refused(&[("-l", Some("127.0.0.1@o2ib:12345:44:301"))]).contains("o2ib"));
    assert!(refused(&[("-l", Some("nowhere"))]).contains("nowhere"));
    assert!(refused(&[("-s", Some("1000"))]).contains("1000"));
    assert!(refused(&[("-o", Some("12"))]).contains("12"));
    assert!(refused(&[("-p", Some("0x7000000000000009:0"))]).contains("0x7000000000000009"));
    assert!(refused(&[("-H", None)]).contains("-H"));
    assert!(program("c0cat", &[("-o", Some("9:9"))], &[]).refused().contains("9:9"));
    assert!(program("c0cat", &[], &["-Q"]).refused().contains("-Q"));
    assert!(program("c0cat", &[], &[]).succeeded().stdout == content, "a refusal changed the object");
}

#[test]
fn each_rank_of_an_mpi_program_writes_and_reads_its_slice() {
    if !have("mpicc", "the MPI example") || !have("mpirun", "the MPI example") {
        return;
    }
    let cluster = RunningCluster::start("ffi-mpi", &["--device-size", "128M"]);
    let program = build(
        cluster.scratch(),
        "mpicc",
        "ffi/examples/mpi_slices.c",
        &["-std=gnu17", "-Wall", "-Wextra", "-Werror"],
        "clovis",
    );
    let mut command = command(&cluster, Path::new("mpirun"));
    command
        .args(["-np", "4"])
        .arg(&program)
        .args(["127.0.0.1@tcp:12345:44:60", &control_endpoint(&cluster), "77:1"])
        // Open MPI wants to be told that root and more ranks than cores are meant; MPICH does not look.
        .envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ]);
    let finished = processes::run(&mut command, cluster.scratch(), PROGRAM_LIMIT).succeeded();
    assert!(finished.text().contains("4 ranks"), "{}", finished.text());
}
