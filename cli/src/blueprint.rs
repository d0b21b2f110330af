//! Plans a new cluster: fids, endpoints, device files. What `cluster start` and `quickstart` make is the same cluster,
//! once over TCP between processes and once in one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use base::units::{KIB, MIB};
use base::{Endpoint, Fid, FidType, LayoutWidth, limits};
use faces::cluster_file::{
    ClusterFile, ClusterId, ClusterSection, ControlMember, ControlSection, Credential, DeviceSection,
    PoolSection, ProfileSection, SecurityKind, ServerSection, Transport,
};
use faces::limits::store_bytes_for;
use faces::{ClusterTree, ConfigError};

use crate::failure::Failure;

/// The profile of a cluster that has one: the one that the examples of old name.
pub const PROFILE: Fid = Fid::new(FidType::Profile, 1, 0);

/// Size of the control daemon's store.
pub const CONTROL_STORE_BYTES: u64 = 16 * MIB;

/// What a new cluster shall be.
#[derive(Debug)]
pub struct Blueprint {
    /// Name for people.
    pub name: String,
    /// Network between the members.
    pub transport: Transport,
    /// N+K+S.
    pub width: LayoutWidth,
    /// Control daemons.
    pub controls: u32,
    /// Server processes.
    pub servers: u32,
    /// Localities of each server.
    pub localities: u32,
    /// Devices in all; device i belongs to server i modulo `servers`, and goes round over its localities.
    pub devices: u32,
    /// Bytes of each device.
    pub device_bytes: u64,
    /// First of the ports on which the processes tell their metrics, on the loopback: of control, of the servers, and of further control daemons.
    pub metrics_port: Option<u16>,
    /// How its members prove that they are.
    pub security: SecurityKind,
    /// Everything between them is encrypted.
    pub encrypt: bool,
}

/// 32 bytes and a number from the operating system's source of randomness.
fn secrets() -> Result<(Credential, u64), Failure> {
    let mut bytes = [0u8; 40];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes))
        .map_err(Failure::while_doing("reading /dev/urandom for the cluster's credential"))?;
    let mut credential = [0u8; 32];
    credential.copy_from_slice(&bytes[..32]);
    let mut id = [0u8; 8];
    id.copy_from_slice(&bytes[32..]);
    Ok((Credential::from_bytes(credential), u64::from_le_bytes(id)))
}

