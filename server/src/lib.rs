//! The data services: component objects and object records on this server's devices
