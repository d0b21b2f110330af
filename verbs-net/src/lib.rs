//! LNet-like messaging: transfer machines over backends lo, tcp and sim
