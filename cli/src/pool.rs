//! `clovis pool list` and `show`: what a pool is made of, how much it has, and how much more it may lose.
//!
//! Sums are of devices that registered and said how much is free; those that did not are counted apart, never guessed. There is one pool for
//! now. Start at [`Pool::of`].

use base::units::BLOCK_BYTES;
use faces::DeviceState;
use faces::cluster_file::ClusterFile;
use fops::conf::{ClusterStatusReply, DeviceStatus};
use serde_json::{Value, json};

use crate::args::{PoolCommand, PoolListArgs, PoolShowArgs};
use crate::conf::Desk;
use crate::daemon::server_name;
use crate::failure::Failure;
use crate::output;
use crate::table::{Align, Table, bytes_text};

/// `clovis pool`
pub fn run(command: &PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::List(args) => list(args),
        PoolCommand::Show(args) => show(args),
    }
}

fn list(args: &PoolListArgs) -> Result<(), Failure> {
    let (in_force, status) = Desk::open(&args.connect)?.status()?;
    let pool = Pool::of(&in_force.file, &status);
    if args.json {
        return output::line(&json!({ "pools": [pool.json()] }).to_string());
    }
    let mut table = Table::new(&[
        ("pool", Align::Left),
        ("layout", Align::Left),
        ("devices", Align::Right),
        ("online", Align::Right),
        ("size", Align::Right),
        ("used", Align::Right),
        ("free", Align::Right),
        ("may lose", Align::Right),
    ]);
    table.row([
        in_force.file.pool.fid.to_string(),
        in_force.file.pool.layout.to_string(),
        in_force.file.devices.len().to_string(),
        pool.online.to_string(),
        bytes_text(pool.size_bytes),
        bytes_text(pool.used_bytes()),
        bytes_text(pool.free_bytes),
        pool.may_lose.to_string(),
    ]);
    output::print(&format!("{}{}", table.render(), pool.remark()))
}

fn show(args: &PoolShowArgs) -> Result<(), Failure> {
    let (in_force, status) = Desk::open(&args.connect)?.status()?;
    let name = in_force.file.pool.fid;
    if let Some(wanted) = args.pool.filter(|wanted| *wanted != name) {
        return Err(Failure::new(format!("{wanted} is no pool of this cluster: it has one, {name}")));
    }
    let pool = Pool::of(&in_force.file, &status);
    if args.json {
        return output::line(&pool.json().to_string());
    }
    output::print(&pool.text())
}

/// A pool and its sums.
struct Pool<'a> {
    file: &'a ClusterFile,
    status: &'a ClusterStatusReply,
    online: usize,
    /// Of devices that said how much is free, like the next.
    size_bytes: u64,
    free_bytes: u64,
    /// Devices that are in no sum.
    silent: usize,
    /// Devices that may go now, and every object can be read.
    may_lose: usize,
}

fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_BYTES)
}

