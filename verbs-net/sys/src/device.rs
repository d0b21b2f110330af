//! What devices there are and which GID an address belongs to: plain values and the choice, no verbs.

use std::fmt;
use std::net::Ipv4Addr;

/// Abilities that decide how we talk to a device. Found by asking and trying, never by version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Type 2 memory windows: a key per transfer.
    pub windows: bool,
    /// A receive queue for all queue pairs.
    pub shared_receive_queue: bool,
    /// `ibv_wr_*`: batches without a chain in memory.
    pub extended_queue_pair: bool,
    /// `ibv_start_poll` and its kin.
    pub extended_completion_queue: bool,
    /// Pages on demand. Reported, not used.
    pub on_demand_paging: bool,
    /// Bytes that may be sent inline (known once a queue pair was made).
    pub inline_bytes: u32,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.windows, "memory-windows"),
            (self.shared_receive_queue, "shared-receive-queue"),
            (self.extended_queue_pair, "extended-queue-pair"),
            (self.extended_completion_queue, "extended-completion-queue"),
        ];
        let mut first = true;
        for (_, word) in words.iter().filter(|(has, _)| *has) {
            f.write_str(if first { "" } else { " " })?;
            f.write_str(word)?;
            first = false;
        }
        if first { f.write_str("none") } else { Ok(()) }
    }
}

/// What to do without though the device has it: every fallback can be tried on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Without {
    /// No memory windows: pool keys.
    pub windows: bool,
    /// No shared receive queue: one per queue pair.
    pub shared_receive_queue: bool,
    /// No extended verbs: chains and `ibv_poll_cq`.
    pub extended: bool,
    /// Nothing inline.
    pub inline: bool,
}

impl Without {
    /// The variable that [`Without::from_environment`] reads: words out of `windows srq extended inline`, with commas.
    pub const VARIABLE: &'static str = "CLOVIS_RDMA_WITHOUT";

    /// From words with commas between them.
    ///
    /// # Errors
    /// The word that is unknown.
    pub fn parse(words: &str) -> Result<Without, String> {
        let mut without = Without::default();
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "windows" => without.windows = true,
                "srq" => without.shared_receive_queue = true,
                "extended" => without.extended = true,
                "inline" => without.inline = true,
                _ => return Err(word.to_owned()),
            }
        }
        Ok(without)
    }

    /// As the environment says; nothing where it says nothing.
    ///
    /// # Errors
    /// The word that is unknown.
    pub fn from_environment() -> Result<Without, String> {
        std::env::var(Without::VARIABLE).map_or(Ok(Without::default()), |words| Without::parse(&words))
    }
}

/// What is under a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE or iWARP.
    Ethernet,
}

/// State of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Carries traffic.
    Active,
    /// No link.
    Down,
    /// On its way (INIT, ARMED and the like), as its number.
    Other(u32),
}

/// Kind of a GID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE version 1: Ethernet frames, not routed.
    RoceV1,
    /// RoCE version 2: UDP.
    RoceV2,
    /// Unknown to us.
    Other(u32),
}

/// One entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidInfo {
    /// Its index.
    pub index: u32,
    /// The GID.
    pub gid: [u8; 16],
    /// Its kind.
    pub kind: GidKind,
    /// The network interface it belongs to.
    pub interface: Option<String>,
}

impl GidInfo {
    /// The IPv4 address in it, if there is one (`::ffff:a.b.c.d`).
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        let mapped = self.gid[..10].iter().all(|byte| *byte == 0) && self.gid[10..12] == [0xff, 0xff];
        mapped.then(|| Ipv4Addr::new(self.gid[12], self.gid[13], self.gid[14], self.gid[15]))
    }
}

/// One port of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// From 1.
    pub number: u8,
    /// Its state.
    pub state: PortState,
    /// What is under it.
    pub link_layer: LinkLayer,
    /// Bytes of payload per packet now.
    pub mtu_bytes: u32,
    /// Its GIDs.
    pub gids: Vec<GidInfo>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// As in `rdma link`.
    pub name: String,
    /// Firmware, as it tells.
    pub firmware: String,
    /// The vendor's number; 0xffffff is soft-RoCE.
    pub vendor: u32,
    /// Queue pairs at most.
    pub queue_pairs_max: u32,
    /// Operations per queue at most.
    pub work_requests_max: u32,
    /// Entries of a completion queue at most.
    pub completions_max: u32,
    /// RDMA READs in flight per queue pair at most.
    pub reads_max: u32,
    /// What it can do, after the mask.
    pub capabilities: Capabilities,
    /// Its ports.
    pub ports: Vec<PortInfo>,
}

/// Which GID an address uses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidChoice {
    /// Device.
    pub device: String,
    /// Port.
    pub port: u8,
    /// Index in the port's table.
    pub index: u32,
    /// In words.
    pub reason: String,
}

