//! The control daemon: configuration, service discovery, heartbeats, device states
