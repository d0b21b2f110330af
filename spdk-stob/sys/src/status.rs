//! The status of an NVMe command: status code type and status code, with the names that operators meet.
//!
//! Source: NVM Express Base Specification 2.0, section 4.2.3 (status field), and NVM Command Set Specification 1.0, section 2.

use std::fmt;

/// What a controller answered to a command.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NvmeStatus {
    /// Status code type: 0 generic, 1 of the command, 2 media and data, 3 path.
    pub kind: u8,
    /// Status code within its type.
    pub code: u8,
    /// The controller says that the same command would fail again.
    pub is_final: bool,
}

impl NvmeStatus {
    /// Done as asked.
    pub const SUCCESS: NvmeStatus = NvmeStatus { kind: 0, code: 0, is_final: false };
    /// The command was taken back by an abort.
    pub const ABORTED: NvmeStatus = NvmeStatus { kind: 0, code: 0x07, is_final: false };
    /// The queue went away under the command.
    pub const QUEUE_DELETED: NvmeStatus = NvmeStatus { kind: 0, code: 0x08, is_final: false };

    /// From the status field of a completion entry, phase bit in bit 0.
    #[must_use]
    pub const fn from_field(field: u16) -> NvmeStatus {
        NvmeStatus {
            kind: ((field >> 9) & 7) as u8,
            code: ((field >> 1) & 0xff) as u8,
            is_final: field >> 15 != 0,
        }
    }

    /// The field that [`NvmeStatus::from_field`] reads, with phase bit 0.
    #[must_use]
    pub const fn to_field(self) -> u16 {
        (self.code as u16) << 1 | ((self.kind & 7) as u16) << 9 | (self.is_final as u16) << 15
    }

    /// Done as asked.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.kind == 0 && self.code == 0
    }

    /// What the specification calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match (self.kind, self.code) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "invalid field in command",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted by power loss",
            (0, 0x06) => "internal device error",
            (0, 0x07) => "aborted on request",
            (0, 0x08) => "aborted because its queue was deleted",
            (0, 0x0b) => "invalid namespace",
            (0, 0x13) => "invalid address of memory",
            (0, 0x1d) => "sanitize in progress",
            (0, 0x20) => "namespace is write protected",
            (0, 0x80) => "blocks out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "namespace not ready",
            (0, 0x83) => "reservation conflict",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x82) => "end-to-end guard check error",
            (2, 0x83) => "end-to-end application tag check error",
            (2, 0x84) => "end-to-end reference tag check error",
            (2, 0x86) => "access denied",
            (2, 0x87) => "deallocated or unwritten block",
            (0, _) => "generic error",
            (1, _) => "command specific error",
            (2, _) => "media or data error",
            (3, _) => "path error",
            _ => "vendor specific error",
        }
    }
}

impl fmt::Display for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (NVMe status {:#x}/{:#04x})", self.name(), self.kind, self.code)
    }
}

impl fmt::Debug for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_the_specifications() {
        // Phase 1, do not retry, type 2, code 0x81: bits 15, 11..9 = 010, 8..1.
        let status = NvmeStatus::from_field(0x8000 | 2 << 9 | 0x81 << 1 | 1);
        assert_eq!(status, NvmeStatus { kind: 2, code: 0x81, is_final: true });
        assert_eq!(status.to_string(), "unrecovered read error (NVMe status 0x2/0x81)");
        assert!(NvmeStatus::from_field(1).is_success());
        for field in (0..=u16::MAX).step_by(2) {
            // Bits 12..14 (retry delay, more) are not ours.
            assert_eq!(NvmeStatus::from_field(field).to_field(), field & 0x8ffe);
        }
    }
}
