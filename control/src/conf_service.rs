//! The requests about the configuration as a whole: who fetches it, who brings a cluster file, who looks at processes and devices.
//!
//! Bound: one cluster file that is being brought, of [`CLUSTER_FILE_BYTES_MAX`]; nothing is kept of those who fetch. Left over of an upload
//! that stays in the middle: its bytes, until the next one begins or the reign ends. What is told of versions: `conf_book`. Start at [`serve_all`].

use std::rc::Rc;

use base::checksum::crc32c;
use base::units::wide;
use faces::configuration::CONFIGURATION_FORMAT;
use faces::limits::{CLUSTER_FILE_BYTES_MAX, CONF_MESSAGE_BYTES, status_fits_a_message, store_bytes_for};
use fops::FopError;
use fops::conf::{ClusterStatus, ClusterStatusReply, ConfApply, ConfApplyReply, ConfGet, ConfGetReply};
use fops::conf_sync::{
    ConfApplyUpload, ConfSync, ConfSyncReply, ConfUpload, ConfUploadReply, StatusGet, StatusGetReply,
};
use rpc::Fom;

use crate::daemon::{Inner, Office, not_permitted, serve};
use crate::transactions::{ApplyRefusal, Reason};

/// A cluster file that is being brought.
#[derive(Debug)]
pub(crate) struct Upload {
    number: u64,
    total_bytes: u64,
    bytes: Vec<u8>,
}

fn bad(reason: String) -> FopError {
    FopError::BadRequest { reason }
}

pub(crate) fn serve_all(office: &Rc<Office>) {
    let inner = office;
    serve(inner, |inner: Rc<Inner>, _fom, request: ConfGet| async move { inner.conf_get(&request) });
    serve(inner, |inner: Rc<Inner>, _fom, request: ConfSync| async move { inner.conf_sync(&request) });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: ConfApply| async move {
        inner.conf_apply(&fom, request).await
    });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: ConfUpload| async move {
        inner.conf_upload(&fom, &request).await
    });
    serve(inner, |inner: Rc<Inner>, fom: Fom, request: ConfApplyUpload| async move {
        inner.conf_apply_upload(&fom, request).await
    });
    serve(inner, |inner: Rc<Inner>, _fom, _request: ClusterStatus| async move { inner.cluster_status() });
    serve(inner, |inner: Rc<Inner>, _fom, request: StatusGet| async move { Ok(inner.status_get(request)) });
}

impl Inner {
    /// For requesters who know of no parts.
    fn conf_get(&self, request: &ConfGet) -> Result<ConfGetReply, FopError> {
        let book = self.book.borrow();
        let newest = book.newest();
        if newest.version <= request.known_version {
            return Ok(ConfGetReply { version: newest.version, configuration: None });
        }
        if newest.bytes.len() > CONF_MESSAGE_BYTES {
            return Err(FopError::NotPermitted {
                reason: format!(
                    "the configuration has {} bytes and does not fit one message: bring this program to the version of control, which fetches it in parts",
                    newest.bytes.len()
                ),
            });
        }
        Ok(ConfGetReply { version: newest.version, configuration: Some(newest.bytes.to_vec()) })
    }

    fn conf_sync(&self, request: &ConfSync) -> Result<ConfSyncReply, FopError> {
        if request.format < CONFIGURATION_FORMAT {
            return Err(FopError::NotPermitted {
                reason: format!(
                    "the configuration has form {CONFIGURATION_FORMAT}, and the requester reads up to {}: bring it to the version of control",
                    request.format
                ),
            });
        }
        Ok(self.book.borrow_mut().answer(self.rpc.locality().now(), request))
    }

    async fn conf_apply(&self, fom: &Fom, request: ConfApply) -> Result<ConfApplyReply, FopError> {
        let bytes = fom.bulk_source_bytes();
        if bytes > wide(CLUSTER_FILE_BYTES_MAX) {
            return Err(too_long(bytes));
        }
        let text = pulled(fom).await?;
        let ConfApply { base, unix_s, note } = request;
        self.put_in_force(text, base, Reason { by: fom.peer().endpoint, unix_s, note }).await
    }

    async fn conf_upload(&self, fom: &Fom, request: &ConfUpload) -> Result<ConfUploadReply, FopError> {
        let ConfUpload { upload: number, offset, total_bytes } = *request;
        if total_bytes > wide(CLUSTER_FILE_BYTES_MAX) {
            return Err(too_long(total_bytes));
        }
        if number == 0 {
            return Err(bad("upload 0 is none: draw another number".to_owned()));
        }
        let part = pulled(fom).await?;
        let mut kept = self.upload.borrow_mut();
        if offset == 0 && kept.as_ref().is_none_or(|upload| upload.number != number) {
            *kept = Some(Upload { number, total_bytes, bytes: Vec::new() });
        }
        let Some(upload) = kept.as_mut().filter(|upload| upload.number == number) else {
            return Err(bad("another cluster file is being brought since: begin again".to_owned()));
        };
        let there = wide(upload.bytes.len());
        let end = offset.saturating_add(wide(part.len()));
        if upload.total_bytes != total_bytes || offset > there || end > total_bytes {
            return Err(bad(format!(
                "a part of bytes {offset} to {end} of {total_bytes}, where {there} of {} are there",
                upload.total_bytes
            )));
        }
        // One that came before, or a part of it, came again.
        let known = base::units::narrow(there - offset).min(part.len());
        upload.bytes.extend_from_slice(&part[known..]);
        Ok(ConfUploadReply { bytes: wide(upload.bytes.len()) })
    }

