//! Reed-Solomon kernels over GF(2^8): SIMD and scalar