impl Blueprint {
    /// Where the process at a position tells its metrics. Errors: no such port.
    fn metrics(&self, position: u32) -> Result<Option<SocketAddr>, Failure> {
        let Some(first) = self.metrics_port else { return Ok(None) };
        let port = u16::try_from(u32::from(first) + position).map_err(|_| {
            Failure::new(format!("{} ports from {first} on go beyond 65535", self.servers + 1))
        })?;
        Ok(Some((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// Endpoints that [`Blueprint::draw`] takes: one for each control daemon, and one for each locality of each server.
    pub const fn endpoints_count(&self) -> u32 {
        self.controls + self.servers * self.localities
    }

    /// The control daemons beside the first.
    fn further_controls(&self, endpoints: &[Endpoint]) -> Result<Vec<ControlMember>, Failure> {
        let further = (0..).zip(endpoints).map(|(index, endpoint)| {
            let number = u64::from(index) + 2;
            Ok(ControlMember {
                number,
                endpoint: *endpoint,
                store: PathBuf::from(format!("control-{number}.dev")),
                metrics: self.metrics(self.servers + 1 + index)?,
            })
        });
        further.collect()
    }

    /// The cluster file. `endpoints`: those of control first, then those of each server, one for each of its localities.
    ///
    /// Errors: fewer devices than the layout is wide, no randomness, or whatever else a cluster file may not say.
    pub fn draw(&self, endpoints: &[Endpoint]) -> Result<ClusterFile, Failure> {
        if self.devices < self.width.width() {
            return Err(Failure::new(format!(
                "the layout {} needs at least {} devices, and there are {}: take more devices or a narrower layout",
                self.width,
                self.width.width(),
                self.devices
            )));
        }
        let (credential, id) = secrets()?;
        let controls = usize::try_from(self.controls).unwrap_or(usize::MAX);
        let Some(([control, further @ ..], servers)) = endpoints.split_at_checked(controls) else {
            return Err(Failure::new(
                "a cluster needs an endpoint for each control daemon, and at least one",
            ));
        };
        let process = |index: u32| Fid::new(FidType::Process, 1, u64::from(index) + 1);
        let mut file = ClusterFile {
            cluster: ClusterSection {
                name: self.name.clone(),
                id: ClusterId(id),
                profile: PROFILE,
                transport: self.transport,
                security: self.security,
                encrypt: self.encrypt,
                credential: (self.security == SecurityKind::Shared).then_some(credential),
            },
            control: ControlSection {
                endpoint: *control,
                store: PathBuf::from("control.dev"),
                store_bytes: CONTROL_STORE_BYTES,
                metrics: self.metrics(0)?,
                number: None,
                members: self.further_controls(further)?,
            },
            pool: PoolSection {
                fid: Fid::new(FidType::Pool, 1, 1),
                version: Fid::new(FidType::PoolVersion, 1, 1),
                layout: self.width,
                unit_bytes: limits::UNIT_BYTES_DEFAULT,
                name: None,
                devices: None,
            },
            pool_versions: Vec::new(),
            profile: ProfileSection::default(),
            servers: (0..self.servers)
                .zip(servers.chunks(usize::try_from(self.localities.max(1)).unwrap_or(usize::MAX)))
                .map(|(index, endpoints)| {
                    Ok(ServerSection {
                        process: process(index),
                        endpoints: endpoints.to_vec(),
                        rails: Vec::new(),
                        metrics: self.metrics(index + 1)?,
                        node: None,
                    })
                })
                .collect::<Result<_, Failure>>()?,
            devices: (0..self.devices)
                .map(|index| DeviceSection {
                    fid: Fid::new(FidType::Device, 1, u64::from(index) + 1),
                    server: process(index % self.servers),
                    locality: index / self.servers % self.localities.max(1),
                    path: PathBuf::from(format!("devices/device-{index}.dev")),
                    size_bytes: self.device_bytes,
                    disk: None,
                })
                .collect(),
            tree: ClusterTree::default(),
        };
        let said = |error: ConfigError| Failure::new(error.to_string());
        file.validate().map_err(said)?;
        // The file of a large cluster needs a larger store, and a little more may be written into it.
        let text_bytes = file.to_toml().map_err(said)?.len();
        file.control.store_bytes = file.control.store_bytes.max(store_bytes_for(text_bytes * 2));
        Ok(file)
    }
}

/// Bytes that each of `devices` devices needs so that `object_bytes` fit twice (a replacement stands beside the old
/// bytes until it is committed), with room for the log and checkpoints; a multiple of 1 MiB.
pub fn device_bytes_for(object_bytes: u64, width: LayoutWidth, devices: u32) -> u64 {
    let coded = u128::from(object_bytes) * u128::from(width.coded()) / u128::from(width.data());
    let share = u64::try_from(2 * coded / u128::from(devices.max(1))).unwrap_or(u64::MAX / 2);
    let with_metadata = share.saturating_add(share / 8).saturating_add(64 * MIB);
    with_metadata.next_multiple_of(MIB)
}

const _: () = assert!(CONTROL_STORE_BYTES.is_multiple_of(64 * KIB));

#[cfg(test)]
mod tests {
    use super::*;
    use base::Nid;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (0..count).map(|tmid| Endpoint { nid: Nid::LOOPBACK, pid: 12345, portal: 34, tmid }).collect()
    }

    fn blueprint(devices: u32) -> Blueprint {
        Blueprint {
            controls: 1,
            name: "test".to_owned(),
            transport: Transport::Lo,
            width: "4+2+1".parse().unwrap(),
            servers: 4,
            localities: 1,
            devices,
            device_bytes: 64 * MIB,
            metrics_port: None,
            security: SecurityKind::Shared,
            encrypt: false,
        }
    }

    #[test]
    fn metrics_have_a_row_of_ports_or_none() {
        let with_port = |port| Blueprint { metrics_port: Some(port), ..blueprint(8) };
        let file = with_port(9640).draw(&endpoints(5)).unwrap();
        assert_eq!(file.control.metrics, Some("127.0.0.1:9640".parse().unwrap()));
        assert_eq!(file.servers[3].metrics, Some("127.0.0.1:9644".parse().unwrap()));
        assert!(with_port(65_532).draw(&endpoints(5)).unwrap_err().to_string().contains("65535"));
        assert_eq!(blueprint(8).draw(&endpoints(5)).unwrap().control.metrics, None);
    }

    #[test]
    fn a_drawn_cluster_is_valid_and_spreads_devices_over_servers() {
        let file = blueprint(8).draw(&endpoints(5)).unwrap();
        assert_eq!(file.servers.len(), 4);
        for server in &file.servers {
            assert_eq!(file.devices_of(server.process).count(), 2);
        }
        assert_eq!(ClusterFile::parse(&file.to_toml().unwrap()).unwrap(), file);
    }

    #[test]
    fn the_devices_of_a_server_go_round_over_its_localities() {
        let blueprint = Blueprint { localities: 2, ..blueprint(12) };
        assert_eq!(blueprint.endpoints_count(), 9);
        let file = blueprint.draw(&endpoints(9)).unwrap();
        for server in &file.servers {
            let localities: Vec<u32> =
                file.devices_of(server.process).map(|device| device.locality).collect();
            assert_eq!((server.endpoints.len(), localities), (2, vec![0, 1, 0]));
        }
    }

    #[test]
    fn too_few_devices_are_refused_with_the_numbers() {
        let refusal = blueprint(6).draw(&endpoints(5)).unwrap_err().to_string();
        assert!(refusal.contains("needs at least 7 devices, and there are 6"), "{refusal}");
    }
}
