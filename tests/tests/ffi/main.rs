//! `libclovis.so` as strangers use it: C and C++ programs, compiled against an installed tree, run against a cluster of real processes.
//!
//! The programs are in ffi/tests and ffi/examples; they print nothing and end with 0 if all went well. What the machine lacks (clang, g++,
//! valgrind, sanitizers, MPI) is skipped with one line that says so; `./dev test` installs what it may.
#![forbid(unsafe_code)]

mod headers;
mod installed;
mod programs;
mod readme;
mod servers;
mod tools;
