//! What clients and servers need of control: the configuration's types, a cached copy of it, registration and heartbeats.
//!
//! Must not know: how control stores the configuration, or who decides a device's state.
#![forbid(unsafe_code)]

pub mod configuration;

pub use configuration::{Configuration, DeviceConfig, DeviceState, PoolConfig, ProcessConfig};
