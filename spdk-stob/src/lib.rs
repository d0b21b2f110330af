//! Storage objects and transactional metadata over backends uring, mem and sim
