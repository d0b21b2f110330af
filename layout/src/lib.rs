//! Parity declustering: where units live, plans for reads and writes, degraded plans. Pure.
