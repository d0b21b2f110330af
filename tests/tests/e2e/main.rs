//! End to end: the real binary, real processes, loopback sockets, files in a temporary folder.
//!
//! What is shown here is what a user does. Power cuts are not: a killed process leaves the page cache whole, so durability is
//! the simulation's to judge (`tests/sim`). One file per part of the command line; what they share is in `clovis_tests`.
#![forbid(unsafe_code)]

mod addb;
mod command_line;
mod conf;
mod cooperation;
mod credits;
mod devices;
mod doctor;
mod earlier;
mod installed;
mod interruptions;
mod localities;
mod members;
mod metrics;
mod net;
mod objects;
mod orders;
mod page;
mod peers;
mod pools;
mod quickstart;
mod refusals;
mod replacements;
mod security;
mod soak;
mod spares;
mod states;
mod upgrade;
mod watches;
mod workload;
