//! What clients and servers need of control: configuration types, cached configuration, device states
