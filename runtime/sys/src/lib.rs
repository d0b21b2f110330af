//! The unsafe edge of the runtime: memory mapping, io_uring, epoll, affinity
