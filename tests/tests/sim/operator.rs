//! What the operators of a run have in common: a question to control, and how long its answer is waited for.

use std::time::Duration;

use base::{Endpoint, Fid};
use client::Client;
use fops::repair::{RepairGet, RepairStatus};
use rpc::{Bulk, CallOptions};

/// How long an operator waits for one answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(2);

/// One question. Errors: in words, for the loud.
pub async fn ask<F: fops::Fop>(client: &Client, control: Endpoint, fop: &F) -> Result<F::Reply, String> {
    ask_with(client, control, fop, Bulk::none()).await
}

/// The same with bytes.
pub async fn ask_with<F: fops::Fop>(
    client: &Client,
    control: Endpoint,
    fop: &F,
    bulk: Bulk,
) -> Result<F::Reply, String> {
    let options = CallOptions::until(client.locality().now() + ANSWER_TIME);
    let answer = client.rpc().call(control, fop, bulk, options).await;
    answer.map(|answer| answer.reply).map_err(|error| error.to_string())
}

/// How the last copy to a device stands, or the last move of a pool's objects; `None`: there was none.
pub async fn copy_of(
    client: &Client,
    control: Endpoint,
    subject: Fid,
) -> Result<Option<RepairStatus>, String> {
    let reply = ask(client, control, &RepairGet { after: None }).await?;
    Ok(reply.repairs.into_iter().find(|found| found.device == subject))
}