/// The GID for `address`: RoCE version 2 with this very IPv4 address, on an active port if there is one. On InfiniBand the first
/// GID of the port, for rdma-cm finds the port from the address of its IPoIB interface. Never index 0 blindly.
///
/// # Errors
/// No GID of any device has this address; the addresses that have one.
pub fn choose_gid(devices: &[DeviceInfo], address: Ipv4Addr) -> Result<GidChoice, Vec<Ipv4Addr>> {
    let mut known = Vec::new();
    let mut best: Option<(u8, GidChoice)> = None;
    for device in devices {
        for port in &device.ports {
            for gid in &port.gids {
                let Some(found) = gid.ipv4() else { continue };
                if !known.contains(&found) {
                    known.push(found);
                }
                if found != address {
                    continue;
                }
                let (rank, why) = match (gid.kind, port.state) {
                    (GidKind::RoceV2, PortState::Active) => (3, "RoCE v2 with this address, port active"),
                    (GidKind::RoceV2, _) => (2, "RoCE v2 with this address, but the port is not active"),
                    (GidKind::RoceV1, _) => (1, "RoCE v1 with this address: not routed, no v2 entry there"),
                    _ => (0, "an entry with this address"),
                };
                if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                    let interface = gid.interface.as_deref().unwrap_or("unknown interface");
                    let reason = format!("{why} ({interface}, GID index {})", gid.index);
                    let choice = GidChoice {
                        device: device.name.clone(),
                        port: port.number,
                        index: gid.index,
                        reason,
                    };
                    best = Some((rank, choice));
                }
            }
        }
    }
    best.map(|(_, choice)| choice).ok_or(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u32, kind: GidKind, address: Option<[u8; 4]>) -> GidInfo {
        let mut gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        if let Some(address) = address {
            gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
            gid[12..].copy_from_slice(&address);
        }
        GidInfo { index, gid, kind, interface: Some("eth0".into()) }
    }

    fn device(name: &str, state: PortState, gids: Vec<GidInfo>) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            firmware: String::new(),
            vendor: 0,
            queue_pairs_max: 1,
            work_requests_max: 1,
            completions_max: 1,
            reads_max: 1,
            capabilities: Capabilities::default(),
            ports: vec![PortInfo {
                number: 1,
                state,
                link_layer: LinkLayer::Ethernet,
                mtu_bytes: 1024,
                gids,
            }],
        }
    }

    #[test]
    fn the_gid_is_the_one_with_the_address_and_version_two() {
        let wanted = [10, 9, 0, 1];
        let devices = [
            device(
                "a",
                PortState::Active,
                vec![gid(0, GidKind::RoceV2, None), gid(1, GidKind::RoceV2, Some([10, 9, 0, 2]))],
            ),
            device(
                "b",
                PortState::Active,
                vec![
                    gid(0, GidKind::RoceV2, None),
                    gid(2, GidKind::RoceV1, Some(wanted)),
                    gid(3, GidKind::RoceV2, Some(wanted)),
                ],
            ),
        ];
        let choice = choose_gid(&devices, wanted.into()).unwrap();
        assert_eq!((choice.device.as_str(), choice.port, choice.index), ("b", 1, 3));
        assert!(choice.reason.contains("RoCE v2") && choice.reason.contains("eth0"), "{}", choice.reason);
        assert_eq!(
            choose_gid(&devices, [10, 9, 0, 9].into()).unwrap_err(),
            [Ipv4Addr::from([10, 9, 0, 2]), Ipv4Addr::from(wanted)]
        );
    }

    #[test]
    fn link_local_gids_are_never_chosen_and_a_down_port_is_the_last_resort() {
        let only_link_local = [device("a", PortState::Active, vec![gid(0, GidKind::RoceV2, None)])];
        assert_eq!(choose_gid(&only_link_local, [10, 9, 0, 1].into()), Err(vec![]));
        let down = [
            device("down", PortState::Down, vec![gid(1, GidKind::RoceV2, Some([10, 9, 0, 1]))]),
            device("up", PortState::Active, vec![gid(1, GidKind::RoceV2, Some([10, 9, 0, 1]))]),
        ];
        assert_eq!(choose_gid(&down, [10, 9, 0, 1].into()).unwrap().device, "up");
        let choice = choose_gid(&down[..1], [10, 9, 0, 1].into()).unwrap();
        assert!(choice.reason.contains("not active"));
    }

    #[test]
    fn the_mask_names_what_to_do_without() {
        let mask = Without::parse("windows, srq,extended,inline").unwrap();
        assert!(mask.windows && mask.shared_receive_queue && mask.extended && mask.inline);
        assert_eq!(Without::parse(""), Ok(Without::default()));
        assert_eq!(Without::parse("windows,wings"), Err("wings".into()));
    }
}
