//! The Rust example of README.md as a whole program: `CLOVIS_CONFIG=DIR/clovis.toml cargo run -p clovis-tests --example hello`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base::ByteExtent;
use client::{Client, ClientConfig, security_of};
use faces::ClusterFile;
use runtime::{Arena, ArenaConfig, Locality, LocalityConfig, MonotonicClock, identity};
use verbs_net::Fabric;

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::var("CLOVIS_CONFIG")?);
    let file = ClusterFile::parse(&std::fs::read_to_string(&path)?)?;
    let config = ClientConfig {
        local: None,
        control: file.control.endpoint,
        further_controls: file.further_controls(),
        security: security_of(&file, &path, None)?,
        epoch: identity::unique_u64()?,
        op_timeout: Duration::from_secs(30),
        read_verify: false,
    };
    let mut locality = Locality::new(LocalityConfig {
        index: 0,
        name: "hello".to_owned(),
        seed: identity::unique_u64()?,
        counters: Arc::default(),
        arena: Arena::new(ArenaConfig { capacity_bytes: 64 << 20 })?,
        crowd: None,
    });
    let handle = locality.handle();
    locality.block_on(&MonotonicClock::start(), async {
        let client = Client::connect(&handle, &Fabric::Tcp, config).await?;
        let object = client.create_or_open("13:38".parse()?, None).await?;
        let mut buffer = handle.arena().alloc(4096).await;
        buffer.fill(0);
        buffer[..5].copy_from_slice(b"hello");
        let extent = ByteExtent { start: 0, count: 4096 };
        object.write(extent, vec![buffer.freeze()]).await?;
        let back = object.read(extent).await?;
        println!("{}", std::str::from_utf8(&back[0][..5])?);
        client.delete(object.id()).await?;
        Ok(())
    })?
}