    async fn conf_apply_upload(
        &self,
        fom: &Fom,
        request: ConfApplyUpload,
    ) -> Result<ConfApplyReply, FopError> {
        let ConfApplyUpload { upload: number, checksum, base, unix_s, note } = request;
        let text = {
            let kept = self.upload.borrow();
            let Some(upload) = kept.as_ref().filter(|upload| upload.number == number) else {
                return Err(bad("that cluster file is not here: bring it again".to_owned()));
            };
            let there = wide(upload.bytes.len());
            if there != upload.total_bytes || crc32c(&upload.bytes) != checksum {
                return Err(bad(format!(
                    "{there} of {} bytes of the cluster file are here, or their checksum is another: bring it again",
                    upload.total_bytes
                )));
            }
            upload.bytes.clone()
        };
        let reply = self.put_in_force(text, base, Reason { by: fom.peer().endpoint, unix_s, note }).await?;
        // Asked again, it is answered by the same text in force; until then it may be asked again.
        self.upload.borrow_mut().take_if(|upload| upload.number == number);
        Ok(reply)
    }

    async fn put_in_force(
        &self,
        text: Vec<u8>,
        base: u64,
        reason: Reason,
    ) -> Result<ConfApplyReply, FopError> {
        let text = String::from_utf8(text).map_err(|error| bad(format!("the file is not text: {error}")))?;
        self.check_room(text.len())?;
        self.check_members(&text)?;
        let reply = self.core.borrow_mut().handle_apply(&text, base, reason);
        let reply = reply.map_err(|refusal| match refusal {
            ApplyRefusal::File(error) => bad(error.to_string()),
            other => not_permitted(&other),
        })?;
        self.settle(reply.version).await?;
        Ok(reply)
    }

    /// The cluster file says how large the store is; what counts is how large it was made. One that is full takes no change any more.
    fn check_room(&self, text_bytes: usize) -> Result<(), FopError> {
        let has = self.store.bytes();
        let needs = store_bytes_for(text_bytes);
        if needs <= has {
            return Ok(());
        }
        Err(FopError::NotPermitted {
            reason: format!(
                "a cluster file of {text_bytes} bytes needs a store of at least {needs} bytes, and that of this control daemon was made with {has}: \
                 a new cluster may have a larger one, or `clovis control restore` puts a backup into one"
            ),
        })
    }

    /// The control daemons know from the file in force where to find each other: one that it does not name any more would be lost with the next change of the lead.
    fn check_members(&self, text: &str) -> Result<(), FopError> {
        let core = self.core.borrow();
        // What is no cluster file is refused with what is wrong in it.
        let Some(file) = core.transactions().and_then(|transactions| transactions.parse(text).ok()) else {
            return Ok(());
        };
        let is_named = |member: &u64| file.control_members().any(|(number, _)| number == *member);
        match self.store.log().members().iter().find(|member| !is_named(member)) {
            None => Ok(()),
            Some(member) => Err(FopError::NotPermitted {
                reason: format!(
                    "control daemon {member} is a member, and the file does not name it: nobody would know where it listens. Take it out first, with \
                     `clovis control member remove {member}`"
                ),
            }),
        }
    }

    /// For requesters who know of no pages.
    fn cluster_status(&self) -> Result<ClusterStatusReply, FopError> {
        let core = self.core.borrow();
        let configuration = core.configuration();
        let (processes, devices) = (configuration.processes.len(), configuration.pool.devices.len());
        if !status_fits_a_message(processes, devices) {
            return Err(FopError::NotPermitted {
                reason: format!(
                    "the status of {processes} processes and {devices} devices does not fit one message: bring this program to the version of control, which asks by pages"
                ),
            });
        }
        Ok(core.status(self.rpc.locality().now()))
    }

    fn status_get(&self, request: StatusGet) -> StatusGetReply {
        self.core.borrow().status_page(self.rpc.locality().now(), request)
    }
}

fn too_long(bytes: u64) -> FopError {
    bad(format!("the file has {bytes} bytes; a cluster file has at most {CLUSTER_FILE_BYTES_MAX}"))
}

async fn pulled(fom: &Fom) -> Result<Vec<u8>, FopError> {
    let mut bytes = Vec::new();
    for part in fom.pull().await? {
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
