//! Bodies of every fop (request on the wire) and of its reply: data only, and the one codec that writes and reads them.
//!
//! Must not know: sessions, sockets, devices. A body is variable-shaped and goes through [`codec`]; the fixed headers around it
//! belong to `rpc`. Bytes are pinned by golden tests; docs/wire.md lists the opcodes.
//!
//! Start at [`Fop`]; the bodies are grouped by the service that answers them: [`conf`], [`conf_sync`], [`object`], [`component`], [`lock`],
//! [`watch`], [`rm`], [`repair`], [`member`], [`admin`]. What notifies carry is in [`news`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod codec;
pub mod component;
pub mod conf;
pub mod conf_sync;
mod error;
pub mod load;
pub mod lock;
pub mod member;
pub mod news;
pub mod object;
pub mod repair;
mod rights;
pub mod rm;
pub mod watch;

pub use error::FopError;

/// What kind of request this is: the number in the item header. Never reused, never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
#[non_exhaustive]
pub enum Opcode {
    /// [`conf::ConfGet`]
    ConfGet = 1,
    /// [`conf::Register`]
    Register = 2,
    /// [`conf::Heartbeat`]
    Heartbeat = 3,
    /// [`conf::DeviceReport`]
    DeviceReport = 4,
    /// [`conf::ClusterStatus`]
    ClusterStatus = 5,
    /// [`conf::ConfText`]
    ConfText = 6,
    /// [`conf::ConfApply`]
    ConfApply = 7,
    /// [`conf::ConfHistory`]
    ConfHistory = 8,
    /// [`conf::EventsGet`]
    EventsGet = 9,
    /// [`conf::DeviceCommand`]
    DeviceCommand = 10,
    /// [`object::ObjectOpen`]
    ObjectOpen = 16,
    /// [`object::ObjectUpdate`]
    ObjectUpdate = 17,
    /// [`object::ObjectDelete`]
    ObjectDelete = 18,
    /// [`object::ObjectList`]
    ObjectList = 19,
    /// [`object::ObjectForget`]
    ObjectForget = 20,
    /// [`component::ComponentWrite`]
    ComponentWrite = 32,
    /// [`component::ComponentRead`]
    ComponentRead = 33,
    /// [`component::ComponentDelete`]
    ComponentDelete = 34,
    /// [`component::ComponentPunch`]
    ComponentPunch = 35,
    /// [`admin::DeviceFault`]
    DeviceFault = 48,
    /// [`admin::Ping`]
    Ping = 49,
    /// [`admin::Shutdown`]
    Shutdown = 50,
    /// [`admin::NetFault`]
    NetFault = 51,
    /// [`admin::ProcessGet`]
    ProcessGet = 52,
    /// [`lock::LockTake`]
    LockTake = 60,
    /// [`lock::LockRelease`]
    LockRelease = 61,
    /// [`lock::LockRenew`]
    LockRenew = 62,
    /// [`lock::LockBreak`]
    LockBreak = 63,
    /// [`lock::LockList`]
    LockList = 64,
    /// [`lock::FencesGet`]
    FencesGet = 65,
    /// [`lock::Ticketed`] [`component::ComponentWrite`]
    TicketedWrite = 70,
    /// [`lock::Ticketed`] [`component::ComponentDelete`]
    TicketedComponentDelete = 71,
    /// [`lock::Ticketed`] [`object::ObjectOpen`]
    TicketedOpen = 72,
    /// [`lock::Ticketed`] [`object::ObjectUpdate`]
    TicketedUpdate = 73,
    /// [`lock::Ticketed`] [`object::ObjectDelete`]
    TicketedDelete = 74,
    /// [`watch::WatchRegister`]
    WatchRegister = 80,
    /// [`watch::WatchUnregister`]
    WatchUnregister = 81,
    /// [`watch::WatchPoll`]
    WatchPoll = 82,
    /// [`watch::WatchAck`]
    WatchAck = 83,
    /// [`watch::Notify`]
    Notify = 84,
    /// [`watch::WatchList`]
    WatchList = 85,
    /// [`watch::NotifyOutcomesGet`]
    NotifyOutcomesGet = 86,
    /// [`rm::RmBegin`]
    RmBegin = 90,
    /// [`rm::RmBorrow`]
    RmBorrow = 91,
    /// [`rm::RmReturn`]
    RmReturn = 92,
    /// [`rm::RmPoll`]
    RmPoll = 93,
    /// [`rm::RmList`]
    RmList = 94,
    /// [`load::LoadReport`]
    LoadReport = 100,
    /// [`load::LoadGet`]
    LoadGet = 101,
    /// [`repair::RepairTurn`]
    RepairTurn = 110,
    /// [`repair::RepairGet`]
    RepairGet = 111,
    /// [`member::MemberMessage`]
    MemberMessage = 120,
    /// [`member::MembersGet`]
    MembersGet = 121,
    /// [`member::MemberChange`]
    MemberChange = 122,
    /// [`member::BackupGet`]
    BackupGet = 123,
    /// [`conf_sync::ConfSync`]
    ConfSync = 130,
    /// [`conf_sync::ConfUpload`]
    ConfUpload = 131,
    /// [`conf_sync::ConfApplyUpload`]
    ConfApplyUpload = 132,
    /// [`conf_sync::StatusGet`]
    StatusGet = 133,
}

