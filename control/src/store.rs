//! Control's durable state: the configuration, in a tree of a domain of its own.
//!
//! **Invariant**: what was saved is what a restart finds; a save is whole or absent (one transaction). Key, format
//! version and bytes: docs/configuration.md#controls-store. Left over: a device error, after which control changes nothing.

use base::{Fid, FidType};
use faces::Configuration;
use runtime::LocalityHandle;
use spdk_stob::{Backend, Domain, FormatParams, StobError, TreeId};

use crate::error::ControlError;

/// The tree of control's state.
const TREE: TreeId = TreeId(1);
/// The one key.
const KEY: &[u8] = b"configuration";
/// Format version before the encoded configuration.
const FORMAT_VERSION: u32 = 1;

/// The open store.
pub(crate) struct Store {
    domain: Domain,
}

impl Store {
    /// Opens the store of a cluster and reads what it has; formats a blank one.
    ///
    /// Errors: not a store, of another cluster, damaged, or written by a newer program.
    pub(crate) async fn open(
        locality: &LocalityHandle,
        backend: Box<dyn Backend>,
        cluster: u64,
    ) -> Result<(Store, Option<Configuration>), ControlError> {
        let device = Fid::new(FidType::Root, 0, cluster);
        let params = FormatParams { device, cluster };
        let domain = Domain::open_or_format(locality, backend, params).await.map_err(ControlError::Store)?;
        let stored = match domain.tree_get(TREE, KEY) {
            Some(value) => Some(decode(&value)?),
            None => None,
        };
        Ok((Store { domain }, stored))
    }

    /// Durable when it returns.
    pub(crate) async fn save(&self, configuration: &Configuration) -> Result<(), ControlError> {
        let mut value = FORMAT_VERSION.to_le_bytes().to_vec();
        value.extend(configuration.to_bytes().map_err(ControlError::Configuration)?);
        let mut transaction = self.domain.begin();
        transaction.tree_put(TREE, KEY, &value);
        self.domain.commit(transaction).await.map_err(ControlError::Store)
    }

    /// Ends with a checkpoint.
    pub(crate) async fn close(&self) -> Result<(), StobError> {
        self.domain.clone().close().await
    }
}

fn decode(value: &[u8]) -> Result<Configuration, ControlError> {
    let (version, bytes) = value.split_first_chunk::<4>().ok_or(ControlError::StoreFormat { found: 0 })?;
    match u32::from_le_bytes(*version) {
        FORMAT_VERSION => Configuration::from_bytes(bytes).map_err(ControlError::Configuration),
        found => Err(ControlError::StoreFormat { found }),
    }
}
