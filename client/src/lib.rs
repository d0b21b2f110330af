//! The Rust client: objects, operations, degraded I/O