impl Opcode {
    /// All of them, by number.
    pub const ALL: &[Opcode] = &[
        Opcode::ConfGet,
        Opcode::Register,
        Opcode::Heartbeat,
        Opcode::DeviceReport,
        Opcode::ClusterStatus,
        Opcode::ConfText,
        Opcode::ConfApply,
        Opcode::ConfHistory,
        Opcode::EventsGet,
        Opcode::DeviceCommand,
        Opcode::ObjectOpen,
        Opcode::ObjectUpdate,
        Opcode::ObjectDelete,
        Opcode::ObjectList,
        Opcode::ObjectForget,
        Opcode::ComponentWrite,
        Opcode::ComponentRead,
        Opcode::ComponentDelete,
        Opcode::ComponentPunch,
        Opcode::DeviceFault,
        Opcode::Ping,
        Opcode::Shutdown,
        Opcode::NetFault,
        Opcode::ProcessGet,
        Opcode::LockTake,
        Opcode::LockRelease,
        Opcode::LockRenew,
        Opcode::LockBreak,
        Opcode::LockList,
        Opcode::FencesGet,
        Opcode::TicketedWrite,
        Opcode::TicketedComponentDelete,
        Opcode::TicketedOpen,
        Opcode::TicketedUpdate,
        Opcode::TicketedDelete,
        Opcode::WatchRegister,
        Opcode::WatchUnregister,
        Opcode::WatchPoll,
        Opcode::WatchAck,
        Opcode::Notify,
        Opcode::WatchList,
        Opcode::NotifyOutcomesGet,
        Opcode::RmBegin,
        Opcode::RmBorrow,
        Opcode::RmReturn,
        Opcode::RmPoll,
        Opcode::RmList,
        Opcode::LoadReport,
        Opcode::LoadGet,
        Opcode::RepairTurn,
        Opcode::RepairGet,
        Opcode::MemberMessage,
        Opcode::MembersGet,
        Opcode::MemberChange,
        Opcode::BackupGet,
        Opcode::ConfSync,
        Opcode::ConfUpload,
        Opcode::ConfApplyUpload,
        Opcode::StatusGet,
    ];

    /// The one with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Opcode> {
        Opcode::ALL.iter().copied().find(|opcode| *opcode as u16 == number)
    }
}

/// Whether a request may run again if its reply was lost and the session with its reply cache is gone too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Running it twice equals running it once: it changes nothing, or sets what is set anew all the time.
    Idempotent,
    /// It must not run twice: it changes what others read. Its service records it in the transaction of its effect.
    AtMostOnce,
}

/// A request body: its opcode, its reply's type, and how it may be repeated.
pub trait Fop: bincode::Encode + bincode::Decode<()> + 'static {
    /// The number on the wire.
    const OPCODE: Opcode;
    /// The word for logs and errors.
    const NAME: &'static str;
    /// Whether it may be repeated outside its session.
    const REPEAT: Repeat;
    /// The reply's body.
    type Reply: bincode::Encode + bincode::Decode<()> + 'static;
}

macro_rules! fop {
    ($body:ty, $reply:ty, $opcode:ident, $name:literal, $repeat:ident) => {
        impl $crate::Fop for $body {
            const OPCODE: $crate::Opcode = $crate::Opcode::$opcode;
            const NAME: &'static str = $name;
            const REPEAT: $crate::Repeat = $crate::Repeat::$repeat;
            type Reply = $reply;
        }
    };
}
pub(crate) use fop;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_is_listed_once_by_its_number() {
        let defined = include_str!("lib.rs").lines().filter(|line| {
            let number = line.strip_prefix("    ").and_then(|line| line.split_once(" = "));
            number.is_some_and(|(_, number)| number.trim_end_matches(',').parse::<u16>().is_ok())
        });
        assert_eq!(Opcode::ALL.len(), defined.count());
        assert!(Opcode::ALL.is_sorted_by(|one, other| one < other));
        assert_eq!(Opcode::from_number(32), Some(Opcode::ComponentWrite));
        assert_eq!(Opcode::from_number(999), None);
    }
}
