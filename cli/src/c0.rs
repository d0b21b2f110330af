//! `c0cp` and `c0cat`: the example programs that every user of Clovis has met, with their flags.
//!
//! The endpoint and fid arguments are honoured: `-H` must be this cluster's control daemon, `-p` its profile, `-P` a
//! process fid; `-l` is the endpoint that the client announces. The credential comes from CLOVIS_CONFIG or from the
//! cluster folder. `c0cp` copies the first `-s` times `-c` bytes of the source; `c0cat` gives as many back.

use std::time::Duration;

use base::units::BLOCK_BYTES;
use base::{FidType, limits};
use client::{Client, ClientConfig};
use faces::cluster_file::ServerSection;

use crate::args::{C0Args, C0catArgs, C0cpArgs};
use crate::connection::{Station, client_config, fabric_of, find_cluster_file, load_cluster_file};
use crate::failure::Failure;
use crate::objects::{fill, open_source, store, write_out};
use crate::progress::Progress;
use crate::table::bytes_text;

/// The resend horizon of the example programs: 60 resends, one a second.
const OP_TIMEOUT: Duration = Duration::from_secs(60);

/// Layout id L stands for units of 2^(11+L) bytes. Source: CLOVIS_API.md A.5.
fn unit_of_layout(layout_id: u64) -> Result<Option<u32>, Failure> {
    if layout_id == 0 {
        return Ok(None);
    }
    let unit = (1..=14).contains(&layout_id).then(|| 1u64 << (11 + layout_id));
    match unit.filter(|unit| *unit <= limits::UNIT_BYTES_MAX) {
        Some(unit) => Ok(u32::try_from(unit).ok()),
        None => Err(Failure::new(format!(
            "layout id {layout_id} is not one of 1 to 9 (units of 4 KiB to {}), or 0 for the pool's own",
            bytes_text(limits::UNIT_BYTES_MAX)
        ))),
    }
}

/// Bytes that the flags `-s` and `-c` name. Errors: a size that is no multiple of the block, or nothing.
fn byte_count(args: &C0Args) -> Result<u64, Failure> {
    if args.block_size == 0 || !args.block_size.is_multiple_of(BLOCK_BYTES) {
        return Err(Failure::new(format!(
            "a block size of {} bytes is not a multiple of {BLOCK_BYTES}: objects are arrays of {BLOCK_BYTES}-byte blocks",
            args.block_size
        )));
    }
    match args.block_size.checked_mul(args.block_count) {
        Some(0) => Err(Failure::new("a block count of 0 names no bytes")),
        Some(bytes) => Ok(bytes),
        None => Err(Failure::new(format!(
            "{} blocks of {} bytes are more than 2^64-1 bytes",
            args.block_count, args.block_size
        ))),
    }
}

fn connect(args: &C0Args) -> Result<(Station, Client), Failure> {
    let path = find_cluster_file(None)?;
    let file = load_cluster_file(&path)?;
    let fabric = fabric_of(args.local)?;
    fabric_of(args.ha)?;
    if args.ha != file.control.endpoint {
        return Err(Failure::new(format!(
            "-H {} is not the control daemon of the cluster in {}: that is {}",
            args.ha,
            path.display(),
            file.control.endpoint
        )));
    }
    let is_taken = |server: &ServerSection| server.endpoints.contains(&args.local);
    if args.local == file.control.endpoint || file.servers.iter().any(is_taken) {
        return Err(Failure::new(format!(
            "-l {} is the endpoint of a daemon of this cluster: a client takes one of its own",
            args.local
        )));
    }
    if args.profile != file.cluster.profile {
        return Err(Failure::new(format!(
            "-p {} is not the cluster's profile: that is {}",
            args.profile, file.cluster.profile
        )));
    }
    if !args.process.is(FidType::Process) {
        return Err(Failure::new(format!(
            "-P {} is not a process fid: those begin with 0x72, as in 0x7200000000000000:0",
            args.process
        )));
    }
    let mut station = Station::new("c0")?;
    let config = ClientConfig {
        local: Some(args.local),
        read_verify: args.read_verify,
        ..client_config(&file, OP_TIMEOUT)
    };
    let client = station.client(&fabric, config)?;
    Ok((station, client))
}

/// `c0cp`
pub fn copy_in(args: &C0cpArgs) -> Result<(), Failure> {
    let common = &args.common;
    let wanted_bytes = byte_count(common)?;
    let unit_bytes = unit_of_layout(common.layout_id)?;
    let (file, file_bytes) = open_source(&args.source)?;
    if file_bytes > wanted_bytes {
        eprintln!(
            "c0cp: {} has {file_bytes} bytes; the first {wanted_bytes} are copied (-s times -c)",
            args.source.display()
        );
    }
    let (mut station, client) = connect(common)?;
    let opened = if args.update {
        station.wait(client.create_or_open(common.object, unit_bytes))?
    } else {
        station.wait(client.create(common.object, unit_bytes))?
    };
    let object = opened.map_err(|error| Failure::new(error.to_string()))?;
    let size_bytes = file_bytes.min(wanted_bytes);
    let progress = Progress::start(&format!("c0cp {}", common.object), size_bytes, false);
    store(&mut station, &client, &object, |offset, bytes| fill(&file, offset, size_bytes, bytes), &progress)
        .map(drop)
}

/// `c0cat`
pub fn copy_out(args: &C0catArgs) -> Result<(), Failure> {
    let common = &args.common;
    let wanted_bytes = byte_count(common)?;
    unit_of_layout(common.layout_id)?;
    let (mut station, client) = connect(common)?;
    let object =
        station.wait(client.open(common.object))?.map_err(|error| Failure::new(error.to_string()))?;
    if object.size() > wanted_bytes {
        eprintln!(
            "c0cat: object {} has {} bytes; the first {wanted_bytes} are given (-s times -c)",
            common.object,
            object.size()
        );
    }
    write_out(&mut station, &client, &object, wanted_bytes, args.output.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_ids_are_unit_sizes() {
        assert_eq!(unit_of_layout(0).unwrap(), None);
        assert_eq!(unit_of_layout(1).unwrap(), Some(4096));
        assert_eq!(unit_of_layout(9).unwrap(), Some(1 << 20));
        assert!(
            unit_of_layout(10).is_err() && unit_of_layout(15).is_err() && unit_of_layout(u64::MAX).is_err()
        );
    }
}