impl Pool<'_> {
    fn of<'a>(file: &'a ClusterFile, status: &'a ClusterStatusReply) -> Pool<'a> {
        let mut pool = Pool { file, status, online: 0, size_bytes: 0, free_bytes: 0, silent: 0, may_lose: 0 };
        for section in &file.devices {
            let found = status.devices.iter().find(|one| one.device == section.fid);
            pool.online += usize::from(found.is_some_and(|one| one.state == DeviceState::Online.word()));
            match found.and_then(|one| Some((one.size_blocks, one.free_blocks?))) {
                Some((size, free)) => {
                    pool.size_bytes = pool.size_bytes.saturating_add(bytes(size));
                    pool.free_bytes = pool.free_bytes.saturating_add(bytes(free));
                }
                None => pool.silent += 1,
            }
        }
        let parity = usize::try_from(file.pool.layout.parity()).unwrap_or(usize::MAX);
        pool.may_lose = parity.saturating_sub(file.devices.len() - pool.online);
        pool
    }

    fn used_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.free_bytes)
    }

    /// What of the free bytes data can have, with parity beside it, if it spreads evenly over the devices; spare units take none before a repair.
    fn free_for_data_bytes(&self) -> u64 {
        let (data, parity) =
            (u64::from(self.file.pool.layout.data()), u64::from(self.file.pool.layout.parity()));
        self.free_bytes / (data + parity).max(1) * data
    }

    fn remark(&self) -> String {
        match self.silent {
            0 => String::new(),
            count => format!("{count} devices did not say how much they have free: they are in no sum\n"),
        }
    }

    fn text(&self) -> String {
        let pool = &self.file.pool;
        let mut table = Table::new(&[
            ("target", Align::Right),
            ("device", Align::Left),
            ("state", Align::Left),
            ("server", Align::Left),
            ("size", Align::Right),
            ("used", Align::Right),
            ("free", Align::Right),
        ]);
        let size =
            |blocks: Option<u64>| blocks.map_or_else(|| "-".to_owned(), |blocks| bytes_text(bytes(blocks)));
        for (target, section) in self.file.devices.iter().enumerate() {
            let found = self.status.devices.iter().find(|one| one.device == section.fid);
            let free = found.and_then(|one| one.free_blocks);
            let blocks = found.map(|one| one.size_blocks).filter(|blocks| *blocks > 0);
            let used = blocks.zip(free).map(|(blocks, free)| blocks.saturating_sub(free));
            table.row([
                target.to_string(),
                section.fid.to_string(),
                found.map_or("unknown", |one| one.state.as_str()).to_owned(),
                server_name(section.server),
                size(blocks),
                size(used),
                size(free),
            ]);
        }
        let lose = match self.may_lose {
            0 => "no further device may be lost".to_owned(),
            count => format!("{count} more may be lost, and every object can be read"),
        };
        format!(
            "pool {}, version {}, layout {}, units of {}\n{} of {} devices online: {lose}\n{}, {} used, {} free: room for about {} of data, spread evenly\n{}\n{}",
            pool.fid,
            pool.version,
            pool.layout,
            bytes_text(pool.unit_bytes),
            self.online,
            self.file.devices.len(),
            bytes_text(self.size_bytes),
            bytes_text(self.used_bytes()),
            bytes_text(self.free_bytes),
            bytes_text(self.free_for_data_bytes()),
            self.remark(),
            table.render()
        )
    }

    fn json(&self) -> Value {
        let pool = &self.file.pool;
        let devices = self.file.devices.iter().enumerate().map(|(target, section)| {
            let found: Option<&DeviceStatus> = self.status.devices.iter().find(|one| one.device == section.fid);
            json!({ "target": target, "fid": section.fid.to_string(), "state": found.map_or("unknown", |one| one.state.as_str()),
                    "server": server_name(section.server), "size_bytes": found.map(|one| bytes(one.size_blocks)),
                    "free_bytes": found.and_then(|one| one.free_blocks).map(bytes) })
        });
        json!({
            "fid": pool.fid.to_string(), "version": pool.version.to_string(), "layout": pool.layout.to_string(), "unit_bytes": pool.unit_bytes,
            "online": self.online, "may_lose": self.may_lose, "size_bytes": self.size_bytes, "used_bytes": self.used_bytes(),
            "free_bytes": self.free_bytes, "free_for_data_bytes": self.free_for_data_bytes(), "devices_in_no_sum": self.silent,
            "devices": devices.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_leave_out_who_did_not_say_and_losses_are_counted_off() {
        let text = include_str!("../../control/faces/src/cluster_file_example.toml");
        let file = ClusterFile::parse(text).unwrap();
        let device = |index: usize, state: &str, free_blocks| DeviceStatus {
            device: file.devices[index].fid,
            state: state.to_owned(),
            size_blocks: 1000,
            free_blocks,
            errors: 0,
        };
        let devices = vec![
            device(0, "online", Some(400)),
            device(1, "online", Some(500)),
            device(2, "online", None),
            device(3, "online", Some(600)),
        ];
        let mut status = ClusterStatusReply { version: 9, processes: Vec::new(), devices };
        let pool = Pool::of(&file, &status);
        assert_eq!((pool.online, pool.silent, pool.may_lose), (4, 1, 1));
        assert_eq!((pool.size_bytes, pool.free_bytes), (3000 * BLOCK_BYTES, 1500 * BLOCK_BYTES));
        assert_eq!(pool.free_for_data_bytes(), 1000 * BLOCK_BYTES, "2 of 3 units are data");
        assert!(pool.text().contains("1 devices did not say"), "{}", pool.text());
        status.devices[1].state = "detached".to_owned();
        let pool = Pool::of(&file, &status);
        assert_eq!((pool.online, pool.may_lose), (3, 0));
        assert!(pool.text().contains("no further device may be lost"));
        status.devices.clear();
        assert_eq!(Pool::of(&file, &status).json()["devices_in_no_sum"], 4);
    }
}
